"""Small packages made from hand-written graphs, sealed by the code that seals real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapster.contract.inference import NUMPY_TYPE
from tapster.contract.manifest import Column, Signature, TensorSpec, Tolerance
from tapster.contract.plan import PackageRef
from tapster.core.crypto import Signer
from tapster.runtimes import parity
from tapster.runtimes.onnx import OnnxRuntime
from tapster.runtimes.package import PARITY, open_package, seal, sign

TENANT = "default"
NUMBERS = ("alpha", "beta", "gamma")
SIGNER = Signer(bytes(range(32)))
EXACT = Tolerance(atol=1e-6, rtol=1e-6)


def regressor(home: Path, bias: float, *, spoil: bool = False) -> PackageRef:
    """prediction = alpha + beta + gamma + bias, `numeric` FP32 [n, 3]."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "bias"], ["prediction"]),
    ]
    constants = {"axes": np.array([1], np.int64), "bias": np.array(bias, np.float32)}
    signature = Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, 3)),),
        outputs=(TensorSpec("prediction", "FP32", (-1,)),),
        columns=tuple(Column(n, "number", "numeric", i) for i, n in enumerate(NUMBERS)),
    )
    inputs = {"numeric": np.arange(12, dtype=np.float32).reshape(4, 3)}
    return _put(home, "regression", nodes, constants, signature, inputs, spoil=spoil)


def classifier(home: Path) -> PackageRef:
    """Labels `no` and `yes` from a number, a boolean and a date, and from two texts.

    score = number + boolean + date / 100000 + (1 when the city is Turin); yes above 1.
    """
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["numbers"]),
        helper.make_node(
            "LabelEncoder",
            ["text"],
            ["codes"],
            domain="ai.onnx.ml",
            keys_strings=["Turin"],
            values_floats=[1.0],
            default_float=0.0,
        ),
        helper.make_node("ReduceSum", ["codes", "axes"], ["texts"], keepdims=1),
        helper.make_node("Add", ["numbers", "texts"], ["score"]),
        helper.make_node("Sub", ["score", "one"], ["yes_score"]),
        helper.make_node("Sigmoid", ["yes_score"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder",
            ["best"],
            ["prediction"],
            domain="ai.onnx.ml",
            keys_int64s=[0, 1],
            values_strings=["no", "yes"],
        ),
    ]
    constants = {
        "weights": np.array([[1.0], [1.0], [1e-5]], np.float32),
        "axes": np.array([1], np.int64),
        "one": np.array([[1.0]], np.float32),
    }
    signature = Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, 3)), TensorSpec("text", "BYTES", (-1, 2))),
        outputs=(
            TensorSpec("prediction", "BYTES", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, 2)),
        ),
        columns=(
            Column("size", "number", "numeric", 0),
            Column("city", "text", "text", 0),
            Column("member", "boolean", "numeric", 1),
            Column("since", "date", "numeric", 2),
            Column('<b>"quoted"\'; 😀', "text", "text", 1),
        ),
        classes=("no", "yes"),
    )
    inputs = {
        "numeric": np.array([[0, 0, 0], [2, 1, 100]], np.float32),
        "text": np.array([["Turin", ""], ["Rome", "x"]], np.object_),
    }
    return _put(home, "binary", nodes, constants, signature, inputs)


def typed(home: Path) -> PackageRef:
    """A bare import: `i8` INT8 [n], `i64` INT64 [n, 2], `flag` BOOL [n] come back as they went."""
    nodes = [
        helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("i8", "i64", "flag")
    ]
    signature = Signature(
        inputs=(
            TensorSpec("i8", "INT8", (-1,)),
            TensorSpec("i64", "INT64", (-1, 2)),
            TensorSpec("flag", "BOOL", (-1,)),
        ),
        outputs=(
            TensorSpec("i8_out", "INT8", (-1,)),
            TensorSpec("i64_out", "INT64", (-1, 2)),
            TensorSpec("flag_out", "BOOL", (-1,)),
        ),
    )
    inputs: dict[str, Any] = {
        "i8": np.array([1, 2], np.int8),
        "i64": np.array([[1, 2], [3, 4]], np.int64),
        "flag": np.array([True, False]),
    }
    return _put(home, "other", nodes, {}, signature, inputs)


EVERY: dict[Any, Any] = {
    "BOOL": [[True, False], [False, True]],
    "INT8": [[-128, 127], [0, 1]],
    "INT16": [[-(2**15), 2**15 - 1], [0, 1]],
    "INT32": [[-(2**31), 2**31 - 1], [0, 1]],
    "INT64": [[-(2**63), 2**63 - 1], [0, 1]],
    "UINT8": [[0, 255], [2, 1]],
    "UINT16": [[0, 2**16 - 1], [2, 1]],
    "UINT32": [[0, 2**32 - 1], [2, 1]],
    "UINT64": [[0, 2**64 - 1], [2, 1]],
    "FP16": [[1.5, -65504.0], [0.0, 2.0]],
    "FP32": [[1.5, -3.25e38], [0.0, 2.0]],
    "FP64": [[1.5, -1.5e308], [0.0, 2.0]],
    "BYTES": [["", "naïve-😀"], ["a\0b", "x" * 300]],
}


def every(home: Path, *datatypes: Any, width: int = 2) -> PackageRef:
    """A bare import: inputs `x_<datatype>` [n, width], which come back as `y_<datatype>`.

    Without `datatypes`, one of each of `EVERY`.
    """
    chosen = datatypes or tuple(EVERY)
    signature = Signature(
        inputs=tuple(TensorSpec(f"x_{kind}", kind, (-1, width)) for kind in chosen),
        outputs=tuple(TensorSpec(f"y_{kind}", kind, (-1, width)) for kind in chosen),
    )
    nodes = [helper.make_node("Identity", [f"x_{kind}"], [f"y_{kind}"]) for kind in chosen]
    shape = (4, 1) if width == 1 else (2, max(width, 2))
    inputs = {
        f"x_{kind}": np.resize(np.array(EVERY[kind], NUMPY_TYPE[kind]), shape) for kind in chosen
    }
    return _put(home, "other", nodes, {}, signature, inputs)


def heavy(home: Path, size: int = 1000, layers: int = 60) -> PackageRef:
    """A long chain of matrix products, milliseconds a row: for deadlines and slow models."""
    nodes = []
    last = "numeric"
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [last, "square"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]))
        last = f"t{layer}"
    nodes.append(helper.make_node("ReduceSum", [last, "axes"], ["prediction"], keepdims=0))
    signature = Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, size)),),
        outputs=(TensorSpec("prediction", "FP32", (-1,)),),
    )
    constants = {
        "square": (np.eye(size) * 0.5).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    inputs = {"numeric": np.zeros((1, size), np.float32)}
    return _put(home, "other", nodes, constants, signature, inputs)


def stubborn(home: Path) -> PackageRef:
    """A row of numbers comes back as it went, after one operator that takes the cube of its length.

    A second for 1300 of them, half a minute for 4000; nothing can end it before.
    """
    nodes = [
        helper.make_node("Transpose", ["x"], ["across"], perm=[1, 0]),
        helper.make_node("MatMul", ["across", "x"], ["square"]),
        helper.make_node("MatMul", ["square", "square"], ["cube"]),
        helper.make_node("Mul", ["cube", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "axes"], ["none"], keepdims=1),
        helper.make_node("Add", ["x", "none"], ["prediction"]),
    ]
    signature = Signature(
        inputs=(TensorSpec("x", "INT64", (-1, -1)),),
        outputs=(TensorSpec("prediction", "INT64", (-1, -1)),),
    )
    constants = {"zero": np.array(0, np.int64), "axes": np.array([0], np.int64)}
    inputs = {"x": np.arange(4).reshape(1, 4)}
    return _put(home, "other", nodes, constants, signature, inputs)


def _put(  # noqa: PLR0917
    home: Path,
    task: Any,
    nodes: list[Any],
    constants: dict[str, Any],
    signature: Signature,
    inputs: dict[str, Any],
    *,
    spoil: bool = False,
) -> PackageRef:
    graph = helper.make_graph(
        nodes,
        "graph",
        [_value(spec) for spec in signature.inputs],
        [_value(spec) for spec in signature.outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return put(home, task, model, signature, inputs, spoil=spoil)


def put(
    home: Path,
    task: Any,
    model: onnx.ModelProto,
    signature: Signature,
    inputs: dict[str, Any],
    *,
    spoil: bool = False,
) -> PackageRef:
    """Seal a graph with its own answers to `inputs` into a package where a worker looks."""
    folder = home / "making"
    folder.mkdir(parents=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    (folder / PARITY).write_bytes(b"")
    outputs = _answers(folder, task, signature, inputs)
    if spoil:
        outputs = {name: array + 1 for name, array in outputs.items()}
    (folder / PARITY).write_bytes(parity.record(inputs, outputs))
    digest = seal(folder, name="made", task=task, signature=signature, tolerance=EXACT)
    sign(folder, SIGNER)
    target = home / "blobs" / TENANT / "packages" / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return PackageRef(digest=digest, key=f"{TENANT}/packages/{digest}")


def _answers(
    folder: Path, task: Any, signature: Signature, inputs: dict[str, Any]
) -> dict[str, Any]:
    digest = seal(folder, name="made", task=task, signature=signature, tolerance=EXACT)
    package = open_package(folder, digest)
    model = OnnxRuntime().load(package.manifest, package.files, 1)
    names = [spec.name for spec in signature.outputs]
    return dict(zip(names, model.run(inputs, names), strict=True))


_TYPES = {
    "FP32": TensorProto.FLOAT,
    "BYTES": TensorProto.STRING,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP64": TensorProto.DOUBLE,
    "BOOL": TensorProto.BOOL,
}


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    shape = [None if size == -1 else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.datatype], shape)
