"""Models of skops, torch and Python, imported without being run in the importing process."""

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.registry import packages
from tapster.registry.service import check_servable
from tapster.runtimes import parity
from tapster.runtimes.package import PARITY, Package, open_package
from tests.registry.conftest import TENANT, Installation
from tests.runtimes.isolated.models import wild

SPEC = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
DECLARATION = {"inputs": [SPEC], "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}
SUM = """
class Model:
    def load(self, folder):
        self.factor = float((folder / "factor").read_text())
    def predict(self, inputs):
        return {"y": inputs["x"].sum(axis=1) * self.factor}
"""


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_PYTHON_MODELS", "true")


def packed(here: Installation, **files: str | bytes) -> Path:
    """A tar of files, by names in which __ is a dot."""
    path = here.fresh().with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def stored(here: Installation, version: ModelVersion) -> Package:
    folder = here.parts.blobs.get(packages.key_of(TENANT, version.digest))
    return open_package(folder, version.digest)


def refused(here: Installation, file: Path) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        here.bring("m", file)
    assert list(here.parts.blobs.keys()) == []
    assert str(here.home) not in caught.value.message + caught.value.hint
    return caught.value


def test_a_folder_of_code_becomes_a_package(allowed: None, here: Installation) -> None:
    before = psutil.Process().children()
    file = packed(here, model__py=SUM, model__json=json.dumps(DECLARATION), factor="3")
    result = here.bring("sum", file)
    assert result["unvetted"] == [
        "a model of the runtime 'python' never shares the server's process"
    ]
    found = here.resolve("sum")
    assert (found.runtime, found.task, found.unvetted) == ("python", "other", result["unvetted"])
    assert found.lineage["algorithm"] == "imported python"
    check_servable(found)
    opened = stored(here, found)
    assert set(opened.files) == {"model.py", "model.json", "factor", PARITY}
    vectors = parity.load(opened.files[PARITY])
    assert [len(vector.inputs["x"]) for vector in vectors] == [1, 2, 3]
    for vector in vectors:
        assert vector.independent
        np.testing.assert_allclose(vector.outputs["y"], 3 * vector.inputs["x"].sum(1), rtol=1e-6)
    assert here.bring("sum", file)["version"] == 1
    assert "model" not in sys.modules
    assert psutil.Process().children() == before


def test_an_exported_package_of_code_moves_and_is_checked_again(
    allowed: None, here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(here, model__py=SUM, model__json=json.dumps(DECLARATION), factor="3")
    here.bring("sum", file)
    exported = here.export(here.resolve("sum"))
    assert here.bring("again", exported)["digest"] == here.resolve("sum").digest
    monkeypatch.delenv("TAPSTER_PYTHON_MODELS")
    with pytest.raises(TapsterError) as caught:
        here.bring("third", exported)
    assert caught.value.code == "forbidden"


def test_code_is_brought_by_the_installations_tenant_only(
    allowed: None, here: Installation
) -> None:
    mark = here.home / "ran"
    source = f"open({str(mark)!r}, 'w').close()\n" + SUM
    file = packed(here, model__py=source, model__json=json.dumps(DECLARATION), factor="3")
    with pytest.raises(TapsterError) as caught:
        here.bring("sum", file, tenant="acme")
    assert (caught.value.code, mark.exists()) == ("forbidden", False)
    here.bring("sum", file)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(TapsterError) as caught:  # signed by this installation itself
        here.bring("sum", here.export(here.resolve("sum")), tenant="acme")
    assert (caught.value.code, mark.exists()) == ("forbidden", False)


def test_examples_are_what_the_model_is_held_to(allowed: None, here: Installation) -> None:
    picky = (
        "class Model:\n"
        "    def load(self, folder): pass\n"
        "    def predict(self, inputs):\n"
        "        known = {'red': 1.0, 'blue': 2.0}\n"
        "        rows = inputs['x'].tolist()\n"
        "        if not all(word in known for row in rows for word in row):\n"
        "            raise ValueError('an unknown colour')\n"
        "        return {'y': [sum(known[word] for word in row) for row in rows]}\n"
    )
    spec = {"name": "x", "datatype": "BYTES", "shape": [-1, 2]}
    said: dict[str, Any] = {**DECLARATION, "inputs": [spec]}
    without = packed(here, model__py=picky, model__json=json.dumps(said))
    error = refused(here, without)
    assert "runs on no input drawn from its signature" in error.message
    assert "an unknown colour" in error.message
    assert "examples" in error.hint
    wrong: list[dict[str, Any]] = [{"z": []}, {"x": [["red"], 1]}, {"x": []}, {"x": ["red"]}]
    for examples in wrong:
        said["examples"] = examples
        error = refused(here, packed(here, model__py=picky, model__json=json.dumps(said)))
        assert (error.code, error.field) == ("unprocessable", "examples")
    said["examples"] = {"x": [["red", "blue"], ["red", "red"]]}
    here.bring("m", packed(here, model__py=picky, model__json=json.dumps(said)))
    vectors = parity.load(stored(here, here.resolve("m")).files[PARITY])
    answers = [vector.outputs["y"].tolist() for vector in vectors]
    assert answers == [[3.0], [3.0, 2.0], [3.0, 2.0, 3.0]]


def test_a_skops_file_needs_no_declaration(here: Installation) -> None:
    from sklearn.linear_model import LogisticRegression
    from skops.io import dumps

    x: Any = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    data = dumps(LogisticRegression().fit(x, np.where(x[:, 0] > 0, "yes", "no")))
    file = here.fresh().with_suffix(".skops")
    file.write_bytes(data)
    here.bring("m", file)
    found = here.resolve("m")
    assert (found.runtime, found.task) == ("skops", "binary")
    assert found.signature["classes"] == ["no", "yes"]
    assert [spec["name"] for spec in found.signature["outputs"]] == ["prediction", "probabilities"]
    opened = stored(here, found)
    assert opened.files[opened.manifest.model_file] == data


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"readme": "hello"}, "holds no model that is known here"),
        ({"model__json": json.dumps(DECLARATION)}, "holds no model"),
        ({"a__skops": b"", "b__pt2": b""}, "may hold model.json only, not 'b.pt2'"),
        ({"a__skops": b"", "weights": b""}, "may hold model.json only, not 'weights'"),
        ({"a__skops": b"", "parity__msgpack": b""}, "parity.msgpack is written by the import"),
        ({"a__skops": b"", "model__json": "{"}, "model.json cannot be read"),
        ({"a__bin": b"", "model__json": '{"runtime": "moon"}'}, "runtime 'moon'"),
        ({"a__bin": b"", "model__json": '{"runtime": "onnx"}'}, "no model_file"),
    ],
)
def test_folders_that_are_no_model_are_refused(
    here: Installation, files: dict[str, Any], words: str
) -> None:
    error = refused(here, packed(here, **files))
    assert error.code == "unprocessable"
    assert words in error.message


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("os.abort()", "signal 6"),
        ("raise RuntimeError('no weights')", "no weights"),
        ("time.sleep(1000)", "within 1 s"),
    ],
)
def test_a_model_that_does_not_load_is_not_imported(
    monkeypatch: pytest.MonkeyPatch, here: Installation, load: str, words: str
) -> None:
    monkeypatch.setenv("TAPSTER_MODEL_START_TIMEOUT", "1" if "sleep" in load else "60")
    folder = wild(here.fresh(), load)
    files = {path.name.replace(".", "__"): path.read_bytes() for path in folder.iterdir()}
    error = refused(here, packed(here, **files))
    assert error.code == "unprocessable"
    assert words in error.message


def test_a_model_that_answers_at_random_is_not_imported(allowed: None, here: Installation) -> None:
    source = SUM.replace("self.factor}", "__import__('random').random()}")
    file = packed(here, model__py=source, model__json=json.dumps(DECLARATION), factor="3")
    assert "another answer to the same input" in refused(here, file).message


def test_a_version_whose_runtime_is_not_here_is_not_deployed(here: Installation) -> None:
    made = here.add("m")
    check_servable(made)
    with pytest.raises(TapsterError, match="there is no runtime 'moon' here") as caught:
        check_servable(replace(made, runtime="moon"))
    assert caught.value.code == "unprocessable"
