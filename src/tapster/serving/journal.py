"""What a worker counts on bills: memory-mapped files that survive it, one a worker and day.

Such a file, a segment, is written by its worker alone, who holds a lock on it for as long as
anything may still be counted there. It is a row of extents (see there), in words of 64 bits:

    extent:  words in use | records            (the first has `HEADER_WORDS` before its records)
    record:  words | bytes of the label | changes | counters | counters | label

A label is JSON, a `Label`. Of the two sets of counters, `changes` says which one holds: the other
is written first, so whoever reads, even after `kill -9`, sees all of a change or nothing of it.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import date
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.usage import LARGEST, Metric
from tapster.core.telemetry import logger
from tapster.serving.extents import FIRST, Extent, Extents

log = logger(__name__)

MAGIC: Final = 0x544150554C4A524E
VERSION: Final = 1
FOLDER: Final = "usage"
# The header of a segment, by word, and of each further extent.
USED, MAGIC_WORD, VERSION_WORD, DAY, WORKER, TAKEN = range(6)
HEADER_WORDS: Final = 16
# A record's words before its label.
SIZE, LENGTH, CHANGES = range(3)
COUNTERS: Final = 3
REQUESTS, ERRORS, ROWS, TOKENS, COMPUTE, CACHED, CHARGED = range(7)
COUNTER_WORDS: Final = 8
LABEL: Final = COUNTERS + 2 * COUNTER_WORDS
DAY_SECONDS: Final = 86400
_EPOCH: Final = date(1970, 1, 1).toordinal()
_PACK: Final = Struct("@8Q").pack_into
# A segment is sealed so long after its day: what was under way has been counted by then.
SETTLING_SECONDS: Final = 60.0


class Label(msgspec.Struct, frozen=True, array_like=True):
    """What a record counts: a `usage.Line` without its day, and the budgets it was spent from.

    Whatever changes with a plan is here, so that counts under one price or budget stay apart from
    those under the next.
    """

    tenant: str
    key: str
    owner: str
    endpoint: str
    name: str
    model: str
    version: str
    budgets: tuple[tuple[str, Metric], ...] = ()
    price: str = ""


def today() -> int:
    """The UTC day, in days since 1970."""
    return int(time.time() // DAY_SECONDS)


def spelled(day: int) -> str:
    """A day as the contract has it, `2026-11-21`."""
    return date.fromordinal(_EPOCH + day).isoformat()


class Record:
    """The counters of one label in one segment; they change together, or not at all."""

    __slots__ = (
        "_at", "_base", "_memory", "_words", "cached", "changes", "charged", "compute", "errors",
        "requests", "rows", "segment", "tokens",
    )  # fmt: skip

    def __init__(self, segment: "Segment", extent: Extent, at: int) -> None:
        self.segment = segment
        self._memory = extent.memory
        self._words = extent.words
        self._at = at + CHANGES
        self._base = 8 * (at + COUNTERS)
        self.changes = 0
        self.requests = self.errors = self.rows = self.tokens = 0
        self.compute = self.cached = self.charged = 0

    def served(
        self,
        requests: int,
        rows: int,
        compute: int,
        cached: int = 0,
        charged: int = 0,
        *,
        tokens: int = 0,
    ) -> None:
        """Count good answers; `compute` in nanoseconds, `charged` what they took of a budget."""
        self.requests += requests
        self.rows += rows
        self.tokens += tokens
        self.compute += compute
        self.cached += cached
        if charged:  # beyond any budget's amount it is spent from none, and of no use
            self.charged = min(self.charged + charged, LARGEST)
        self._write()

    def failed(self) -> None:
        """Count an error."""
        self.errors += 1
        self._write()

    def _write(self) -> None:
        changes = self.changes = self.changes + 1
        _PACK(
            self._memory,
            self._base + 64 * (changes & 1),
            self.requests,
            self.errors,
            self.rows,
            self.tokens,
            self.compute,
            self.cached,
            self.charged,
            0,
        )
        self._words[self._at] = changes


class Segment:
    """A segment as its owner has it. `rolled`: newer counts go elsewhere. `holds`: requests under
    way that will be counted here all the same."""

    def __init__(self, folder: Path, day: int, worker: int) -> None:
        """Make one. Raises OSError."""
        self.id = secrets.token_hex(16)
        self.day = day
        self.rolled = self.sealed = False
        self.holds = 0
        self.records: dict[Label, Record] = {}
        self._since = 0.0
        staging = folder / f".{self.id}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(staging, flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._extents = Extents(self._file)
            words = self._extents.grow().words
            words[DAY], words[WORKER], words[VERSION_WORD] = day, worker, VERSION
            words[USED], words[MAGIC_WORD] = HEADER_WORDS, MAGIC
            staging.rename(folder / self.id)
        except OSError:
            os.close(self._file)
            staging.unlink(missing_ok=True)
            raise

    def record(self, label: Label) -> Record:
        """The record of a label, made at first use. Raises OSError."""
        found = self.records.get(label)
        if found is None:
            found = self.records[label] = self._make(msgspec.json.encode(label))
        return found

    def _make(self, label: bytes) -> Record:
        size = LABEL + -(-len(label) // 8)
        if size >= FIRST // 8:
            raise OSError("a label is longer than an extent may be")
        extent = self._extents.all[-1]
        at = extent.words[USED]
        if at + size > len(extent.words):
            extent = self._extents.grow()
            at = extent.words[USED] = 1
        start = 8 * (at + LABEL)
        extent.memory[start : start + len(label)] = label
        extent.words[at + SIZE], extent.words[at + LENGTH] = size, len(label)
        record = Record(self, extent, at)
        extent.words[USED] = at + size  # from here on the record is there
        return record

    def roll(self, now: float) -> None:
        """Another segment counts from now (monotonic seconds) on."""
        self.rolled = True
        self._since = now

    def settled(self, now: float) -> bool:
        """Whether nothing will be counted here any more."""
        return self.rolled and not self.holds and now - self._since >= SETTLING_SECONDS

    def seal(self) -> None:
        """Give the file away: from now on, its counts are final."""
        self.records = {}
        self.sealed = True
        # Not by closing: what is mapped has descriptors of its own.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)


class Journal:
    """The segments of one worker. `day` is that of the open one, in days since 1970.

    `floor` is the first day that this machine may still count on: whoever bills has been told that
    those before are complete, whatever the clock says now. It is asked, and a segment made, under
    `lock`. While no segment can be made, because the disk is full, no record can.
    """

    def __init__(
        self,
        folder: Path,
        worker: int,
        lock: AbstractContextManager[object] | None = None,
        floor: Callable[[], int] = lambda: 0,
        clock: Callable[[], int] = today,
    ) -> None:
        self._folder = folder / FOLDER
        self._worker = worker
        self._lock = lock or nullcontext()
        self._floor = floor
        self._clock = clock
        self._closing: list[Segment] = []
        self._failed = False
        self.segment: Segment | None = None
        self.day = 0
        self.roll()

    def due(self) -> bool:
        """Whether it is another day than that of the open segment, or there is none."""
        return self.segment is None or max(self._clock(), self._floor()) != self.day

    def roll(self) -> bool:
        """Begin another segment; whether that was possible."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._lock:
                day = max(self._clock(), self._floor())
                segment = Segment(self._folder, day, self._worker)
        except OSError as error:
            if not self._failed:
                log.error("usage cannot be counted", reason=os.strerror(error.errno or 0))
            self._failed = True
            return False
        self._failed = False
        if self.segment is not None:
            self.segment.roll(time.monotonic())
            self._closing.append(self.segment)
        self.segment, self.day = segment, day
        return True

    def settle(self, now: float) -> None:
        """Seal the segments of other days whose requests have all been counted."""
        for segment in [each for each in self._closing if each.settled(now)]:
            self._closing.remove(segment)
            segment.seal()

    def record(self, label: Label) -> Record:
        """Where a label is counted today. Raises TapsterError(unavailable)."""
        if self.segment is not None:
            found = self.segment.records.get(label)
            if found is not None:
                return found
            with suppress(OSError):
                return self.segment.record(label)
        raise TapsterError(
            "unavailable",
            "the server has no room to count what is used, so it serves nothing that is billed",
            hint="whoever runs it must free some space on its disk",
            retry_after=5.0,
        )

    def close(self) -> None:
        """Seal everything; nothing may be counted any more."""
        for segment in (*self._closing, *([self.segment] if self.segment else ())):
            segment.seal()
        self._closing, self.segment = [], None
