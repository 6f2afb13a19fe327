"""Isolated models of a test's own, closed and gone when it ends."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
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


def processes() -> set[int]:
    """Ids of the processes of this test's models, and of those that they have started."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR", "").startswith(tempfile.gettempdir()):
                found.add(process.pid)
    return found


def left_behind() -> dict[str, int]:
    """What processes of models may leave: descriptors, zombies, processes, folders, memory."""
    folders = Path(tempfile.gettempdir()).glob("tapster-model-*")
    zombies = [c for c in psutil.Process().children() if c.status() == psutil.STATUS_ZOMBIE]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "zombies": len(zombies),
        "processes": len(processes()),
        "folders": len(list(folders)),
        "segments": Path("/proc/self/maps").read_text().count("memfd:tapster"),
    }
