"""Models that hang, spin, crash or eat memory, beside others that must not feel it."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

import tapster
from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import deploy, port_of, requests_to, until
from tests.faults.scenarios.load import Load

ONNX: Final = "total"
PYTHON: Final = "good"
LONG: Final = "long"
STUCK: Final = "stuck"
RATES: Final = {ONNX: 100.0, PYTHON: 20.0}
DEADLINE: Final = 1.0
# A process that has lived for so many seconds is replaced at once when it ends.
HEALTHY: Final = 10.5

# A row that begins with one of these numbers makes the model do it; others are added up.
DEEDS: Final = {
    "sleeps": 1_000_001.0,
    "spins in C": 1_000_002.0,
    "eats memory": 1_000_003.0,
    "crashes": 1_000_004.0,
}
ENDLESS: Final = frozenset({"sleeps", "spins in C"})
_SOURCE: Final = """
import os
import time


class Model:
    def load(self, folder):
        self.kept = []

    def predict(self, inputs):
        rows = inputs["numeric"]
        deed = int(rows[0, 0]) - 1_000_000
        if deed == 1:
            time.sleep(1e9)
        elif deed == 2:
            sum(range(10**18))  # in C, without ever giving the interpreter's lock away
        elif deed == 3:
            while True:
                self.kept.append(bytearray(os.urandom(1 << 20)) * 16)
        elif deed == 4:
            os.abort()
        return {"prediction": rows.sum(axis=1)}
"""


@dataclass
class Misdeeds:
    """What was seen of a deed: `late` is the time of the answer, less the deadline where one
    was meant to strike, `replaced` until the model answered again; neighbours by name.
    """

    deed: str
    statuses: set[int] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)
    took: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)
    before: dict[str, list[float]] = field(default_factory=dict)
    during: dict[str, list[float]] = field(default_factory=dict)
    neighbours: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    answered: int = 0
    same_worker: bool = True


def prepare(server: Server) -> None:
    """Deploy two good neighbours, one in the worker's process and one isolated, and the bad."""
    deploy(server, ONNX, models.total(0.0))
    deploy(server, LONG, models.busy(800))
    deploy(server, STUCK, models.one_long_operator())
    with tapster.connect(server.url, key=server.key) as client:
        for name in (PYTHON, *map(name_of, DEEDS)):
            version = client.models_import(name, _folder(server.home / "made" / name))
            client.deploy(f"{name}@{version.version}")


def misbehave(
    server: Server, deed: str, rounds: int, deadline: float = DEADLINE, calm: float = 2.0
) -> Misdeeds:
    """Have a bad model do it so many times while its neighbours are called.

    They are looked at for `calm` seconds before, and from each deed until it is made good.
    `deadline` is for deeds that only it ends.
    """
    seen, worker, bad = Misdeeds(deed), _worker(server), name_of(deed)
    port = port_of(server)
    loads = {
        name: Load(port, requests_to(server, name), rate=rate, connections=50)
        for name, rate in RATES.items()
    }
    with loads[ONNX], loads[PYTHON]:
        loads[PYTHON].more(20)
        settled = time.monotonic()
        time.sleep(calm)
        begun = time.monotonic()
        seen.before = {name: _times(load, settled, begun) for name, load in loads.items()}
        seen.during = {name: [] for name in loads}
        for number in range(rounds):
            time.sleep(HEALTHY if number else 0.0)
            begun = time.monotonic()
            limit = deadline if deed in ENDLESS else 30.0
            status, message, took = ask(server, bad, [DEEDS[deed], 1.0, 1.0], deadline=limit)
            seen.statuses.add(status)
            seen.messages.add(message)
            seen.took.append(took)
            seen.replaced.append(until(lambda: ask(server, bad, [1.0] * 3)[0] == 200, bad))
            for name, load in loads.items():
                seen.during[name] += _times(load, begun, time.monotonic())
    for load in loads.values():
        seen.neighbours |= {answer.status for answer in load.answers}
        seen.failures += [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
        seen.answered += len(load.answers)
    seen.same_worker = _worker(server) == worker
    return seen


def name_of(deed: str) -> str:
    """The endpoint whose model is to do a deed."""
    return deed.replace(" ", "-")


def ask(
    server: Server, name: str, row: list[float], rows: int = 1, deadline: float = DEADLINE
) -> tuple[int, str, float]:
    """One request: its status, what an error said, and how long it took."""
    tensor = {"name": "numeric", "shape": [rows, 3], "datatype": "FP32", "data": row * rows}
    body = json.dumps({"inputs": [tensor]})
    headers = {"authorization": f"Bearer {server.key}", "x-request-timeout": str(deadline)}
    began = time.monotonic()
    answer = httpx.post(
        f"{server.rest_url}/v2/models/{name}/infer", headers=headers, content=body, timeout=60
    )
    took = time.monotonic() - began
    found: dict[str, Any] = {}
    with suppress(ValueError):
        found = answer.json()
    return answer.status_code, str(found.get("error", "")), took


def run_for_long(server: Server, rounds: int) -> Misdeeds:
    """A vetted graph, in the worker's own process, is given far more than it can do in time."""
    return _run_for_long(server, LONG, 4000, rounds)


def run_one_operator_for_long(server: Server) -> Misdeeds:
    """The same, in one operator, which nothing can end but the end of the worker."""
    worker = _worker(server)
    seen = _run_for_long(server, STUCK, 4000, 1)
    seen.same_worker = _worker(server) == worker
    return seen


def _run_for_long(server: Server, name: str, rows: int, rounds: int) -> Misdeeds:
    seen = Misdeeds(name)
    with Load(port_of(server), requests_to(server, ONNX), rate=RATES[ONNX]) as load:
        load.more(200)
        begun = time.monotonic()
        seen.before = {ONNX: _times(load, 0.0, begun)}
        for _ in range(rounds):
            status, message, took = ask(server, name, [1.0, 1.0, 1.0], rows)
            seen.statuses.add(status)
            seen.messages.add(message)
            seen.took.append(took)
            seen.replaced.append(until(lambda: ask(server, name, [1.0] * 3)[0] == 200, name))
        seen.during = {ONNX: _times(load, begun, time.monotonic())}
    seen.neighbours = {answer.status for answer in load.answers}
    seen.failures = [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
    seen.answered = len(load.answers)
    return seen


def _times(load: Load, begin: float, end: float) -> list[float]:
    return [answer.took for answer in load.good(begin, end)]


def _worker(server: Server) -> int:
    found: int
    (found,) = [child.pid for child in server.children("serving.worker")]
    return found


def isolated(server: Server) -> list[psutil.Process]:
    """The processes that models have of their own."""
    return server.children("runtimes.isolated")


def _folder(folder: Path) -> Path:
    """A model's folder as its author would write it."""
    folder.mkdir(parents=True)
    declaration = {
        "inputs": [{"name": "numeric", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [-1]}],
        "examples": {"numeric": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]},
    }
    (folder / "model.json").write_text(json.dumps(declaration))
    (folder / "model.py").write_text(f"# {folder.name}\n{_SOURCE}")
    return folder
