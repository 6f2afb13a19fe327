"""`kill -9` at random moments across import, training, registration and deployment."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tapster
from tapster.client import Client
from tapster.contract.control import FINISHED
from tapster.contract.errors import TapsterError
from tapster.core.blobs import LocalBlobs
from tapster.core.settings import load
from tapster.runtimes.package import open_package
from tests.conftest import Server

KILLS = max(10, round(50 * float(os.environ.get("TAPSTER_SOAK", "1"))))
COLUMNS = ("width", "height", "kind")


def _table(path: Path, number: int) -> Path:
    """A small table whose target follows from its columns; another one for each number."""
    draw = random.Random(number)
    lines = [",".join((*COLUMNS, "label"))]
    for _ in range(80):
        width, height = draw.uniform(0, 10), draw.uniform(0, 10)
        kind = draw.choice(["round", "square"])
        label = "big" if width + height + 3 * (kind == "square") > 11 else "small"
        lines.append(f"{width:.3f},{height:.3f},{kind},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class Worker(threading.Thread):
    """Someone who works on while the server is being killed, and remembers what it was promised."""

    connect: Callable[[], Client]
    folder: Path
    stopping: threading.Event = field(default_factory=threading.Event)
    datasets: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        for number in itertools.count():
            if self.stopping.is_set() and self.rounds:
                return
            with suppress(TapsterError, OSError, TimeoutError):
                self._round(number)
                self.rounds += 1

    def _round(self, number: int) -> None:
        table = _table(self.folder / f"table{number}.csv", number)
        with self.connect() as client:
            version = client.data_add("shapes", table)
            self.datasets[f"shapes@{version.version}"] = version.digest
            job = client.train(
                f"shapes@{version.version}", "label", "sizes", algorithm="logistic", cv=2, trials=1
            )
            model = client.model_of(client.wait(job))
            self.models[f"sizes@{model.version}"] = model.digest
            client.deploy(f"sizes@{model.version}", "sizes")


def _victims(server: Server) -> list[tuple[str, int]]:
    assert server.process is not None
    found = [("tree", server.process.pid)]
    for name, part in (
        ("control", "tapster.app"),
        ("worker", "serving.worker"),
        ("job", "jobs.child"),
    ):
        found += [(name, process.pid) for process in server.children(part)]
    return found


def _settled(client: Client, seconds: float = 60) -> None:
    """Wait until no job is queued or running: none may hang."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(TapsterError):
            if all(job.status in FINISHED for job in client.jobs(limit=1000)):
                return
        time.sleep(0.1)
    raise AssertionError([job for job in client.jobs() if job.status not in FINISHED])


def _check(server: Server, worker: Worker, client: Client) -> None:
    """No half versions, no lost finished work, no duplicates, no jobs without an end."""
    _settled(client)
    blobs = LocalBlobs(load({}, home=server.home).home / "blobs")
    datasets, models = client.data_versions("shapes"), client.models_versions("sizes")
    assert len({d.digest for d in datasets}) == len(datasets)
    assert len({m.digest for m in models}) == len(models)
    for dataset in datasets:
        folder = blobs.get(f"default/datasets/{dataset.digest}")
        assert {path.name for path in folder.iterdir()} >= {"data.parquet", "profile.json"}
    for model in models:
        open_package(blobs.get(f"default/packages/{model.digest}"), model.digest)
    known = {f"shapes@{d.version}": d.digest for d in datasets}
    known |= {f"sizes@{m.version}": m.digest for m in models}
    for reference, digest in (*worker.datasets.items(), *worker.models.items()):
        assert known[reference] == digest, f"{reference} was promised and is lost"
    jobs = client.jobs(limit=1000)
    for job in jobs:
        assert job.status == "succeeded" or (job.error and job.error["message"]), job
    trained = [job.result for job in jobs if job.kind == "train" and job.status == "succeeded"]
    assert len(trained) == len(models), "a training registered nothing, or twice"


@pytest.mark.soak
def test_nothing_is_lost_halved_or_doubled(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    draw = random.Random(20261121)
    server = new_server(workers=1)

    def connect() -> Client:
        return tapster.connect(server.url, key=server.key)

    worker = Worker(connect, tmp_path)
    worker.start()
    killed: dict[str, int] = {}
    for _ in range(KILLS):
        time.sleep(draw.uniform(0.2, 6.0))
        name, pid = draw.choice(_victims(server))
        killed[name] = killed.get(name, 0) + 1
        if name == "tree":
            server.kill()
            server.start()
        else:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    worker.stopping.set()
    worker.join(120)
    assert not worker.is_alive()
    assert worker.rounds > 0
    assert sum(killed.values()) == KILLS
    with connect() as client:
        _check(server, worker, client)
        server.kill()
        server.start()
    with connect() as client:
        _check(server, worker, client)
        endpoint = client.endpoint("sizes", wait=30)
        assert endpoint.status == "live"
        row = {"width": 9.0, "height": 9.0, "kind": "square"}
        assert client.predict("sizes", [row])[0]["prediction"] == "big"
