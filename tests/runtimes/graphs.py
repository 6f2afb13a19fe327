"""Small ONNX graphs, made by hand, and packages of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tapster.contract.inference import Array
from tapster.contract.manifest import Column, Lineage, Signature, TensorSpec, Tolerance
from tapster.runtimes import package, parity

FLOAT, INT, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
TOLERANCE = Tolerance(atol=1e-6, rtol=1e-6, margin=1e-6)
WEIGHTS = np.array([[1.0, -1.0], [0.5, 2.0]], dtype=np.float32)

COLUMNS = (
    Column("age", "number", "numeric", 0),
    Column('it\'s "big" 🍷', "number", "numeric", 1),
)
SIGNATURE = Signature(
    inputs=(TensorSpec("numeric", "FP32", (-1, 2)),),
    outputs=(
        TensorSpec("prediction", "INT64", (-1,)),
        TensorSpec("probabilities", "FP32", (-1, 2)),
    ),
    columns=COLUMNS,
    classes=(0, 1),
)


def value(name: str, kind: int, shape: Sequence[Any] | None) -> ValueInfoProto:
    """A graph's input or output; strings in the shape are open dimensions."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: dict[str, Array] | None = None,
    opset: int = 18,
) -> ModelProto:
    """A model of the plain and the ML operators."""
    held = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=held)
    imports = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("ai.onnx.ml", 3),
        helper.make_opsetid("com.microsoft", 1),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def classifier(weights: Array = WEIGHTS) -> bytes:
    """numeric [n, 2] -> probabilities = softmax(numeric @ weights), prediction = argmax."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["prediction"], axis=1, keepdims=0),
    ]
    made = model(
        nodes,
        [value("numeric", FLOAT, ["n", 2])],
        [value("prediction", INT, ["n"]), value("probabilities", FLOAT, ["n", 2])],
        {"weights": weights},
    )
    return bytes(made.SerializeToString())


def answers(rows: Array, weights: Array = WEIGHTS) -> dict[str, Array]:
    """What `classifier` gives, by numpy."""
    scores = rows @ weights
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return {"prediction": probabilities.argmax(axis=1), "probabilities": probabilities}


def sample(rows: int = 12, seed: int = 0) -> Array:
    """Rows for `classifier`."""
    return np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)


def sealed(
    folder: Path,
    *,
    graph: bytes | None = None,
    name: str = "m",
    lineage: Lineage | None = None,
    metrics: dict[str, Any] | None = None,
    created: float = 1.0,
) -> str:
    """Write and seal a package of `classifier` with parity vectors and a sketch; its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sample()
    (folder / package.MODEL).write_bytes(graph or classifier())
    (folder / package.PARITY).write_bytes(
        parity.record({"numeric": rows}, answers(rows), sizes=(1, 2))
    )
    (folder / "sketches").mkdir(exist_ok=True)
    (folder / "sketches" / "0.bin").write_bytes(bytes(range(40)))
    return package.seal(
        folder,
        name=name,
        task="binary",
        signature=SIGNATURE,
        tolerance=TOLERANCE,
        lineage=lineage,
        metrics=metrics or {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}},
        created=created,
    )
