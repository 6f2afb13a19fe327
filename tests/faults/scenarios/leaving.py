"""Clients that leave: in the queue, in the middle of a run, in the middle of sending."""

import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import numpy as np
import psutil

from tapster.contract.plan import Options
from tapster.serving import slots
from tests.faults.scenarios import models
from tests.serving.conftest import KEY, Plane, endpoint, request, wait_for
from tests.serving.rpc import calling

ENDPOINT: Final = "busy"
INFER: Final = f"/v2/models/{ENDPOINT}/infer"
LAYERS: Final = 800
# A slow machine would refuse those who wait: it would be too late for them.
PATIENT: Final = Options(deadline=600.0)
# Rows that keep the model for ten seconds, and clients that wait behind them.
LONG: Final = 2000
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
    plane.plan(endpoint(ENDPOINT, package, options=PATIENT), packages=(package,))
    process = psutil.Process(plane.start().pid)
    plane.applied()
    return process


class Callers(Protocol):
    """Clients that are about to leave."""

    def send(self, rows: int) -> None:
        """Send one more request of so many rows, and do not wait for its answer."""
        ...

    def leave(self) -> None:
        """Hang up, all of them."""
        ...


class Sockets:
    """REST, a connection each: closed, or reset as by a process that dies."""

    def __init__(self, plane: Plane, *, reset: bool) -> None:
        self._plane, self._reset = plane, reset
        self._lines: list[socket.socket] = []

    def send(self, rows: int) -> None:
        """See Callers."""
        line = self._plane.connect()
        line.sendall(request(INFER, body(rows)))
        self._lines.append(line)

    def leave(self) -> None:
        """See Callers."""
        for line in reversed(self._lines):  # who waits before who is run
            if self._reset:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()


class Streams:
    """gRPC, streams of one connection: cancelled, or gone with it."""

    def __init__(self, plane: Plane, *, cancel: bool) -> None:
        self._cancel = cancel
        self._channel = grpc.insecure_channel(f"127.0.0.1:{plane.grpc_port}")
        self._call = self._channel.unary_unary(f"/{calling.INFER}")
        self._calls: list[Any] = []

    def send(self, rows: int) -> None:
        """See Callers."""
        values = calling.tensor("numeric", np.ones((rows, 3)))
        data = calling.infer_request(ENDPOINT, values).SerializeToString()
        self._calls.append(self._call.future(data, metadata=calling.metadata(KEY)))

    def leave(self) -> None:
        """See Callers."""
        if self._cancel:
            for each in reversed(self._calls):
                each.cancel()
        self._channel.close()


WAYS: Final[dict[str, Callable[[Plane], Callers]]] = {
    "connections reset": lambda plane: Sockets(plane, reset=True),
    "connections closed": lambda plane: Sockets(plane, reset=False),
    "gRPC calls cancelled": lambda plane: Streams(plane, cancel=True),
    "gRPC connection closed": lambda plane: Streams(plane, cancel=False),
}


def leave(plane: Plane, way: str) -> Left:
    """Clients hang up, one whose request runs for seconds and many that wait behind it."""
    counters, callers = slots.Slots(plane.slots), WAYS[way](plane)
    callers.send(LONG)
    wait_for(lambda: counters.state(0, slots.IN_FLIGHT) == 1, "the first request to run")
    for _ in range(QUEUED):
        callers.send(1)
    wait_for(lambda: counters.state(0, slots.IN_FLIGHT) == QUEUED + 1, "the queue")
    before = rows_run(counters)
    began = time.monotonic()
    callers.leave()
    freed: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(plane.call, "POST", INFER, body(1))
        late.add_done_callback(lambda _: freed.append(time.monotonic() - began))
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
    assert plane.call("POST", INFER, body(1)).status == 200
    wait_for(lambda: connections(process) == 0, "idle connections to be closed")
    before = process.num_fds()
    whole = request(INFER, body(50), key=KEY)
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
