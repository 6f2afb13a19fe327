"""Counters of all workers in one memory-mapped file: any worker reads all, each writes its own.

Layout, in 64-bit words of this machine's byte order:

    header | labels of places | one region a worker

A place is a version behind an endpoint, `tenant/endpoint@version`, or with no version what found
none there; for `labels`, see there. A region is `WORKER_WORDS` of state and the batch-size
histogram, then `PLACE_WORDS` for each place, then for each place the number by which the worker
holds it (see `places`), 0 if it does not. Region i belongs to the worker with index i, whoever that
is: a successor goes on counting where a killed worker stopped. Place 0 is "other": what found no
free place is counted there, so the file, and with it the number of time series, is bounded. Who has
to pay is counted elsewhere: see `journal`.
"""

import fcntl
import mmap
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tapster.contract.plan import LATENCY_SECONDS
from tapster.serving.bills import Bill, Counted, Nobody, Unbilled, Watch, Watched, by_place, charge
from tapster.serving.labels import LABELS_WORDS, PLACES, Labels

MAGIC: Final = 0x5441505354455231
VERSION: Final = 4
WORKERS: Final = 64
HEADER_WORDS: Final = 8
# The header, after magic and version: the number that was given last to a place, and when it was
# last looked which places nobody needs.
GIVEN, SWEPT = 2, 3

# The state of a worker, by word.
HEARTBEAT, PID, PLAN, IN_FLIGHT, STARTS, STARTED, CONNECTIONS, QUEUED, REFUSED, READY = range(10)
# Bytes of the models that a worker has in memory, and of the answers that it keeps.
MODEL_BYTES, CACHE_BYTES = 10, 11
# The newest wish of callers (see `repository`) that a worker has carried out, and could not.
WISHES, UNMET = 12, 13
BATCH_SUM: Final = 16
BATCH_BUCKETS: Final = 17
BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_WORDS: Final = 64

# The counters of a place, by word. Times are nanoseconds.
OK, CLIENT_ERRORS, SERVER_ERRORS, ROWS, LATENCY_SUM = range(5)
LATENCY_BUCKETS: Final = 5
LATENCY_BOUNDS: Final = tuple(int(seconds * 1e9) for seconds in LATENCY_SECONDS)
# The time from a request's arrival until its batch begins to run, within the same bounds.
WAIT_SUM: Final = 21
WAIT_BUCKETS: Final = 22
BATCHES, COMPUTE = 38, 39
# Requests that were not run, by reason.
QUEUE_FULL, EXPIRED, LIMITED, CANCELLED, UNAVAILABLE = range(40, 45)
CACHE_HITS, CACHE_MISSES = 45, 46
# A shadow's answers: equal to what the caller got, not equal, errors.
SHADOW_SAME, SHADOW_DIFFERENT, SHADOW_BROKEN = range(47, 50)
# When a worker last saw its counters of the place change, in seconds since 1970.
CHANGED: Final = 50
# Copies for a shadow that were not run; a canary's recorded answers, equal and not.
SHADOW_DROPPED, GOLDEN_SAME, GOLDEN_DIFFERENT = range(51, 54)
TOKENS: Final = 54
# Payloads that were to be logged: written down, and not.
PAYLOADS_KEPT, PAYLOADS_DROPPED = 55, 56
PLACE_WORDS: Final = 64

_REGIONS: Final = HEADER_WORDS + LABELS_WORDS
# Where a worker says which places it holds.
HELD: Final = WORKER_WORDS + PLACES * PLACE_WORDS
REGION_WORDS: Final = HELD + PLACES
FILE_BYTES: Final = 8 * (_REGIONS + WORKERS * REGION_WORDS)
OTHER: Final = "other"
NEVER: Final = 1 << 63


class Place(NamedTuple):
    """Whose a place is. `given` is another number for every time that it is given away."""

    number: int
    given: int
    tenant: str
    endpoint: str
    version: str


ELSEWHERE: Final = Place(0, 0, "", OTHER, "")


class Slots:
    """The mapped file, made (sparse, mode 0600) when it is missing or of another layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            fresh = os.fstat(self._file).st_size != FILE_BYTES
            if fresh:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, FILE_BYTES)
            self._map = mmap.mmap(self._file, FILE_BYTES)
            # Words that lie regularly apart are looked at: read ahead, the holes between them would
            # be memory of every process.
            self._map.madvise(mmap.MADV_RANDOM)
            self.words: memoryview[int] = memoryview(self._map).cast("Q")
            if self.words[0] != MAGIC or self.words[1] != VERSION:
                if not fresh:  # of another layout: a hole reads as zeros, and stays sparse
                    os.ftruncate(self._file, 0)
                    os.ftruncate(self._file, FILE_BYTES)
                self.words[0], self.words[1] = MAGIC, VERSION
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.labels = Labels(self.words, GIVEN, HEADER_WORDS, self._clear)

    def close(self) -> None:
        """Let go of the file. No region may be used any more."""
        self.words.release()
        self._map.close()
        os.close(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from giving places and from taking them back."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def place(self, tenant: str, endpoint: str, version: str) -> int:
        """The number of a place, given to it at first use; 0 when none is left.

        Unless a worker holds it, it is taken back some time later.
        """
        with self.locked():
            return self.labels.give(f"{tenant}/{endpoint}@{version}")

    def places(self) -> list[Place]:
        """Every place in use. The first is `other`."""
        return [
            ELSEWHERE,
            *[Place(number, given, *_names(text)) for number, given, text in self.labels.all()],
        ]

    def name(self, number: int) -> tuple[str, str, str]:
        """Tenant, endpoint and version of a place."""
        return _names(self.labels.text(number)) if number else ("", OTHER, "")

    def totals(self, number: int) -> list[int]:
        """The counters of a place, by word, over all workers."""
        start = WORKER_WORDS + number * PLACE_WORDS
        places = [region + start for region in self.regions().values()]
        rows = [self.words[place : place + PLACE_WORDS].tolist() for place in places]
        return [sum(column) for column in zip(*rows, strict=True)] if rows else [0] * PLACE_WORDS

    def regions(self) -> dict[int, int]:
        """Offsets of the regions that a worker has ever used, by the worker's index."""
        offsets = {index: _REGIONS + index * REGION_WORDS for index in range(WORKERS)}
        return {index: at for index, at in offsets.items() if self.words[at + STARTS]}

    def _clear(self, number: int) -> None:
        """Begin the counters of a place anew; nobody holds it."""
        for region in self.regions().values():
            start = region + WORKER_WORDS + number * PLACE_WORDS
            if any(self.words[start : start + PLACE_WORDS]):
                self.words[start : start + PLACE_WORDS] = _NOTHING

    def state(self, index: int, word: int) -> int:
        """One word of worker `index`'s state, such as `HEARTBEAT` or `PID`."""
        return self.words[_REGIONS + index * REGION_WORDS + word]

    def stalled(self, index: int, seconds: float) -> bool:
        """Whether worker `index` has started and not beaten for so long (monotonic clock)."""
        beat = self.state(index, HEARTBEAT)
        return beat != 0 and time.monotonic_ns() - beat > seconds * 1e9

    def beats(self, index: int, seconds: float) -> bool:
        """Whether worker `index` has beaten within so many seconds."""
        age = time.monotonic_ns() - self.state(index, HEARTBEAT)
        return self.state(index, PID) != 0 and 0 <= age <= seconds * 1e9

    def region(self, index: int) -> "Region":
        """The region that worker `index` writes."""
        return Region(self.words, _REGIONS + index * REGION_WORDS, index)


_NOTHING: Final = memoryview(bytes(8 * PLACE_WORDS)).cast("Q")


def _names(label: str) -> tuple[str, str, str]:
    """The parts of a place's label: tenant, endpoint, version."""
    name, _, version = label.rpartition("@")
    tenant, _, endpoint = name.rpartition("/")
    return tenant, endpoint, version


class Region:
    """What one worker counts. Only that worker's event loop writes, so nothing is locked.

    `watch` is told of every request that fails, and of the good answers that took `least`
    nanoseconds or longer, with those that ran with them.
    """

    def __init__(self, words: "memoryview[int]", offset: int, index: int) -> None:
        self.words = words
        self.offset = offset
        self.index = index
        # Where a request is counted that has found no endpoint, or no key.
        self.nowhere = self.place(0)
        self.nobody: Bill = Nobody()
        # What runs besides the callers' own requests.
        self.unbilled: Bill = Unbilled()
        self.watch: Watch | None = None
        self.least = NEVER

    def start(self, pid: int) -> None:
        """A worker takes the region over: totals stay, gauges begin at nothing."""
        words, offset = self.words, self.offset
        for gauge in (
            PLAN,
            IN_FLIGHT,
            CONNECTIONS,
            QUEUED,
            READY,
            MODEL_BYTES,
            CACHE_BYTES,
            WISHES,
            UNMET,
        ):
            words[offset + gauge] = 0
        words[offset + PID] = pid
        words[offset + STARTED] = int(time.time())
        words[offset + STARTS] += 1
        self.beat()

    def beat(self) -> None:
        """Say that the event loop turns."""
        self.words[self.offset + HEARTBEAT] = time.monotonic_ns()

    def set(self, word: int, value: int) -> None:
        """Set one word of the worker's state."""
        self.words[self.offset + word] = value

    def add(self, word: int) -> None:
        """Add one to one word of the worker's state."""
        self.words[self.offset + word] += 1

    def place(self, number: int) -> int:
        """Where the counters of place `number` lie."""
        return self.offset + WORKER_WORDS + number * PLACE_WORDS

    def answered(self, request: Counted, status: int, now: int, cached: int = 0) -> None:
        """Count one answer; `now` in nanoseconds, on the clock of its `began`."""
        words, place, elapsed = self.words, request.place, now - request.began
        if status < 400:
            request.account.served(1, request.rows, 0, cached)
            words[place] += 1
            words[place + ROWS] += request.rows
        else:
            request.account.failed()
            words[place + (CLIENT_ERRORS if status < 500 else SERVER_ERRORS)] += 1
        words[place + LATENCY_SUM] += elapsed
        words[place + LATENCY_BUCKETS + bisect_left(LATENCY_BOUNDS, elapsed)] += 1

    def served(self, requests: Sequence[Watched], now: int, started: int, compute: int) -> None:
        """Count the good answers of a batch, as `answered` counts each.

        The batch began to run at `started`, on the clock of `now`, and took `compute`: all are
        nanoseconds.
        """
        words = self.words
        everything = sum([request.rows for request in requests])
        for place, served in by_place(requests).items():
            rows = everything if served is requests else sum([each.rows for each in served])
            begun = [request.began for request in served]
            share = compute * rows // everything if everything else 0
            charge(served, rows, share)
            words[place] += len(served)
            words[place + ROWS] += rows
            words[place + BATCHES] += 1
            words[place + COMPUTE] += share
            longest = self._times(place + LATENCY_SUM, begun, now)
            self._times(place + WAIT_SUM, begun, started)
            if longest >= self.least and self.watch is not None:
                self.watch.served(list(served), now, started, compute)

    def _times(self, total: int, begun: list[int], end: int) -> int:
        """Count the times until `end` in the sum at `total` and the buckets that follow it.

        Returns the longest.
        """
        words = self.words
        words[total] += end * len(begun) - sum(begun)
        longest = end - min(begun)
        bucket = bisect_left(LATENCY_BOUNDS, longest)
        if bucket == bisect_left(LATENCY_BOUNDS, end - max(begun)):
            words[total + 1 + bucket] += len(begun)
            return longest
        for bucket, count in Counter(
            [bisect_left(LATENCY_BOUNDS, end - began) for began in begun]
        ).items():
            words[total + 1 + bucket] += count
        return longest

    def count(self, place: int, word: int, number: int = 1) -> None:
        """Add to one counter of a place, such as `EXPIRED` or `TOKENS`."""
        self.words[place + word] += number

    def refused(self) -> None:
        """Count a request that was refused before it reached an endpoint."""
        self.words[self.offset + WORKER_WORDS + CLIENT_ERRORS] += 1

    def batch(self, rows: int) -> None:
        """Count one batch that ran."""
        words, offset = self.words, self.offset
        words[offset + BATCH_SUM] += rows
        words[offset + BATCH_BUCKETS + bisect_left(BATCH_BOUNDS, rows)] += 1
