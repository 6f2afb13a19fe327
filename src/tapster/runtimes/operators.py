"""Which graphs may run in a server's own process: an operator list and one rule on shapes.

Parses with an excerpt of onnx.proto (github.com/onnx/onnx, field numbers as there) instead of the
`onnx` package: every data-plane worker vets what it loads, and must stay small.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from tapster.contract.errors import TapsterError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Left out on purpose: control flow (If, Loop, Scan, SequenceMap), anything random, sequences and
# optionals, operators whose output shape follows input values (Compress, NonZero, Unique,
# NonMaxSuppression, StringSplit), training losses, and image decoding.
_PLAIN: Final = _words(
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool"
    " BatchNormalization BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike"
    " Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh"
    " CumProd CumSum DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum"
    " Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm"
    " GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample"
    " GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN"
    " LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool"
    " MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not"
    " OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range"
    " Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin"
    " ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape Resize ReverseSequence"
    " RotaryEmbedding Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin"
    " Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze StringConcat"
    " StringNormalizer Sub Sum SwiGLU Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK"
    " Transpose Trilu Unsqueeze Upsample Where Xor"
)
_ML: Final = _words(
    "ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier"
    " LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble"
    " TreeEnsembleClassifier TreeEnsembleRegressor"
)
# Kernels that ship inside ONNX Runtime; converters and its quantiser write them.
_CONTRIBUTED: Final = _words(
    "Attention BiasGelu CDist DynamicQuantizeMatMul EmbedLayerNormalization FusedMatMul Gelu"
    " MatMulIntegerToFloat MatMulNBits QAttention QGemm QLinearAdd QLinearAveragePool"
    " QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid"
    " SkipLayerNormalization"
)
_VETTED: Final = {
    "": _PLAIN,
    "ai.onnx": _PLAIN,
    "ai.onnx.ml": _ML,
    "com.microsoft": _CONTRIBUTED,
}
# Inputs (by index) whose values decide the shape of the output.
_SHAPING: Final = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
_SHAPE_ONLY: Final = frozenset({b"Shape", b"Size"})


# Message: {field: (number, type, repeated)}; every other field stays an unread unknown one.
_ONNX: Final[dict[str, dict[str, tuple[int, str, bool]]]] = {
    "Model": {
        "graph": (7, "Graph", False),
        "training_info": (20, "bytes", True),
        "functions": (25, "Function", True),
    },
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "input": (11, "Value", True),
        "sparse_initializer": (15, "Sparse", True),
    },
    "Function": {"node": (7, "Node", True)},
    "Node": {
        "input": (1, "bytes", True),
        "output": (2, "bytes", True),
        "op_type": (4, "bytes", False),
        "attribute": (5, "Attribute", True),
        "domain": (7, "bytes", False),
    },
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse_tensor": (22, "Sparse", False),
        "sparse_tensors": (23, "Sparse", True),
    },
    "Tensor": {"external_data": (13, "bytes", True), "data_location": (14, "int32", False)},
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Value": {"name": (1, "bytes", False)},
}


def vet(model: bytes) -> list[str]:
    """Why the ONNX model `model` may not run in the server's own process; empty if it may.

    Raises TapsterError(unprocessable) for bytes that are no ONNX model and for one whose weights
    lie in other files.
    """
    parsed = _parse(model)
    _refuse_external_data(parsed)
    reasons: dict[str, None] = {}
    if parsed.functions or parsed.training_info:
        reasons["it carries functions or training steps of its own"] = None
    tainted = _tainted(parsed.graph)
    for node in parsed.graph.node:
        for reason in _judge(node, tainted):
            reasons[reason] = None
    return list(reasons)


def refuse_external_data(model: bytes) -> None:
    """Raise TapsterError(unprocessable) if `model` is no ONNX model or has weights elsewhere."""
    _refuse_external_data(_parse(model))


def _judge(node: Any, tainted: set[bytes]) -> Iterator[str]:
    """What is wrong with a node, given the tensors that follow input values."""
    operator = node.op_type.decode(errors="replace")
    domain = node.domain.decode(errors="replace")
    name = repr(f"{domain}.{operator}" if domain else operator)[:80]
    if operator not in _VETTED.get(domain, frozenset()):
        yield f"operator {name} is not on the vetted list"
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        yield f"operator {name} holds a graph of its own"
    for index in _SHAPING.get(operator, ()):
        if index < len(node.input) and node.input[index] in tainted:
            yield f"operator {name} takes the shape of its output from input values"


def _tainted(graph: Any) -> set[bytes]:
    """Names of the tensors whose values follow input values (shapes alone do not count).

    An input with a default counts as well: a caller could override it. ONNX Runtime sorts nodes
    itself, so their order in the file proves nothing.
    """
    consumers = defaultdict(list)
    for node in graph.node:
        if node.op_type not in _SHAPE_ONLY:
            for name in node.input:
                consumers[name].append(node)
    found = {value.name for value in graph.input}
    queue = list(found)
    while queue:
        for node in consumers.pop(queue.pop(), ()):
            fresh = {name for name in node.output if name} - found
            found |= fresh
            queue.extend(fresh)
    return found


def _parse(model: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        parsed = _message("Model").FromString(model)
    except DecodeError:
        raise _no_model() from None
    if not parsed.HasField("graph") or not (parsed.graph.node or parsed.graph.input):
        raise _no_model()
    return parsed


def _no_model() -> TapsterError:
    return TapsterError(
        "unprocessable",
        "the file is not an ONNX model",
        hint="export the model to ONNX (torch.onnx.export, skl2onnx, ...) and check it with"
        " onnx.checker",
    )


def _refuse_external_data(parsed: Any) -> None:
    for tensor in _tensors(parsed):
        if tensor.external_data or tensor.data_location:
            raise TapsterError(
                "unprocessable",
                "the model keeps weights in other files (ONNX external data)",
                hint="save it as one file: onnx.save(model, path, save_as_external_data=False)",
            )


def _tensors(parsed: Any) -> Iterator[Any]:
    """Every TensorProto of the model, however deep."""
    for function in parsed.functions:
        yield from _node_tensors(function.node)
    yield from _graph_tensors(parsed.graph)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


@cache
def _message(name: str) -> Any:
    """The class of a message of `_ONNX`, in a pool of its own."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="excerpt.proto", package="excerpt", syntax="proto2")
    for message, fields in _ONNX.items():
        described = file.message_type.add(name=message)
        for title, (number, kind, repeated) in fields.items():
            described.field.add(
                name=title,
                number=number,
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
                type={"bytes": Field.TYPE_BYTES, "int32": Field.TYPE_INT32}.get(
                    kind, Field.TYPE_MESSAGE
                ),
                type_name=f".excerpt.{kind}" if kind in _ONNX else None,
            )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"excerpt.{name}"))
