"""The models that `serving.py` serves, made on the spot, and what each answers to its own rows.

`forest` is small: the server decides how fast it is. `cnn` (2 ms an image) and `bert` (the shape of
MiniLM: 6 layers, 384 wide, 64 tokens, 8 ms a row) are heavy: the server must not be in their
way. Their weights are random, which costs as much time as trained ones.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
ROWS: Final = 64
SEED: Final = 7
LAYERS: Final = 6
WIDTH: Final = 384
HEADS: Final = 12
TOKENS: Final = 64
WORDS: Final = 8192


@dataclass(frozen=True)
class Subject:
    """A model in its folder: the rows to send as `input`, the `output` to check, its scores."""

    name: str
    folder: Path
    input: str
    output: str
    rows: Array
    scores: Array

    def batch(self, case: int, size: int) -> tuple[Array, list[float]]:
        """The rows of one request and the scores that it must be answered with."""
        chosen = [(case * size + row) % len(self.rows) for row in range(size)]
        return self.rows[chosen], self.scores[chosen].ravel().tolist()


def make(name: str, folder: Path) -> Subject:
    """Write a model into a new folder of its name."""
    place = folder / name
    place.mkdir()
    return MAKERS[name](place)


def _forest(folder: Path) -> Subject:
    """100 trees on breast cancer (30 numbers a row), as ONNX and pickled."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    table, target = load_breast_cancer(return_X_y=True)
    table = table.astype(np.float32)
    pipeline = make_pipeline(
        SimpleImputer(strategy="median"), RandomForestClassifier(100, random_state=0)
    ).fit(table, target)
    (folder / "model.pickle").write_bytes(pickle.dumps(pipeline))
    graph = to_onnx(
        pipeline,
        initial_types=[("numeric", FloatTensorType([None, table.shape[1]]))],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    rows = table[:: len(table) // ROWS][:ROWS]
    scores = pipeline.predict_proba(rows)
    return Subject(folder.name, folder, "numeric", "probabilities", rows, scores)


class _Graph:
    """A graph being written, node by node, with random weights."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(SEED)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, fan: int) -> str:
        """Random weights of variance 1 / `fan`."""
        values = self._random.normal(0, fan**-0.5, shape)
        return self.constant(values.astype(np.float32))

    def constant(self, values: Array) -> str:
        """Given values."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node; returns the name of its output."""
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def save(self, path: Path, source: onnx.ValueInfoProto, last: str, classes: int) -> None:
        """The softmax of `last` as `scores`, and the whole as a file."""
        self.nodes.append(helper.make_node("Softmax", [last], ["scores"], axis=-1))
        sink = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, classes])
        graph = helper.make_graph(self.nodes, path.parent.name, [source], [sink], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def _cnn(folder: Path) -> Subject:
    """Seven convolutions on 32 x 32 images in three colours."""
    graph = _Graph()
    last, channels = "pixels", 3
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1)):
        kernel = graph.weight(width, channels, 3, 3, fan=channels * 9 // 2)
        last = graph.add("Conv", last, kernel, pads=[1] * 4, strides=[stride] * 2)
        last = graph.add("Relu", last)
        channels = width
    last = graph.add("Flatten", graph.add("GlobalAveragePool", last))
    last = graph.add("MatMul", last, graph.weight(channels, 10, fan=channels // 64))
    shape = [None, 3, 32, 32]
    source = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    graph.save(folder / "model.onnx", source, last, 10)
    rows = np.random.default_rng(SEED).random((ROWS, 3, 32, 32), np.float32)
    return _answered(folder, "pixels", rows.round(3))


def _bert(folder: Path) -> Subject:
    """An encoder with attention over all tokens, the mean of them classified."""
    graph = _Graph()
    words = graph.add("Gather", graph.weight(WORDS, WIDTH, fan=1), "tokens")
    last = graph.add("Add", words, graph.weight(TOKENS, WIDTH, fan=1))
    for _ in range(LAYERS):
        last = _normal(graph, graph.add("Add", last, _attention(graph, last)))
        last = _normal(graph, graph.add("Add", last, _forward(graph, last)))
    last = graph.add("ReduceMean", last, graph.constant(np.array([1])), keepdims=0)
    last = graph.add("MatMul", last, graph.weight(WIDTH, 2, fan=WIDTH))
    source = helper.make_tensor_value_info("tokens", TensorProto.INT64, [None, TOKENS])
    graph.save(folder / "model.onnx", source, last, 2)
    rows = np.random.default_rng(SEED).integers(0, WORDS, (ROWS, TOKENS))
    return _answered(folder, "tokens", rows)


def _normal(graph: _Graph, last: str) -> str:
    scale = graph.constant(np.ones(WIDTH, np.float32))
    return graph.add("LayerNormalization", last, scale, axis=-1)


def _attention(graph: _Graph, last: str) -> str:
    split = graph.constant(np.array([0, TOKENS, HEADS, WIDTH // HEADS]))

    def heads(order: list[int]) -> str:
        flat = graph.add("MatMul", last, graph.weight(WIDTH, WIDTH, fan=WIDTH))
        return graph.add("Transpose", graph.add("Reshape", flat, split), perm=order)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    root = graph.constant(np.array((WIDTH // HEADS) ** 0.5, np.float32))
    shares = graph.add("Softmax", graph.add("Div", graph.add("MatMul", query, key), root), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
    whole = graph.constant(np.array([0, TOKENS, WIDTH]))
    joined = graph.add("Reshape", mixed, whole)
    return graph.add("MatMul", joined, graph.weight(WIDTH, WIDTH, fan=WIDTH))


def _forward(graph: _Graph, last: str) -> str:
    """Two layers with GELU between them: x / 2 * (1 + erf(x / sqrt 2))."""
    wide = graph.add("MatMul", last, graph.weight(WIDTH, 4 * WIDTH, fan=WIDTH))
    root, one, half = (graph.constant(np.array(n, np.float32)) for n in (2**0.5, 1, 0.5))
    bent = graph.add("Add", graph.add("Erf", graph.add("Div", wide, root)), one)
    wide = graph.add("Mul", graph.add("Mul", wide, bent), half)
    return graph.add("MatMul", wide, graph.weight(4 * WIDTH, WIDTH, fan=4 * WIDTH))


def _answered(folder: Path, source: str, rows: Array) -> Subject:
    """A subject whose scores ONNX Runtime gives, row by row."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    scores = [session.run(["scores"], {source: rows[at : at + 1]})[0] for at in range(len(rows))]
    return Subject(folder.name, folder, source, "scores", rows, np.concatenate(scores))


MAKERS: Final[dict[str, Callable[[Path], Subject]]] = {
    "forest": _forest,
    "cnn": _cnn,
    "bert": _bert,
}
