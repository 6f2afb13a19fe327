"""Every built-in plug-in keeps its seam's contract; strangers can run the same checks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tapster import testing
from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Signature, TensorSpec, Tolerance
from tapster.core import plugins
from tapster.runtimes import parity
from tapster.runtimes.package import MODEL, PARITY, seal


@pytest.mark.parametrize("name", plugins.names("tapster.blob_stores"))
def test_blob_stores(name: str, tmp_path: Path) -> None:
    store = plugins.load("tapster.blob_stores", name)(tmp_path / "store")
    testing.check_blob_store(store, tmp_path / "scratch")
    assert name in plugins.names("tapster.blob_stores")


@pytest.mark.parametrize("name", plugins.names("tapster.executors"))
def test_executors(name: str, tmp_path: Path) -> None:
    testing.check_executor(plugins.load("tapster.executors", name)(), tmp_path)
    assert (tmp_path / "short" / "log").exists()


def test_the_onnx_runtime(tmp_path: Path) -> None:
    spec = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", spec[:1], spec[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    (tmp_path / MODEL).write_bytes(model.SerializeToString())
    x = np.array([[1, 2], [3, 4]], np.float32)
    (tmp_path / PARITY).write_bytes(parity.record({"x": x}, {"y": -x}))
    shape = (-1, 2)
    digest = seal(
        tmp_path,
        name="negative",
        task="other",
        signature=Signature((TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", shape),)),
        tolerance=Tolerance(0, 0),
    )
    testing.check_runtime(plugins.load("tapster.runtimes", "onnx")(), tmp_path, digest)
    assert plugins.names("tapster.runtimes") == ["onnx", "python", "skops", "torch"]


def test_the_python_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_PYTHON_MODELS", "true")
    (tmp_path / "model.py").write_text(
        "class Model:\n"
        "    def load(self, folder): pass\n"
        "    def predict(self, inputs): return {'y': -inputs['x']}\n"
    )
    x = np.array([[1, 2], [3, 4]], np.float32)
    (tmp_path / PARITY).write_bytes(parity.record({"x": x}, {"y": -x}))
    shape = (-1, 2)
    digest = seal(
        tmp_path,
        name="negative",
        task="other",
        signature=Signature((TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", shape),)),
        tolerance=Tolerance(0, 0),
        runtime="python",
        model_file="model.py",
    )
    testing.check_runtime(plugins.load("tapster.runtimes", "python")(), tmp_path, digest)
    assert (tmp_path / "model.py").exists()


def test_an_unknown_plugin_is_named_with_those_there_are() -> None:
    with pytest.raises(TapsterError, match="there is no 'moon'") as caught:
        plugins.load("tapster.executors", "moon")
    assert "local" in caught.value.hint
