"""Workers killed while they answer, one at a time; and a worker that dies as often as it starts."""

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import psutil

import tapster
from tapster.serving import slots
from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.load import Case, Load, cases
from tests.faults.scenarios.rpc_load import RpcLoad

# A worker that dies within its first five seconds is taken for one that cannot live, and waits.
BETWEEN: Final = 2.7
LIMIT: Final = 30.0
ENDPOINT: Final = "total"
_KNOWN: Final = re.compile(r"agent\.lock|plan\.json|slots|\w+-\d+\.json")


@dataclass
class Kills:
    """What was seen: `recovered` in seconds, a kill each; `strangers` broke without a reason."""

    kills: int = 0
    answered: int = 0
    broken: int = 0
    rpc_answered: int = 0
    rpc_failed: list[str] = field(default_factory=list)
    strangers: int = 0
    refused: int = 0
    counted: int = 0
    statuses: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def deploy(server: Server, name: str, model: Any) -> None:
    """Import a graph into an installation and send traffic to it."""
    path = models.write(model, server.home / f"{name}.onnx")
    with tapster.connect(server.url, key=server.key) as client:
        version = client.models_import(name, path)
        client.deploy(f"{name}@{version.version}")


def port_of(server: Server) -> int:
    """The inference port."""
    return urlsplit(server.rest_url).port or 0


def requests_to(server: Server, name: str) -> list[Case]:
    """Requests to an endpoint, with the installation's key."""
    return cases(name, key=server.key)


def until(check: Callable[[], Any], what: str, limit: float = LIMIT) -> float:
    """Wait for `check` to be true; seconds that it took."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < limit, f"waited in vain: {what}"
        time.sleep(0.005)
    return time.monotonic() - began


class Fleet:
    """The workers of an installation, as the shared counters show them."""

    def __init__(self, server: Server, workers: int) -> None:
        self.server, self.workers = server, workers
        self._slots = slots.Slots(server.home / "run" / "slots")

    def pids(self) -> list[int]:
        """The process of each worker that is ready, 0 for one that is not."""
        found = []
        for index in range(self.workers):
            pid = self._slots.state(index, slots.PID)
            ready = self._slots.state(index, slots.READY) and psutil.pid_exists(pid)
            found.append(pid if ready else 0)
        return found

    def full(self, without: int = -1) -> bool:
        """Whether every worker is ready, and none is process `without`."""
        pids = self.pids()
        return 0 not in pids and without not in pids

    def in_flight(self) -> int:
        """Requests that wait for their answer, as of the last quarter of a second."""
        return sum(self._slots.state(index, slots.IN_FLIGHT) for index in range(self.workers))

    def plans(self) -> list[int]:
        """The number of the plan that each worker has in force."""
        return [self._slots.state(index, slots.PLAN) for index in range(self.workers)]

    def close(self) -> None:
        """Let go of the counters."""
        self._slots.close()


def kill_one(victim: int) -> set[int]:
    """SIGKILL a process; the peers' ports of the connections that it held."""
    process = psutil.Process(victim)
    process.send_signal(signal.SIGSTOP)  # so that it accepts no more while we look
    held = {c.raddr.port for c in process.net_connections("tcp") if c.raddr}
    process.send_signal(signal.SIGKILL)
    return held


def kill_workers(server: Server, kills: int, *, between: float = BETWEEN) -> Kills:
    """Kill the two workers in turn, so often, under 300 requests a second and gRPC callers."""
    deploy(server, ENDPOINT, models.busy(200))
    fleet = Fleet(server, 2)
    until(fleet.full, "two workers")
    seen = Kills(kills, before=belongings(server))
    calls = requests_to(server, ENDPOINT)
    load = Load(port_of(server), calls, rate=300, connections=64, reuse=200)
    doomed: set[int] = set()
    rpc = RpcLoad(server.grpc_url, ENDPOINT, server.key)
    with load, rpc:
        load.more(400)
        for number in range(kills):
            began = time.monotonic()
            victim = fleet.pids()[number % 2]
            doomed |= kill_one(victim)
            until(lambda gone=victim: fleet.full(gone), "two workers again")  # type: ignore[misc]
            seen.recovered.append(time.monotonic() - began)
            load.more(100)
            time.sleep(max(0.0, began + between - time.monotonic()))
    seen.answered, seen.refused = len(load.answers), load.refused
    seen.wrong = load.wrong + rpc.wrong
    seen.rpc_answered, seen.rpc_failed = rpc.answered, rpc.failed
    seen.statuses = {answer.status for answer in load.answers}
    seen.broken = len(load.broken)
    seen.strangers = sum(broken.port not in doomed for broken in load.broken)
    seen.counted = counted(server, ENDPOINT)
    with suppress(AssertionError):  # the difference says more
        until(lambda: belongings(server) == seen.before, "nothing to be left behind", 10)
    seen.after = belongings(server)
    fleet.close()
    return seen


def belongings(server: Server) -> dict[str, Any]:
    """What an installation holds that a death could leave behind."""
    assert server.process is not None
    names = [path.name for path in (server.home / "run").iterdir()]
    # Of what has a name of its own there, only ours; the rest is of whoever else tests here.
    ours = hashlib.sha256(os.fsencode(server.home)).hexdigest()[:16]
    others = ("PostgreSQL.", "tapster-", "tmp")
    shared = [
        name
        for name in os.listdir("/dev/shm")
        if name.endswith(ours) or not name.startswith(others)
    ]
    return {
        "children": len(server.children()),
        "supervisor's files": psutil.Process(server.process.pid).num_fds(),
        "shared memory": sorted(shared),
        "left in run": sorted(name for name in names if not _KNOWN.fullmatch(name)),
    }


def counted(server: Server, endpoint: str) -> int:
    """Good answers of an endpoint, as `/metrics` counts them."""
    return sum(samples(server, "tapster_requests_total", f'endpoint="{endpoint}"', 'code="2xx"'))


def samples(server: Server, name: str, *labels: str) -> list[int]:
    """The values of the samples of one metric that have these labels."""
    text = httpx.get(
        f"{server.rest_url}/metrics",
        headers={"authorization": f"Bearer {server.key}"},
        timeout=LIMIT,
    ).text
    return [
        int(float(line.rpartition(" ")[2]))
        for line in text.splitlines()
        if line.startswith(f"{name}{{") and all(label in line for label in labels)
    ]


def crash_loop(server: Server, seconds: float) -> tuple[int, Load]:
    """Kill worker 0 as soon as it is there, for some time; how often it was started anew."""
    deploy(server, ENDPOINT, models.total(0.0))
    fleet = Fleet(server, 2)
    until(fleet.full, "two workers")
    starts, end = 0, time.monotonic() + seconds
    calls = requests_to(server, ENDPOINT)
    with Load(port_of(server), calls, rate=100, connections=16, reuse=20) as load:
        while time.monotonic() < end:
            for child in server.children("--index 0"):
                child.kill()
                child.wait(LIMIT)
                starts += 1
            time.sleep(0.01)
        until(fleet.full, "two workers again")
        load.more(100)
    fleet.close()
    return starts, load
