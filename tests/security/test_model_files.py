"""Model files that run code where they are loaded: each is refused, a canary proves it unrun."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch

import tapster
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.registry.conftest import Installation

CANARY = "canary-was-here"


class Canary:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (CANARY,))


def packed(**files: bytes) -> bytes:
    """A tar of files, by names in which __ is a dot."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def zipped(**files: bytes) -> bytes:
    """A zip of files, likewise."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return made.getvalue()


def written(write: Callable[[Any], object]) -> bytes:
    made = io.BytesIO()
    write(made)
    return made.getvalue()


def old_torch(file: Any) -> None:
    torch.save(Canary(), file, _use_new_zipfile_serialization=False)


PICKLE = pickle.dumps(Canary())
SPEC = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
DECLARATION = json.dumps({"inputs": SPEC, "outputs": SPEC}).encode()
CODE = f"import os; os.mkdir({CANARY!r})\nclass Model: pass".encode()
LAMBDA = json.dumps({"class_name": "Lambda", "config": {"function": "gASV"}}).encode()
AUTO_MAP = json.dumps({"auto_map": {"AutoModel": "code.Model"}}).encode()
ONNX_RUNTIME = b'{"runtime": "onnx", "model_file": "model.onnx"}'

HOSTILE: dict[str, tuple[str, bytes]] = {
    **{f"pickle {n}": ("m.pkl", pickle.dumps(Canary(), n)) for n in range(6)},
    "pickle called ONNX": ("m.onnx", PICKLE),
    "old pickle called ONNX": ("m.onnx", pickle.dumps(Canary(), 0)),
    "pickle called skops": ("m.skops", PICKLE),
    "pickle called pt2": ("m.pt2", PICKLE),
    "pickle called package": ("m.tapster", PICKLE),
    "joblib": ("m.joblib", written(lambda f: joblib.dump(Canary(), f))),
    "compressed joblib": ("m.joblib", written(lambda f: joblib.dump(Canary(), f, compress=3))),
    "compressed joblib called ONNX": (
        "m.onnx",
        written(lambda f: joblib.dump(Canary(), f, compress=3)),
    ),
    "pickle without a name": ("m", PICKLE),
    "array of objects": (
        "m.npy",
        written(lambda f: np.save(f, np.array([Canary()], object), allow_pickle=True)),
    ),
    "arrays of objects": (
        "m.npz",
        written(lambda f: np.savez(f, a=np.array([Canary()], object))),
    ),
    "torch": ("m.pt", written(lambda f: torch.save(Canary(), f))),
    "torch called pt2": ("m.pt2", written(lambda f: torch.save(Canary(), f))),
    "torch called ONNX": ("m.onnx", written(lambda f: torch.save(Canary(), f))),
    "old torch": ("m.pth", written(old_torch)),
    "Keras": ("m.keras", zipped(config__json=LAMBDA, metadata__json=b"{}")),
    "Keras called skops": ("m.skops", zipped(config__json=LAMBDA)),
    "folder of a pickle": ("model.tar", packed(model__pkl=PICKLE)),
    "folder of a pickle and a declaration": (
        "model.tar",
        packed(model__pkl=PICKLE, model__json=DECLARATION),
    ),
    "folder of a pickle called ONNX": (
        "model.tar",
        packed(model__onnx=PICKLE, model__json=ONNX_RUNTIME),
    ),
    "folder with auto_map": ("model.tar", packed(config__json=AUTO_MAP, code__py=CODE)),
    "folder of code": ("model.tar", packed(model__py=CODE, model__json=DECLARATION)),
    "folder of code that names itself": (
        "model.tar",
        packed(
            code__py=CODE,
            model__json=b'{"runtime": "python", "model_file": "code.py"}',
        ),
    ),
    "folder of code beside a model": ("model.tar", packed(model__skops=b"", code__py=CODE)),
    "code": ("model.py", CODE),
    "compiled code": ("model.so", b"\x7fELF" + bytes(100)),
}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path / "here")
    yield made
    made.parts.db.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_model_file_runs_code_by_being_imported(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file, data = HOSTILE[name]
    (tmp_path / file).write_bytes(data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(TapsterError) as caught:
        here.bring("m", tmp_path / file)
    assert caught.value.code in {"unsupported", "unprocessable", "forbidden"}
    assert str(tmp_path) not in caught.value.message + caught.value.hint
    assert list(here.parts.blobs.keys()) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickle 4", "pickle called ONNX"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        pickle.loads(HOSTILE[name][1])
        assert [path.name for path in Path().iterdir()] == [CANARY]


@pytest.mark.parametrize("name", ["torch", "folder of code"])
def test_a_server_refuses_them_too(server: Server, tmp_path: Path, name: str) -> None:
    file, data = HOSTILE[name]
    (tmp_path / file).write_bytes(data)
    with tapster.connect(server.url, key=server.key) as client:
        with pytest.raises(TapsterError) as caught:
            client.models_import("hostile", tmp_path / file)
        assert caught.value.code in {"unsupported", "forbidden"}
        assert "hostile" not in {version.model for version in client.models_list()}
    assert list(server.home.rglob(CANARY)) == []
