"""Journals as others than their writer read them: which records changed, whether one is sealed."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tapster.contract.usage import Count, Line, Metric
from tapster.serving import journal as layout
from tapster.serving.extents import Extent, Extents
from tapster.serving.journal import COUNTER_WORDS, COUNTERS, FOLDER, HEADER_WORDS, Label, spelled

Words = np.ndarray[Any, np.dtype[np.uint64]]

_END: Final = ord("]")  # of every label
_LABELS: Final = msgspec.json.Decoder(Label)
_WORDS: Final = np.arange(COUNTER_WORDS)
# The counter that a budget of a metric is spent by.
SPENT: Final[dict[Metric, int]] = {
    "requests": layout.REQUESTS,
    "rows": layout.ROWS,
    "tokens": layout.TOKENS,
    "compute": layout.COMPUTE,
    "money": layout.CHARGED,
}


class Found:
    """A segment, whoever writes it. Raises OSError, and ValueError for what is no segment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._file = -1
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._extents = Extents(self._file)
        if not self._extents.all or self._header(layout.MAGIC_WORD) != layout.MAGIC:
            raise ValueError("not a segment")
        self.day = self._header(layout.DAY)
        self.worker = self._header(layout.WORKER)
        # Of each extent: where its records begin, and the words that were looked at.
        self._records: list[list[int]] = []
        self._seen: list[int] = []

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()

    @property
    def owned(self) -> bool:
        """Whether somebody may still count there."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    @property
    def taken(self) -> bool:
        """Whether whoever bills has all of it."""
        return bool(self._header(layout.TAKEN))

    def take(self) -> None:
        """Remember that whoever bills has all of it."""
        self._extents.all[0].words[layout.TAKEN] = 1

    def offer(self) -> None:
        """Whoever bills has forgotten: it is to be sent again."""
        self._extents.all[0].words[layout.TAKEN] = 0

    def totals(self) -> Words:
        """The counters of every record, a row each, in the order in which they were made."""
        self._look()
        rows = [
            _counters(np.frombuffer(extent.memory, np.uint64), np.array(found, np.int64))
            for extent, found in zip(self._extents.all, self._records, strict=True)
            if found
        ]
        return np.concatenate(rows) if rows else np.zeros((0, COUNTER_WORDS), np.uint64)

    def labels(self, numbers: Iterable[int]) -> Iterator[tuple[int, Label]]:
        """The labels of records, by their numbers, which `totals` has shown, in order."""
        ends = np.cumsum([len(found) for found in self._records])
        for number in numbers:
            extent = int(np.searchsorted(ends, number, "right"))
            at = self._records[extent][number - int(ends[extent])]  # counted from its end
            memory, words = self._extents.all[extent].memory, self._extents.all[extent].words
            start = 8 * (at + layout.LABEL)
            yield number, _LABELS.decode(memory[start : start + words[at + layout.LENGTH]])

    def spent(self) -> dict[str, int]:
        """What was spent of each budget, by the budget's id."""
        found: dict[str, int] = {}
        totals = self.totals()
        for number, label in self.labels(range(len(totals))):
            for budget, metric in label.budgets:
                units = int(totals[number, SPENT[metric]])
                found[budget] = found.get(budget, 0) + units
        return found

    def counts(self, totals: Words, numbers: Iterable[int]) -> tuple[Count, ...]:
        """Records as the contract has them."""
        day = spelled(self.day)
        return tuple(
            Count(number, _line(day, label), *[int(word) for word in totals[number, :6]])
            for number, label in self.labels(numbers)
        )

    def _header(self, word: int) -> int:
        return self._extents.all[0].words[word]

    def _look(self) -> None:
        """Find the records that were made since."""
        self._extents.refresh()
        for number, extent in enumerate(self._extents.all):
            if number == len(self._records):
                self._records.append([])
                self._seen.append(1 if number else HEADER_WORDS)
            at, words = self._seen[number], extent.words
            used = words[layout.USED]
            while at < used and _whole(extent, at):
                self._records[number].append(at)
                at += words[at + layout.SIZE]
            self._seen[number] = at


def found(home: Path) -> list[Found]:
    """Every segment of a home; what is not one is left alone."""
    segments = []
    with suppress(FileNotFoundError):
        for path in sorted((home / "run" / FOLDER).iterdir()):
            if not path.name.startswith("."):
                with suppress(OSError, ValueError):
                    segments.append(Found(path))
    return segments


def _line(day: str, label: Label) -> Line:
    return Line(
        day, label.tenant, label.key, label.owner, label.endpoint, label.name, label.model,
        label.version, label.price,
    )  # fmt: skip


def _whole(extent: Extent, at: int) -> bool:
    """Whether the record at `at` is there. When the power has failed, pages of it may not be."""
    size = extent.words[at + layout.LENGTH]
    end = 8 * (at + layout.LABEL) + size
    return size > 0 and end <= len(extent.memory) and extent.memory[end - 1] == _END


def _counters(words: Words, at: "np.ndarray[Any, np.dtype[np.int64]]") -> Words:
    """The counters of the records at `at`; one that changes meanwhile is read again."""
    found = np.zeros((len(at), COUNTER_WORDS), np.uint64)
    left = np.arange(len(at))
    while len(left):
        here = at[left]
        before = words[here + layout.CHANGES]
        copy = here + COUNTERS + COUNTER_WORDS * (before & np.uint64(1)).astype(np.int64)
        found[left] = words[copy[:, None] + _WORDS]
        left = left[words[here + layout.CHANGES] != before]
    return found
