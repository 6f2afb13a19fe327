"""Packages that stand beside one another: one signature, other answers, faults and speeds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tapster.contract.inference import Array
from tapster.contract.manifest import Column, Signature, TensorSpec
from tapster.contract.plan import PackageRef
from tests.serving.packages import NUMBERS, put

CLASSES = ("cat", "dog", "emu")
REGRESSION = Signature(
    inputs=(TensorSpec("numeric", "FP32", (-1, 3)),),
    outputs=(TensorSpec("prediction", "FP32", (-1,)),),
    columns=tuple(Column(name, "number", "numeric", at) for at, name in enumerate(NUMBERS)),
)
ROWS = {"numeric": np.arange(12, dtype=np.float32).reshape(4, 3)}
BOUND = 1000.0


def linear(home: Path, weights: Sequence[float], columns: Sequence[str] = NUMBERS) -> PackageRef:
    """prediction = the columns times their weights, in the order of `columns`."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["table"]),
        helper.make_node("Squeeze", ["table", "axes"], ["prediction"]),
    ]
    table = np.array(weights, np.float32).reshape(3, 1)
    signature = Signature(
        inputs=REGRESSION.inputs,
        outputs=REGRESSION.outputs,
        columns=tuple(Column(name, "number", "numeric", at) for at, name in enumerate(columns)),
    )
    return put(
        home, "regression", graph(nodes, signature, weights=table, axes=[1]), signature, ROWS
    )


def picky(home: Path, bias: float) -> PackageRef:
    """prediction = alpha + beta + gamma + bias, and an error where alpha is `BOUND` or more."""
    nodes, constants = picky_nodes(bias)
    model = graph(nodes, REGRESSION, **constants)
    return put(home, "regression", model, REGRESSION, ROWS)


def picky_nodes(bias: float) -> tuple[list[Any], dict[str, Any]]:
    """The graph of `picky`: alpha is an index into a table."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Gather", ["numeric", "zero"], ["alpha"], axis=1),
        helper.make_node("Cast", ["alpha"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["bias"]),
        helper.make_node("Add", ["total", "bias"], ["prediction"]),
    ]
    table = np.full(int(BOUND), bias, np.float32)
    return nodes, {"axes": [1], "zero": np.array(0, np.int64), "table": table}


def plain_nodes(bias: float) -> tuple[list[Any], dict[str, Any]]:
    """prediction = alpha + beta + gamma + bias."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "bias"], ["prediction"]),
    ]
    return nodes, {"axes": [1], "bias": np.array(bias, np.float32)}


def slow(home: Path, bias: float, layers: int) -> PackageRef:
    """prediction = alpha + beta + gamma + bias, after `layers` products of matrices for nothing."""
    nodes, constants = slow_nodes(bias, layers)
    return put(home, "regression", graph(nodes, REGRESSION, **constants), REGRESSION, ROWS)


def slow_nodes(bias: float, layers: int, size: int = 512) -> tuple[list[Any], dict[str, Any]]:
    """The graph of `slow`."""
    nodes = [helper.make_node("MatMul", ["numeric", "widen"], ["t0"])]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"t{layer}", "square"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer + 1}"]))
    nodes += [
        helper.make_node("ReduceSum", [f"t{layers}", "axes"], ["noise"], keepdims=0),
        helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "bias"], ["biased"]),
        helper.make_node("Add", ["biased", "nothing"], ["prediction"]),
    ]
    return nodes, {
        "widen": np.zeros((3, size), np.float32),
        "square": np.eye(size, dtype=np.float32),
        "axes": [1],
        "zero": np.array(0, np.float32),
        "bias": np.array(bias, np.float32),
    }


def scores(home: Path, weights: Array, classes: Sequence[str] = CLASSES) -> PackageRef:
    """A classifier: probabilities = softmax(numeric @ weights), weights FP32 [3, classes]."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder",
            ["best"],
            ["prediction"],
            domain="ai.onnx.ml",
            keys_int64s=list(range(len(classes))),
            values_strings=list(classes),
        ),
    ]
    signature = Signature(
        inputs=REGRESSION.inputs,
        outputs=(
            TensorSpec("prediction", "BYTES", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(classes))),
        ),
        columns=REGRESSION.columns,
        classes=tuple(classes),
    )
    rows = {"numeric": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
    model = graph(nodes, signature, weights=weights.astype(np.float32))
    return put(home, "multiclass", model, signature, rows)


def graph(nodes: Iterable[Any], signature: Signature, **constants: Any) -> onnx.ModelProto:
    """A model of a signature's tensors; constants that are lists are INT64."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [_value(spec) for spec in signature.inputs],
        [_value(spec) for spec in signature.outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = onnx.TensorProto.STRING if spec.datatype == "BYTES" else onnx.TensorProto.FLOAT
    shape = [None if size == -1 else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, kind, shape)
