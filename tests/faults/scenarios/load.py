"""Callers: on a schedule whether or not answers come (open loop), or each as fast as it is served.

A closed loop slows down with the server and so hides what happens to those who wait. An open loop
does not: a request's time counts from when it was due. Every answer is checked against what the
model must say to that very request.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

import uvloop

from tests.serving.conftest import KEY

LIMIT: Final = 60.0
TICK: Final = 0.001
INFER: Final = "/v2/models/{}/infer"


class Case(NamedTuple):
    """A request as bytes, and what its answer must begin with: the prediction."""

    request: bytes
    expected: float


class Answered(NamedTuple):
    """When a request was due (monotonic seconds), how long it took, and how it was answered."""

    due: float
    took: float
    status: int
    retry_after: bool


class Broken(NamedTuple):
    """A connection that ended under a request: its own port, and when the request was due."""

    port: int
    due: float


def cases(endpoint: str, *, key: str = KEY, width: int = 3, bias: float = 0.0) -> list[Case]:
    """Distinct requests to a model that answers the sum of a row and `bias`."""
    made = []
    for number in range(97):
        row = [number, *[1] * (width - 1)]
        body = json.dumps(
            {"inputs": [{"name": "numeric", "shape": [1, width], "datatype": "FP32", "data": row}]}
        )
        head = (
            f"POST {INFER.format(endpoint)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        made.append(Case((head + body).encode(), sum(row) + bias))
    return made


@dataclass
class Load:
    """Callers in a thread of their own, from `with` to its end.

    With a `rate` (requests a second, may be changed while it runs) the loop is open; without, each
    of `connections` callers sends as soon as it is answered. A connection is given up after
    `reuse` requests. `biases` is what each version of the model adds. Leaving waits for what is
    still unanswered.
    """

    port: int
    cases: Sequence[Case]
    rate: float = 0.0
    connections: int = 16
    reuse: int = 1 << 30
    biases: dict[str, float] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    answers: list[Answered] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    refused: int = 0
    unsent: int = 0
    busy: float = 0.0

    def __post_init__(self) -> None:
        self.idle: list[_Caller] = []
        self.open = 0
        self.waiting = 0
        self.stopping = False
        self._next = 0
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._thread.join(LIMIT + 10)
        assert not self._thread.is_alive()

    def more(self, count: int) -> None:
        """Wait for so many further answers."""
        goal, until = len(self.answers) + count, time.monotonic() + LIMIT
        while len(self.answers) < goal:
            assert time.monotonic() < until, (self.refused, self.wrong[:3])
            time.sleep(0.005)

    def good(self, begin: float = 0.0, end: float = float("inf")) -> list[Answered]:
        """The requests due in a span of time that were answered with 200."""
        return [a for a in self.answers if a.status == 200 and begin <= a.due < end]

    # -- in the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._drive())

    async def _drive(self) -> None:
        self._loop = asyncio.get_running_loop()
        began, cpu = time.monotonic(), time.thread_time()
        if self.rate:
            await self._pace()
        else:
            for _ in range(self.connections):
                self.begin(time.monotonic())
            while not self.stopping:
                await asyncio.sleep(0.01)
        self.busy = (time.thread_time() - cpu) / (time.monotonic() - began)
        until = time.monotonic() + LIMIT
        while self.waiting and time.monotonic() < until:
            await asyncio.sleep(0.005)
        for caller in list(self.idle):
            caller.close()
        await asyncio.sleep(0)

    async def _pace(self) -> None:
        due = time.monotonic()
        while not self.stopping:
            now = time.monotonic()
            while due <= now:
                self.begin(due)
                due += 1 / self.rate
            await asyncio.sleep(TICK)

    def begin(self, due: float) -> None:
        """Send the next request, on the connection that was used last or on a new one."""
        case = self.cases[self._next % len(self.cases)]
        self._next += 1
        if self.idle:
            self.waiting += 1
            self.idle.pop().send(case, due)
        elif self.open < self.connections:
            self.open += 1
            self.waiting += 1
            task = self._loop.create_task(self._connect(case, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.unsent += 1

    async def _connect(self, case: Case, due: float) -> None:
        try:
            made = await self._loop.create_connection(lambda: _Caller(self), "127.0.0.1", self.port)
        except OSError:
            self.refused += 1
            self.open -= 1
            await asyncio.sleep(0.01)
            self.ended(self.begin)
        else:
            made[1].send(case, due)

    def ended(self, again: Callable[[float], None]) -> None:
        """A request has its end; in a closed loop the next one begins."""
        self.waiting -= 1
        if not self.rate and not self.stopping:
            again(time.monotonic())

    def check(self, case: Case, status: int, body: bytes) -> None:
        """Compare a good answer with what the model must say."""
        if status == 200:
            answer = json.loads(body)
            version, got = answer["model_version"], answer["outputs"][0]["data"][0]
            self.versions[version] += 1
            if abs(got - case.expected - self.biases.get(version, 0.0)) > 1e-3:
                self.wrong.append(f"{got} of version {version} for {case.expected}")


class _Caller(asyncio.Protocol):
    """One connection with at most one request inside."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._case: Case | None = None
        self._due = 0.0
        self._used = 0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._port: int = transport.get_extra_info("sockname")[1]

    def send(self, case: Case, due: float) -> None:
        self._case, self._due = case, due
        self._used += 1
        self._transport.write(case.request)

    def close(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        load = self._load
        load.open -= 1
        if self in load.idle:
            load.idle.remove(self)
        if self._case is not None:
            self._case = None
            load.broken.append(Broken(self._port, self._due))
            load.ended(load.begin)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        body = self._buffer[end + 4 :]
        if len(body) >= int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0]):
            self._buffer = b""
            self._answered(head, body)

    def _answered(self, head: bytes, body: bytes) -> None:
        load, case = self._load, self._case
        assert case is not None, (head, body)
        self._case = None
        status = int(head[9:12])
        took = time.monotonic() - self._due
        load.answers.append(Answered(self._due, took, status, b"\r\nretry-after:" in head))
        load.check(case, status, body)
        if b"\r\nconnection: close" in head or self._used >= load.reuse:
            self._transport.close()
        else:
            load.idle.append(self)
        load.ended(load.begin)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
