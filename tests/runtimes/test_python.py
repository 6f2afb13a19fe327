"""Models of Python code: what they declare, what they get, and that nobody runs them unasked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import TensorSpec
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated
from tapster.runtimes.python import PythonRuntime

SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
DECLARATION = {"inputs": [SPEC], "outputs": [{**SPEC, "name": "y"}]}
SOURCE = b"""
class Model:
    def load(self, folder): open({canary!r}, "w")
    def predict(self, inputs): return {{"y": inputs["x"]}}
"""


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_PYTHON_MODELS", "true")


def write(folder: Path, source: str, **more: bytes) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(DECLARATION))
    (folder / "model.py").write_text(source)
    for name, data in more.items():
        (folder / name).write_bytes(data)
    return folder


def isolated(folder: Path) -> Isolated:
    return Isolated.of_draft(folder, "python", "model.py", Limits(memory=1 << 30))


def test_code_runs_only_where_the_operator_allows_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = write(tmp_path / "m", SOURCE.decode().format(canary=str(canary)))
    runtime = PythonRuntime()
    files = {"model.json": json.dumps(DECLARATION).encode(), "model.py": b""}
    for attempt in (
        lambda: runtime.describe(files, "model.py"),
        lambda: isolated(folder),
    ):
        with pytest.raises(TapsterError) as caught:
            attempt()
        assert caught.value.code == "forbidden"
        assert "TAPSTER_PYTHON_MODELS=true" in caught.value.hint
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no model.json"),
        (b"{}", "there is no model.json with inputs and outputs"),
        (b"{", "model.json cannot be read"),
        (b"[]", "model.json cannot be read"),
        (b'{"inputs": [{"name": "x", "datatype": "FP33", "shape": [1]}]}', "FP33"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}', "cannot be"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": "n"}]}', "cannot be read"),
        (b'{"input": []}', "`input`"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_said(
    allowed: None, content: bytes | None, words: str
) -> None:
    files = {} if content is None else {"model.json": content}
    with pytest.raises(TapsterError) as caught:
        PythonRuntime().describe(files, "model.py")
    assert caught.value.code == "unprocessable"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Model = 1", "defines no class Model"),
        ("class Model: pass", "defines no class Model"),
        ("class Model:\n  def load(self): pass\n  def predict(self, x): pass", "TypeError"),
        ("import nowhere_to_be_found", "not installed here: nowhere_to_be_found"),
        ("class", "SyntaxError"),
    ],
)
def test_a_module_without_a_model_is_refused(
    allowed: None, tmp_path: Path, source: str, words: str
) -> None:
    with pytest.raises(TapsterError) as caught:
        isolated(write(tmp_path / "m", source))
    assert caught.value.code == "unprocessable"
    assert words in caught.value.message
    assert "/tmp" not in caught.value.message


def test_a_model_finds_its_files_and_may_keep_what_it_gets(allowed: None, tmp_path: Path) -> None:
    from safetensors.numpy import save

    weights: Any = {"w": np.array([[2.0, 0.0], [0.0, 3.0]], np.float32)}
    source = (
        "import pathlib\n"
        "from safetensors.numpy import load_file\n"
        "from parts.scaling import scale\n"
        "class Model:\n"
        "    def load(self, folder):\n"
        "        assert isinstance(folder, pathlib.Path)\n"
        "        self.weights = load_file(folder / 'weights.safetensors')['w']\n"
        "        self.seen = []\n"
        "    def predict(self, inputs):\n"
        "        x = inputs['x']\n"
        "        x += 1\n"
        "        self.seen.append(x)\n"
        "        first = self.seen[0]\n"
        "        return {'y': scale(first @ self.weights), 'more': 1}\n"
    )
    folder = write(tmp_path / "m", source, **{"weights.safetensors": save(weights)})
    (folder / "parts").mkdir()
    (folder / "parts" / "scaling.py").write_text("def scale(x): return x.astype('float64') * 10")
    with isolated(folder) as model:
        assert model.signature.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
        for given in ([[1, 1]], [[5, 5]], [[7, 7]]):
            x = np.array(given, np.float32)
            (y,) = model.run({"x": x})
            assert y.tolist() == [[40.0, 60.0]]
            assert y.dtype == np.float32
            assert x.tolist() == given
