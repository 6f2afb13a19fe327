"""Counters of all workers in one memory-mapped file: any worker reads all, each writes its own.

Layout, in 64-bit words of this machine's byte order:

    header | labels of endpoints | labels of series | one region a worker

A label is a 16-bit length and UTF-8 bytes. A region is `WORKER_WORDS` of state and the
batch-size histogram, then `ENDPOINT_WORDS` for each endpoint label, then `SERIES_WORDS` for each
series label. Region i belongs to the worker with index i, whoever that is: a successor goes on
counting where a killed worker stopped. Label 0 is "other": what found no free label is counted
there, so the file, and with it the number of time series, is bounded.
"""

import fcntl
import mmap
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

MAGIC: Final = 0x5441505354455231
VERSION: Final = 1
WORKERS: Final = 64
ENDPOINTS: Final = 512
SERIES: Final = 2048
LABEL_WORDS: Final = 48
HEADER_WORDS: Final = 8

# The state of a worker, by word.
HEARTBEAT, PID, PLAN, IN_FLIGHT, STARTS, STARTED, CONNECTIONS, QUEUED, REFUSED, READY = range(10)
BATCH_SUM: Final = 16
BATCH_BUCKETS: Final = 17
BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_WORDS: Final = 64

# The counters of an endpoint, by word.
OK, CLIENT_ERRORS, SERVER_ERRORS, ROWS, LATENCY_SUM = range(5)
LATENCY_BUCKETS: Final = 5
LATENCY_BOUNDS: Final = tuple(
    int(seconds * 1e9)
    for seconds in (
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
    )
)  # fmt: skip
ENDPOINT_WORDS: Final = 24

# The counters of a series (an endpoint as called by a key), by word.
REQUESTS, SERIES_ROWS, ERRORS = range(3)
SERIES_WORDS: Final = 4

_ENDPOINT_LABELS: Final = HEADER_WORDS
_SERIES_LABELS: Final = _ENDPOINT_LABELS + ENDPOINTS * LABEL_WORDS
_REGIONS: Final = _SERIES_LABELS + SERIES * LABEL_WORDS
_SERIES_OFFSET: Final = WORKER_WORDS + ENDPOINTS * ENDPOINT_WORDS
REGION_WORDS: Final = _SERIES_OFFSET + SERIES * SERIES_WORDS
FILE_BYTES: Final = 8 * (_REGIONS + WORKERS * REGION_WORDS)
OTHER: Final = "other"


class Slots:
    """The mapped file, made (sparse, mode 0600) when it is missing or of another layout."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            fresh = os.fstat(self._file).st_size != FILE_BYTES
            if fresh:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, FILE_BYTES)
            self._map = mmap.mmap(self._file, FILE_BYTES)
            self.words: memoryview[int] = memoryview(self._map).cast("Q")
            if self.words[0] != MAGIC or self.words[1] != VERSION:
                if not fresh:
                    self._map[:] = bytes(FILE_BYTES)
                self.words[0], self.words[1] = MAGIC, VERSION
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._tables = {
            "endpoint": _Labels(self._map, _ENDPOINT_LABELS, ENDPOINTS),
            "series": _Labels(self._map, _SERIES_LABELS, SERIES),
        }

    def close(self) -> None:
        """Let go of the file. No region may be used any more."""
        self.words.release()
        self._map.close()
        os.close(self._file)

    def endpoint(self, label: str) -> int:
        """The number of an endpoint's label, given to it at first use; 0 when none is left."""
        return self._number("endpoint", label)

    def series(self, endpoint: str, key: str) -> int:
        """The number of the pair (endpoint id, key id); 0 when none is left."""
        return self._number("series", f"{endpoint}\0{key}")

    def endpoints(self) -> list[tuple[int, str]]:
        """Labels of endpoints in use, with their numbers; 0 is `other`."""
        return [(0, OTHER), *self._tables["endpoint"].all()]

    def usage(self) -> list[tuple[str, str, int, int, int]]:
        """(endpoint id, key id, requests, rows, errors) of every series, over all workers."""
        pairs = [(0, f"{OTHER}\0{OTHER}"), *self._tables["series"].all()]
        regions = self.regions().values()
        found = []
        for number, label in pairs:
            endpoint, _, key = label.partition("\0")
            offset = _SERIES_OFFSET + number * SERIES_WORDS
            requests, rows, errors = (
                sum(self.words[region + offset + word] for region in regions)
                for word in (REQUESTS, SERIES_ROWS, ERRORS)
            )
            if requests:
                found.append((endpoint, key, requests, rows, errors))
        return found

    def regions(self) -> dict[int, int]:
        """Offsets of the regions that a worker has ever used, by the worker's index."""
        offsets = {index: _REGIONS + index * REGION_WORDS for index in range(WORKERS)}
        return {index: at for index, at in offsets.items() if self.words[at + STARTS]}

    def state(self, index: int, word: int) -> int:
        """One word of worker `index`'s state, such as `HEARTBEAT` or `PID`."""
        return self.words[_REGIONS + index * REGION_WORDS + word]

    def stalled(self, index: int, seconds: float) -> bool:
        """Whether worker `index` has started and not beaten for so long (monotonic clock)."""
        beat = self.state(index, HEARTBEAT)
        return beat != 0 and time.monotonic_ns() - beat > seconds * 1e9

    def region(self, index: int) -> "Region":
        """The region that worker `index` writes."""
        return Region(self.words, _REGIONS + index * REGION_WORDS)

    def _number(self, table: str, label: str) -> int:
        labels = self._tables[table]
        number = labels.find(label)
        if number is None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                number = labels.add(label)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        return number


class _Labels:
    """A table of labels that only grows; number 0 is never given away."""

    def __init__(self, memory: mmap.mmap, offset: int, count: int) -> None:
        self._memory = memory
        self._offset = offset * 8
        self._count = count
        self._numbers: dict[str, int] = {}

    def find(self, label: str) -> int | None:
        return self._numbers.get(label)

    def add(self, label: str) -> int:
        """The label's number; the caller holds the file's lock."""
        for number, existing in self.all():
            self._numbers[existing] = number
        if label in self._numbers:
            return self._numbers[label]
        number = len(self._numbers) + 1
        text = label.encode()
        if number >= self._count or len(text) > LABEL_WORDS * 8 - 2:
            return 0
        start = self._offset + number * LABEL_WORDS * 8
        self._memory[start + 2 : start + 2 + len(text)] = text
        self._memory[start : start + 2] = len(text).to_bytes(2, "little")
        self._numbers[label] = number
        return number

    def all(self) -> list[tuple[int, str]]:
        found = []
        for number in range(1, self._count):
            start = self._offset + number * LABEL_WORDS * 8
            length = int.from_bytes(self._memory[start : start + 2], "little")
            if not length:
                break
            found.append((number, self._memory[start + 2 : start + 2 + length].decode()))
        return found


class Counted(Protocol):
    """A request to be counted: where, how much it asked for, and since when it waits."""

    place: int
    series: int
    rows: int
    began: int


class Region:
    """What one worker counts. Only that worker's event loop writes, so nothing is locked."""

    def __init__(self, words: "memoryview[int]", offset: int) -> None:
        self.words = words
        self.offset = offset
        # Where a request is counted that has found no endpoint, or no key.
        self.nowhere = self.endpoint(0)
        self.nobody = self.series(0)

    def start(self, pid: int) -> None:
        """A worker takes the region over: totals stay, gauges begin at nothing."""
        words, offset = self.words, self.offset
        for gauge in (PLAN, IN_FLIGHT, CONNECTIONS, QUEUED, READY):
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

    def endpoint(self, number: int) -> int:
        """Where the counters of endpoint `number` lie, for `answered`."""
        return self.offset + WORKER_WORDS + number * ENDPOINT_WORDS

    def series(self, number: int) -> int:
        """Where the counters of series `number` lie, for `answered`."""
        return self.offset + _SERIES_OFFSET + number * SERIES_WORDS

    def answered(self, endpoint: int, series: int, status: int, rows: int, elapsed: int) -> None:
        """Count one answer: places from `endpoint` and `series`, `elapsed` in nanoseconds."""
        words = self.words
        words[series] += 1
        if status < 400:
            words[endpoint] += 1
            words[endpoint + ROWS] += rows
            words[series + SERIES_ROWS] += rows
        else:
            words[endpoint + (CLIENT_ERRORS if status < 500 else SERVER_ERRORS)] += 1
            words[series + ERRORS] += 1
        words[endpoint + LATENCY_SUM] += elapsed
        words[endpoint + LATENCY_BUCKETS + bisect_left(LATENCY_BOUNDS, elapsed)] += 1

    def served(self, requests: Iterable[Counted], now: int) -> None:
        """Count good answers at `now` (nanoseconds, monotonic), as `answered` counts each."""
        accounts: dict[tuple[int, int], list[Counted]] = {}
        for request in requests:
            accounts.setdefault((request.place, request.series), []).append(request)
        words = self.words
        for (endpoint, series), served in accounts.items():
            rows = sum([request.rows for request in served])
            waits = [now - request.began for request in served]
            words[series] += len(served)
            words[series + SERIES_ROWS] += rows
            words[endpoint] += len(served)
            words[endpoint + ROWS] += rows
            words[endpoint + LATENCY_SUM] += sum(waits)
            buckets = Counter([bisect_left(LATENCY_BOUNDS, wait) for wait in waits])
            for bucket, count in buckets.items():
                words[endpoint + LATENCY_BUCKETS + bucket] += count

    def refused(self) -> None:
        """Count a request that was refused before it reached an endpoint."""
        self.words[self.offset + WORKER_WORDS + CLIENT_ERRORS] += 1

    def batch(self, rows: int) -> None:
        """Count one batch that ran."""
        words, offset = self.words, self.offset
        words[offset + BATCH_SUM] += rows
        words[offset + BATCH_BUCKETS + bisect_left(BATCH_BOUNDS, rows)] += 1
