"""Isolated models of a test's own, closed and gone when it ends."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tapster.runtimes.isolated import MIB, Limits
from tapster.runtimes.isolated.model import Isolated

Start = Callable[..., Isolated]


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models of Python code may run, in a temporary folder of the test's own."""
    monkeypatch.setenv("TAPSTER_PYTHON_MODELS", "true")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start models from folders: `start(folder, memory=..., instances=...)`."""
    made: list[Isolated] = []

    def begin(folder: Path, **limits: float) -> Isolated:
        given = {"memory": 400 * MIB, "start": 60.0, **limits}
        made.append(Isolated.of_draft(folder, "python", "model.py", Limits(**given)))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for model in made:
        model.close()
    for model in made:
        model.join()


def left_behind() -> dict[str, int]:
    """What processes of models may leave: descriptors, children (zombies too), folders."""
    folders = Path(tempfile.gettempdir()).glob("tapster-model-*")
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(psutil.Process().children(recursive=True)),
        "folders": len(list(folders)),
        "segments": Path("/proc/self/maps").read_text().count("memfd:tapster"),
    }
