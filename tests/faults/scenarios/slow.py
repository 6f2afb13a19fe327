"""Clients that are slow on purpose, thousands of them, beside one that is not."""

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import psutil
import uvloop

from tests.faults.scenarios import models
from tests.faults.scenarios.load import Load, cases
from tests.serving.conftest import KEY, Plane, endpoint, wait_for

ENDPOINT: Final = "total"
SECONDS_BETWEEN_BYTES: Final = 0.25
WIDE: Final = "wide"
NUMBERS: Final = 12_000
RATE: Final = 50.0
PATIENCE: Final = 120.0


@dataclass
class Slow:
    """What the normal client saw alone and in bad company, and what became of the slow ones.

    `held` are the seconds that each slow connection was let stay; `statuses` the refusals that
    they were sent (0: closed without a word). Memory in bytes.
    """

    kind: str
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    connected: int = 0
    held: list[float] = field(default_factory=list)
    refusals: Counter[int] = field(default_factory=Counter)
    memory: tuple[int, int] = (0, 0)
    left: int = 0


@dataclass
class Crowd:
    """So many slow clients in a thread of their own; one that is cut off comes again."""

    port: int
    kind: str
    count: int
    seen: Slow
    stopping: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.open = 0

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(*(self._again(number) for number in range(self.count)))

    async def _again(self, number: int) -> None:
        await asyncio.sleep(random.random())
        while not self.stopping:
            began = time.monotonic()
            self.open += 1
            self.seen.connected += 1
            try:
                status = await self._one()
            except OSError:
                status = 0
            finally:
                self.open -= 1
            if not self.stopping:
                self.seen.held.append(time.monotonic() - began)
                self.seen.refusals[status] += 1
                await asyncio.sleep(0.1)

    async def _one(self) -> int:
        """One slow exchange; the status that it ended with, 0 for none."""
        line = socket.socket()
        line.setblocking(False)
        if self.kind == "read":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(line, ("127.0.0.1", self.port))
            return await _KINDS[self.kind](self, line)
        finally:
            line.close()

    async def _trickle(self, line: socket.socket, data: bytes) -> int:
        """Send byte by byte until there is an answer."""
        loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(loop.sock_recv(line, 4096))
        for place in range(len(data)):
            if self.stopping or answer.done():
                break
            await loop.sock_sendall(line, data[place : place + 1])
            await asyncio.wait([answer], timeout=SECONDS_BETWEEN_BYTES)
        if not answer.done():
            answer.cancel()
            await asyncio.wait([answer])
            return 0
        got = answer.result()
        return int(got[9:12]) if got else 0

    async def slow_header(self, line: socket.socket) -> int:
        """A header that never ends."""
        head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nHost: x\r\nX-Slow: "
        return await self._trickle(line, head.encode() + b"a" * 10_000)

    async def slow_body(self, line: socket.socket) -> int:
        """A body that never ends."""
        loop = asyncio.get_running_loop()
        head = (
            f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: 100000\r\n\r\n"
        )
        await loop.sock_sendall(line, head.encode())
        return await self._trickle(line, b" " * 10_000)

    async def slow_read(self, line: socket.socket) -> int:
        """A long answer of which hardly anything is read."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(line, cases(WIDE)[0].request)
        while not self.stopping and await loop.sock_recv(line, 16):
            await asyncio.sleep(SECONDS_BETWEEN_BYTES)
            if line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                break  # reset; there may be more to read all the same
        return 0


_KINDS: Final[dict[str, Callable[[Crowd, socket.socket], Awaitable[int]]]] = {
    "header": Crowd.slow_header,
    "body": Crowd.slow_body,
    "read": Crowd.slow_read,
}
KINDS: Final = tuple(_KINDS)


def besiege(plane: Plane, kind: str, count: int, seconds: float) -> Slow:
    """Call at a steady pace, alone and then beside `count` slow clients, so many seconds each."""
    total = models.seal(plane.home, models.total(0.0))
    wide = models.seal(plane.home, models.wide(NUMBERS), -1, NUMBERS)
    plane.plan(endpoint(ENDPOINT, total), endpoint(WIDE, wide), packages=(total, wide))
    worker = psutil.Process(plane.start().pid)
    plane.applied()
    seen = Slow(kind)
    with Load(plane.port, cases(ENDPOINT), rate=RATE, connections=100) as load:
        time.sleep(min(seconds, 3.0))
        seen.alone = [answer.took for answer in load.good()]
        before = worker.memory_info().rss
        with Crowd(plane.port, kind, count, seen) as crowd:
            wait_for(lambda: crowd.open > 0.9 * count, "the crowd")
            began, largest = time.monotonic(), before
            end = began + seconds
            # A busy machine takes longer to cut them off, and to let some come again.
            while (now := time.monotonic()) < end or not (
                (len(seen.held) > count / 2 and seen.connected > count) or now > end + PATIENCE
            ):
                time.sleep(0.1)
                largest = max(largest, worker.memory_info().rss)
            seen.beside = [answer.took for answer in load.good(began)]
    seen.memory = (before, largest)
    seen.statuses = {answer.status for answer in load.answers}
    seen.failures = [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
    wait_for(lambda: _connections(worker) == 0, "every connection to be closed")
    return seen


def _connections(worker: psutil.Process) -> int:
    return sum(c.status != psutil.CONN_LISTEN for c in worker.net_connections("tcp"))
