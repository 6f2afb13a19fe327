"""Clients that leave: in the queue, in the middle of a run, in the middle of sending."""

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import psutil

from tapster.serving import slots
from tests.faults.scenarios import models
from tests.faults.scenarios.load import cases
from tests.serving.conftest import KEY, Plane, endpoint, request, wait_for

ENDPOINT: Final = "busy"
LAYERS: Final = 800
# Rows that keep the model for some seconds, and clients that wait behind them.
LONG: Final = 600
QUEUED: Final = 40


@dataclass
class Left:
    """`ran`: rows that the model has run after everybody had left, but for one late request;
    `emptied`: seconds until nothing was in flight; `freed`: until the late request was answered.
    """

    ran: int
    emptied: float
    freed: float
    status: int


@dataclass
class Resets:
    """Open files of the worker before, and what was left of the resets after five seconds."""

    sent: int
    before: int
    left: int
    settled: float


def serve(plane: Plane) -> psutil.Process:
    """A worker with a model that takes milliseconds a row."""
    package = models.seal(plane.home, models.busy(LAYERS))
    plane.plan(endpoint(ENDPOINT, package), packages=(package,))
    process = psutil.Process(plane.start().pid)
    plane.applied()
    return process


def leave(plane: Plane, *, reset: bool) -> Left:
    """One client whose request runs for seconds, and many behind it, hang up: by RST or FIN."""
    counters = slots.Slots(plane.slots)
    with ExitStack() as lines:
        running = lines.enter_context(plane.connect())
        running.sendall(request(f"/v2/models/{ENDPOINT}/infer", body(LONG)))
        wait_for(lambda: counters.state(0, slots.IN_FLIGHT) == 1, "the first request to run")
        waiting = [lines.enter_context(plane.connect()) for _ in range(QUEUED)]
        for line, case in zip(waiting, cases(ENDPOINT), strict=False):
            line.sendall(case.request)
        wait_for(lambda: counters.state(0, slots.IN_FLIGHT) == QUEUED + 1, "the queue")
        before = rows_run(counters)
        for line in (running, *waiting):
            if reset:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(plane.call, "POST", f"/v2/models/{ENDPOINT}/infer", body(1))
        late.add_done_callback(lambda _: freed.append(time.monotonic() - began))
        freed: list[float] = []
        wait_for(lambda: counters.state(0, slots.IN_FLIGHT) <= 1, "nobody to be left")
        emptied = time.monotonic() - began
        status = late.result().status
    wait_for(lambda: counters.state(0, slots.IN_FLIGHT) == 0, "nothing to be in flight")
    found = Left(rows_run(counters) - before - 1, emptied, freed[0], status)
    counters.close()
    return found


def rows_run(counters: slots.Slots) -> int:
    """Rows that went into batches, of all workers."""
    return sum(counters.words[at + slots.BATCH_SUM] for at in counters.regions().values())


def body(rows: int) -> bytes:
    """The body of a request of so many rows."""
    data = ",".join(["1"] * (3 * rows))
    tensor = f'{{"name":"numeric","shape":[{rows},3],"datatype":"FP32","data":[{data}]}}'
    return f'{{"inputs":[{tensor}]}}'.encode()


def reset_in_bodies(plane: Plane, process: psutil.Process, count: int) -> Resets:
    """Clients that send half a body and reset the connection."""
    assert plane.call("POST", f"/v2/models/{ENDPOINT}/infer", body(1)).status == 200
    wait_for(lambda: connections(process) == 0, "idle connections to be closed")
    before = process.num_fds()
    whole = request(f"/v2/models/{ENDPOINT}/infer", body(50), key=KEY)
    for number in range(count):
        line = plane.connect()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.sendall(whole[: len(whole) - 1 - number % 300])
        line.close()
    began = time.monotonic()
    wait_for(lambda: process.num_fds() <= before or time.monotonic() - began > 5, "files to close")
    return Resets(count, before, process.num_fds() - before, time.monotonic() - began)


def connections(process: psutil.Process) -> int:
    """Connections that a process holds."""
    return sum(c.status != psutil.CONN_LISTEN for c in process.net_connections("tcp"))
