"""Models to be hurt: they answer the sum of a row and a bias, some after a lot of work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapster.contract.manifest import Signature, TensorSpec
from tapster.contract.plan import PackageRef
from tests.serving import packages

WIDE: Final = 4000
STEPS: Final = 20


def total(bias: float) -> onnx.ModelProto:
    """prediction = the sum of `numeric` FP32 [n, 3], and a bias; microseconds."""
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "bias"], ["prediction"]),
    ]
    return _graph(nodes, {"axes": np.array([1]), "bias": np.array(bias, np.float32)})


def busy(layers: int) -> onnx.ModelProto:
    """The same without a bias, with work for each row: about 5 microseconds a layer.

    The work is sines of a widened row: as much a row in a large batch as in a small one, and
    one operator after another, so that a run can be ended between two.
    """
    nodes = [helper.make_node("MatMul", ["numeric", "widen"], ["wide0"])]
    nodes += [
        helper.make_node("Sin", [f"wide{layer}"], [f"wide{layer + 1}"]) for layer in range(layers)
    ]
    nodes += [
        helper.make_node("ReduceMean", [f"wide{layers}", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["rest"]),
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "rest"], ["prediction"]),
    ]
    constants = {
        "widen": np.linspace(0.1, 1, 3 * WIDE, dtype=np.float32).reshape(3, WIDE),
        "axes": np.array([1]),
        "nothing": np.array(1e-20, np.float32),
    }
    return _graph(nodes, constants)


def one_long_operator() -> onnx.ModelProto:
    """The sum again, with a recurrence of `STEPS` steps for each row, about a millisecond each:
    ONNX Runtime ends a run between two operators only, and this is one."""
    hidden = 2048
    nodes = [
        helper.make_node("Tile", ["numeric", "repeats"], ["tiled"]),
        helper.make_node("Unsqueeze", ["tiled", "one"], ["sequence"]),
        helper.make_node("RNN", ["sequence", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["rest"]),
        helper.make_node("ReduceSum", ["numeric", "one"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "rest"], ["prediction"]),
    ]
    constants = {
        "one": np.array([1]),
        "repeats": np.array([STEPS, 1]),
        "w": np.full((1, hidden, 3), 1e-3, np.float32),
        "r": np.full((1, hidden, hidden), 1e-3, np.float32),
        "nothing": np.array(1e-20, np.float32),
    }
    return _graph(nodes, constants)


def wide(numbers: int) -> onnx.ModelProto:
    """prediction = so many products of a row: a long answer to a short request."""
    nodes = [helper.make_node("MatMul", ["numeric", "widen"], ["prediction"])]
    widen = np.linspace(0.1, 1, 3 * numbers, dtype=np.float32).reshape(3, numbers)
    return _graph(nodes, {"widen": widen}, [None, numbers])


def write(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(model.SerializeToString())
    return path


def _graph(
    nodes: list[Any], constants: dict[str, Any], shape: Sequence[int | None] = (None,)
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def seal(home: Path, model: onnx.ModelProto, *shape: int) -> PackageRef:
    """One of these models, whose prediction has this shape, as a package for workers of `home`."""
    signature = Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, 3)),),
        outputs=(TensorSpec("prediction", "FP32", shape or (-1,)),),
    )
    inputs = {"numeric": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return packages.put(home, "other", model, signature, inputs)
