"""Stops that were asked for, under load: of a worker, and of everything."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import httpx
import psutil

from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import Fleet, deploy, port_of, requests_to, until
from tests.faults.scenarios.load import Load
from tests.faults.scenarios.rpc_load import RpcLoad

ENDPOINT: Final = "busy"
RATE: Final = 200.0
BETWEEN: Final = 2.7


@dataclass
class Stops:
    """What was seen: `took` are the seconds that each stop needed."""

    answered: int = 0
    statuses: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    refused: int = 0
    took: list[float] = field(default_factory=list)
    unanswered: int = 0
    orphans: list[int] = field(default_factory=list)
    code: int = 0


def stop_workers(server: Server, stops: int) -> Stops:
    """SIGTERM to the two workers in turn, each replaced by the supervisor, while callers of both
    ports call."""
    deploy(server, ENDPOINT, models.busy(400))
    fleet, seen = Fleet(server, 2), Stops()
    until(fleet.full, "two workers")
    calls = requests_to(server, ENDPOINT)
    load = Load(port_of(server), calls, rate=RATE, connections=64, reuse=100)
    rpc = RpcLoad(server.grpc_url, ENDPOINT, server.key)
    with load, rpc:
        load.more(100)
        for number in range(stops):
            began = time.monotonic()
            worker = psutil.Process(fleet.pids()[number % 2])
            worker.terminate()
            seen.took.append(until(lambda gone=worker: not gone.is_running(), "its end"))  # type: ignore[misc]
            until(lambda gone=worker.pid: fleet.full(gone), "two workers again")  # type: ignore[misc]
            time.sleep(max(0.0, began + BETWEEN - time.monotonic()))
    fleet.close()
    told = _told(seen, load)
    told.answered += rpc.answered
    told.failures += [*rpc.wrong, *rpc.failed]
    return told


def stop_everything(server: Server) -> Stops:
    """SIGTERM to the supervisor under load; callers go on calling until it is gone."""
    assert server.process is not None
    deploy(server, ENDPOINT, models.busy(400))
    family = _family(server)
    calls = requests_to(server, ENDPOINT)
    with Load(port_of(server), calls, rate=RATE, connections=64, reuse=100) as load:
        load.more(200)
        began = time.monotonic()
        seen = _stop(server, family)
    told = _told(seen, load)
    told.failures = load.wrong + [str(each) for each in load.broken if each.due < began]
    return told


def stop_in_the_middle(server: Server, *, again: float | None = None) -> Stops:
    """SIGTERM while a request runs that takes long; `again`: once more after so many seconds."""
    deploy(server, ENDPOINT, models.busy(400))
    family = _family(server)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(_call_for_long, server, 10_000)
        fleet = Fleet(server, 2)
        until(lambda: fleet.in_flight() >= 1, "the call to run")
        seen = _stop(server, family, again)
        seen.unanswered = int(call.result() == 0)
    fleet.close()
    return seen


def _stop(server: Server, family: list[int], again: float | None = None) -> Stops:
    assert server.process is not None
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    if again is not None:
        time.sleep(again)
        server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    took = time.monotonic() - began
    return Stops(code=code, took=[took], orphans=[pid for pid in family if psutil.pid_exists(pid)])


def _family(server: Server) -> list[int]:
    assert server.process is not None
    return [server.process.pid, *(child.pid for child in server.children())]


def _call_for_long(server: Server, rows: int) -> int:
    """A request of so many rows; its status, 0 when the connection ended instead."""
    data = [1.0] * (3 * rows)
    tensor = {"name": "numeric", "shape": [rows, 3], "datatype": "FP32", "data": data}
    try:
        return httpx.post(
            f"{server.rest_url}/v2/models/{ENDPOINT}/infer",
            headers={"authorization": f"Bearer {server.key}"},
            json={"inputs": [tensor]},
            timeout=60,
        ).status_code
    except httpx.HTTPError:
        return 0


def _told(seen: Stops, load: Load) -> Stops:
    seen.answered, seen.refused = len(load.answers), load.refused
    seen.statuses = {answer.status for answer in load.answers}
    seen.failures = [*load.wrong, *map(str, load.broken)]
    return seen
