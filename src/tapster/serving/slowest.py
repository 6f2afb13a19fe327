"""The slowest requests of late, with how long each phase took.

Kept by each worker in its memory, and published in a file of its own for the others to read.
"""

import heapq
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

KEPT: Final = 32
# Two windows of this length are kept, the one that goes on and the one before it.
WINDOW_SECONDS: Final = 300.0
_STALE_SECONDS: Final = 2 * WINDOW_SECONDS


class Phases(msgspec.Struct, frozen=True):
    """Seconds of a request, one phase after another.

    `read`: its body was read, where that took a thread, else part of `wait`; `wait`: for the model
    to begin; `run`: the model, with the requests beside it; `write`: their answers were written.
    """

    read: float
    wait: float
    run: float
    write: float


class Request(msgspec.Struct, frozen=True):
    """A request that took long: `ended` in seconds since 1970, `seconds` from its arrival.

    `phases` is None for one that failed.
    """

    ended: float
    seconds: float
    request_id: str
    tenant: str
    endpoint: str
    version: str
    worker: int
    status: int
    rows: int
    phases: Phases | None = None


_REQUESTS: Final = msgspec.json.Decoder(list[Request])


class Slowest:
    """The slowest requests of one worker; `floor` is what one must exceed, in nanoseconds."""

    def __init__(self) -> None:
        self.floor = 0
        self.changed = False
        self._began = time.monotonic()
        self._now: list[tuple[float, int, Request]] = []
        self._before: list[tuple[float, int, Request]] = []
        self._number = count()

    def add(self, request: Request) -> None:
        """Keep a request if it is among the slowest."""
        entry = (request.seconds, next(self._number), request)
        if len(self._now) < KEPT:
            heapq.heappush(self._now, entry)
        else:
            heapq.heappushpop(self._now, entry)
        self.floor = int(self._now[0][0] * 1e9) if len(self._now) == KEPT else 0
        self.changed = True

    def turn(self) -> None:
        """Begin another window once this one is over; to be called now and then."""
        if time.monotonic() - self._began > WINDOW_SECONDS:
            self._began = time.monotonic()
            self._now, self._before = [], self._now
            self.floor = 0
            self.changed = True

    def all(self) -> list[Request]:
        """Those of both windows, the slowest first."""
        return [entry[2] for entry in sorted([*self._now, *self._before], reverse=True)]


def publish(folder: Path, worker: int, requests: list[Request]) -> None:
    """Write a worker's slowest requests where the others find them."""
    path = folder / f"slowest-{worker}.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(requests))
    fresh.replace(path)


def merged(folder: Path, limit: int) -> list[Request]:
    """The slowest requests of all workers of late, the slowest first."""
    found: list[Request] = []
    for path in folder.glob("slowest-*.json"):
        with suppress(OSError, msgspec.MsgspecError):
            found += _REQUESTS.decode(path.read_bytes())
    recent = [each for each in found if each.ended > time.time() - _STALE_SECONDS]
    return sorted(recent, key=lambda each: -each.seconds)[:limit]
