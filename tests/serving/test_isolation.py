"""Models in processes of their own behind a real worker: whatever one does, the others answer."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tapster.contract.manifest import Signature, TensorSpec
from tapster.contract.plan import Options, PackageRef
from tapster.runtimes import parity
from tapster.runtimes.package import PARITY, seal, sign
from tests.runtimes.isolated.models import CODES, wild
from tests.serving import packages
from tests.serving.conftest import Answer, Plane, endpoint, wait_for

Planes = Callable[..., Plane]


def python_package(home: Path, load: str = "pass") -> PackageRef:
    """The sealed package of a Python model: `y` is twice `x`, or a deed."""
    folder = wild(home / "making", load)
    x = np.ones((2, 2), np.float32)
    (folder / PARITY).write_bytes(parity.record({"x": x}, {"y": 2 * x}))
    shape = (-1, -1)
    digest = seal(
        folder,
        name="wild",
        task="other",
        signature=Signature((TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", shape),)),
        tolerance=packages.EXACT,
        runtime="python",
        model_file="model.py",
    )
    sign(folder, packages.SIGNER)
    target = home / "blobs" / packages.TENANT / "packages" / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return PackageRef(digest=digest, key=f"{packages.TENANT}/packages/{digest}")


def serve(new_plane: Planes, load: str = "pass", **settings: Any) -> Plane:
    """A worker with a model of its own, `sum`, and one in a process of its own, `wild`."""
    plane = new_plane(python_models="true", model_memory=400 << 20, **settings)
    tame, made = packages.regressor(plane.home, 1.0), python_package(plane.home, load)
    plane.plan(endpoint("sum", tame), endpoint("wild", made), packages=(tame, made))
    plane.start()
    state = plane.applied()
    assert {each.state for each in state.packages} == {"ready"}, state
    return plane


def ask(plane: Plane, deed: str = "", **headers: str) -> Answer:
    row = [CODES[deed] if deed else 1.0, 1.0]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": row}
    return plane.call("POST", "/v2/models/wild/infer", {"inputs": [tensor]}, **headers)


def works(plane: Plane) -> bool:
    answer = ask(plane)
    assert answer.status in {200, 503}, answer
    return answer.status == 200 and answer.json()["outputs"][0]["data"] == [2.0, 2.0]


def children(plane: Plane, index: int = 0) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(plane.workers[index].pid).children(recursive=True)
    return found


def folders() -> list[Path]:
    return list(Path(os.environ["TMPDIR"]).glob("tapster-model-*"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder of the test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


class Neighbour:
    """Somebody who calls another model of the same worker, over and over."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._stop = threading.Event()
        self.answers: list[tuple[int, Any]] = []
        self._thread = threading.Thread(target=self._call)

    def _call(self) -> None:
        tensor = {"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        while not self._stop.is_set():
            answer = self._plane.call("POST", "/v2/models/sum/infer", {"inputs": [tensor]})
            said = answer.json()["outputs"][0]["data"] if answer.status == 200 else answer.body
            self.answers.append((answer.status, said))

    def answered(self, count: int) -> bool:
        return len(self.answers) >= count

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_whatever_a_model_does_its_neighbours_answer(new_plane: Planes) -> None:
    plane = serve(new_plane)
    pid = plane.workers[0].pid
    expected = {
        "segfault": (503, "signal 11"),
        "spin": (504, "in time"),
        "bomb": (503, "memory limit of 400 MiB"),
        "sleep": (504, "in time"),
        "print": (200, ""),
        "text": (500, "'y'"),
        "refuse": (400, "no such colour"),
    }
    # Each death here follows soon on another, so that the later ones are made good slowly.
    with Neighbour(plane) as neighbour:
        for deed, (status, words) in expected.items():
            past = len(neighbour.answers) + 5
            answer = ask(plane, deed, X_Request_Timeout="20" if status != 504 else "0.5")
            assert (answer.status, words in answer.body.decode()) == (status, True), answer
            assert str(plane.home) not in answer.body.decode()
            wait_for(lambda: works(plane), f"the model after {deed}")
            wait_for(partial(neighbour.answered, past), "the neighbour")
    assert set(map(str, neighbour.answers)) == {"(200, [7.0])"}
    assert (plane.workers[0].poll(), plane.workers[0].pid) == (None, pid)


def test_of_a_batch_only_the_culprit_fails(new_plane: Planes) -> None:
    plane = serve(new_plane)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(ask, plane, "nap")
        time.sleep(0.1)  # the others come while it runs, so that they run as one batch
        deeds = ["", "", "", "segfault", "", "", "", ""]
        answers = list(threads.map(lambda deed: ask(plane, deed), deeds))
        assert first.result().status == 200
    assert [answer.status for answer in answers] == [200, 200, 200, 503, 200, 200, 200, 200]


def test_an_endpoint_may_set_the_memory_of_its_model(new_plane: Planes) -> None:
    plane = new_plane(python_models="true")
    made = python_package(plane.home)
    plane.plan(endpoint("wild", made, options=Options(memory=300 << 20)), packages=(made,))
    plane.start()
    plane.applied()
    answer = ask(plane, "hoard")
    assert answer.status == 503
    assert "memory limit of 300 MiB" in answer.json()["error"]
    assert works(plane)


def test_code_is_refused_where_the_operator_has_not_allowed_it(new_plane: Planes) -> None:
    plane = new_plane()
    canary = plane.home / "canary"
    tame = packages.regressor(plane.home, 1.0)
    made = python_package(plane.home, f"open({str(canary)!r}, 'w')")
    plane.plan(endpoint("sum", tame), endpoint("wild", made), packages=(tame, made))
    plane.start()
    states = {each.digest: each for each in plane.applied().packages}
    assert states[tame.digest].state == "ready"
    assert states[made.digest].state == "failed"
    assert "TAPSTER_PYTHON_MODELS=true" in states[made.digest].error
    assert not canary.exists()


def test_nothing_of_the_model_comes_into_the_worker(new_plane: Planes) -> None:
    plane = serve(new_plane, "import sqlite3", model_instances=2)
    worker = psutil.Process(plane.workers[0].pid)
    inside = [child for child in children(plane) if "isolated.child" in " ".join(child.cmdline())]
    assert len(inside) == 2
    for process, expected in ((worker, False), (inside[0], True), (inside[1], True)):
        libraries = {Path(mapped.path).name for mapped in process.memory_maps()}
        assert any("sqlite3" in library for library in libraries) is expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_the_worker(new_plane: Planes, number: int) -> None:
    plane = serve(new_plane)
    inside = children(plane)
    assert inside
    plane.workers[0].send_signal(number)
    plane.workers[0].wait()
    _, alive = psutil.wait_procs(inside, 30)
    assert alive == []
    if number == signal.SIGTERM:
        assert folders() == []


def test_a_model_that_no_plan_names_is_gone(new_plane: Planes) -> None:
    plane = serve(new_plane)
    assert ask(plane).status == 200
    plane.plan()
    plane.applied()
    wait_for(lambda: not children(plane), "the end of the model's process")
    wait_for(lambda: not folders(), "the end of its folder")
    assert plane.workers[0].poll() is None
    assert os.listdir(f"/proc/{plane.workers[0].pid}/fd")
