"""What the workers of a machine may spend together: memory-mapped, in `$HOME/run/wallet`.

`held` has an entry for each limit of a rate or of concurrency, and a book named by its day (in
days since 1970) one for each budget that was spent from on that day. An entry is `ENTRY_WORDS`
words of 64 bits, the first of a file its header. Each worker writes its own column of an entry and
no other, and lets a column grow only under the lock; the agent alone writes what was granted. So
the columns of a budget never add up to more than that, whoever dies when.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tapster.contract.usage import Grant
from tapster.serving.extents import Extent, Extents, Lock
from tapster.serving.journal import today
from tapster.serving.segments import found

FOLDER: Final = "wallet"
HELD: Final = "held"
MAGIC: Final = 0x544150574C4C4554
VERSION: Final = 1
ENTRY_WORDS: Final = 96
ENTRY_BYTES: Final = 8 * ENTRY_WORDS
COLUMNS: Final = 64
# A worker may have another day than the clock says, but not by more than this.
NEAR: Final = 2
_COLUMN: Final = ENTRY_WORDS - COLUMNS
# The header of a file. Of `held`: the first day that is not complete, how often somebody has asked
# for more, since when the control plane cannot be asked (monotonic nanoseconds, as all here).
_MAGIC, _VERSION, _COUNT, _FIRST_OPEN, _DEMANDS, _UNREACHABLE = range(6)
# An entry: units granted and units wanted in all; when somebody last wanted, when the control plane
# last answered; what it said: whether there is no more, when the period ends, what it has left.
GRANTED, WANTED, ASKED, ANSWERED, SPENT, RESETS, LEFT, ARRIVAL = range(8)
_LENGTH, _NAME = 8, 9
LONGEST_NAME: Final = 8 * (_COLUMN - _NAME)


class Entry:
    """What there is of one limit (on one day)."""

    __slots__ = ("_at", "_words")

    def __init__(self, extent: Extent, at: int) -> None:
        self._words = extent.words
        self._at = at

    def __getitem__(self, word: int) -> int:
        return self._words[self._at + word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[self._at + word] = value

    def column(self, worker: int) -> int:
        """The units that a worker has."""
        return self._words[self._at + _COLUMN + worker]

    def set(self, worker: int, units: int) -> None:
        """Say how many units a worker has. More than before only under the lock."""
        self._words[self._at + _COLUMN + worker] = units

    def drawn(self) -> int:
        """The units that all workers have."""
        start = self._at + _COLUMN
        return sum(self._words[start : start + COLUMNS])


class Table:
    """A file of entries by name. What changes their number is done under the wallet's lock.

    Whoever makes one says last that it has `begun`: until then it is anybody's to make.
    """

    def __init__(self, path: Path) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = Lock(path)
        self._extents = Extents(self._lock.file)
        if not self._extents.all:
            self._extents.grow()
        self.header = Entry(self._extents.all[0], 0)
        if self.begun and (self.header[_MAGIC], self.header[_VERSION]) != (MAGIC, VERSION):
            raise OSError(f"{path.name} of the wallet is of another layout")

    @property
    def begun(self) -> bool:
        """Whether all is there that there was before it was made."""
        return self.header[_MAGIC] != 0

    def begin(self) -> None:
        """It is as it should be."""
        self.header[_VERSION], self.header[_MAGIC] = VERSION, MAGIC

    def all(self) -> dict[str, Entry]:
        """Every entry, by its name."""
        if len(self._entries) < self.header[_COUNT]:
            self._look()
        return self._entries

    def wanting(self) -> Iterator[tuple[str, Entry]]:
        """Entries of which more is wanted than was granted, and not answered yet."""
        entries = self.all()
        names, start = list(entries), 0
        for extent in self._extents.all:
            size = len(extent.words) // ENTRY_WORDS
            words = np.frombuffer(extent.memory, np.uint64, size * ENTRY_WORDS)
            rows = words.reshape(size, ENTRY_WORDS)
            more = rows[:, WANTED] > rows[:, GRANTED]
            open_ = rows[:, ASKED] >= rows[:, ANSWERED]
            for row in np.flatnonzero(more & open_):
                number = start + int(row) - 1  # the first of all is the header
                if 0 <= number < len(names):
                    yield names[number], entries[names[number]]
            start += size

    def find(self, name: str) -> Entry | None:
        """The entry of a name."""
        entry = self._entries.get(name)
        return entry if entry is not None else self.all().get(name)

    def add(self, name: str) -> Entry:
        """The entry of a name, made if there is none; under the lock. Raises OSError."""
        known = self.find(name)
        if known is not None:
            return known
        text = name.encode()
        if len(text) > LONGEST_NAME:
            raise OSError("a limit's name is too long")
        number = self.header[_COUNT] + 1
        while number >= self._room():
            self._extents.grow()
        extent, at = self._place(number)
        start = 8 * (at + _NAME)
        extent.memory[start : start + len(text)] = text
        extent.words[at + _LENGTH] = len(text)
        self.header[_COUNT] = number
        self._entries[name] = Entry(extent, at)
        return self._entries[name]

    def _room(self) -> int:
        return sum(len(extent.words) // ENTRY_WORDS for extent in self._extents.all)

    def _place(self, number: int) -> tuple[Extent, int]:
        for extent in self._extents.all:
            size = len(extent.words) // ENTRY_WORDS
            if number < size:
                return extent, number * ENTRY_WORDS
            number -= size
        raise IndexError(number)

    def _look(self) -> None:
        """Find the entries that were made since."""
        count = self.header[_COUNT]
        self._extents.refresh()
        for number in range(len(self._entries) + 1, count + 1):
            extent, at = self._place(number)
            start = 8 * (at + _NAME)
            name = extent.memory[start : start + extent.words[at + _LENGTH]].decode()
            self._entries[name] = Entry(extent, at)


class Wallet:
    """The files of one home, as one thread has them: whoever needs them in another opens them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "run" / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock = Lock(self._folder / "lock")
        self._held: Table | None = None
        self._books: dict[int, Table] = {}

    @property
    def held(self) -> Table:
        """Rates and concurrency; under the lock at first use. Raises OSError."""
        if self._held is None:
            held = Table(self._folder / HELD)
            if not held.begun:
                held.begin()
            self._held = held
        return self._held

    # -- days

    @property
    def first_open(self) -> int:
        """The first day that may still be counted on: those before are complete."""
        return self.held.header[_FIRST_OPEN]

    def complete(self, day: int) -> None:
        """Nothing is counted on days before `day` any more; their books are thrown away."""
        with self.lock:
            if day > self.first_open:
                self.held.header[_FIRST_OPEN] = day
        for old in [old for old in self.days() if old < day]:
            self._books.pop(old, None)
            (self._folder / str(old)).unlink(missing_ok=True)

    def days(self) -> list[int]:
        """The days that there are books of."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def book(self, day: int) -> Table:
        """The budgets of a day; under the lock. A book that was lost begins with what the journals
        say. Raises OSError."""
        table = self._books.get(day)
        if table is None:
            for old in [old for old in self._books if old < self.first_open]:
                del self._books[old]
            table = Table(self._folder / str(day))
            if not table.begun:
                self._rebuild(day, table)
                table.begin()
            self._books[day] = table
        return table

    def open(self, day: int) -> Table | None:
        """The budgets of a day, if there are any yet."""
        if day not in self._books and not (self._folder / str(day)).exists():
            return None
        with self.lock:
            return self.book(day)

    # -- workers who have died

    def reclaim(self, worker: int) -> None:
        """Take back what a worker who is dead had and did not spend; under the lock."""
        segments = [each for each in found(self._home) if each.worker == worker]
        try:
            if not any(segment.owned for segment in segments):
                for entry in self.held.all().values():
                    entry.set(worker, 0)
                for day in self.days():
                    spent = _sum([each.spent() for each in segments if each.day == day])
                    for name, entry in self.book(day).all().items():
                        if entry.column(worker):
                            entry.set(worker, spent.get(name, 0))
        finally:
            for segment in segments:
                segment.close()

    def _rebuild(self, day: int, table: Table) -> None:
        units: dict[int, dict[str, int]] = {}
        for segment in found(self._home):
            if segment.day == day:
                others = units.get(segment.worker, {})
                units[segment.worker] = _sum([others, segment.spent()])
            segment.close()
        for worker, spent in units.items():
            for name in spent:
                table.add(name).set(worker, spent[name])

    # -- what the control plane says

    def demand(self) -> None:
        """Have the agent look at what is wanted."""
        self.held.header[_DEMANDS] += 1

    @property
    def demands(self) -> int:
        """What changes whenever somebody has wanted more."""
        return self.held.header[_DEMANDS]

    @property
    def unreachable(self) -> int:
        """Since when the control plane cannot be asked; 0 once it has answered since."""
        return self.held.header[_UNREACHABLE]

    def missed(self) -> None:
        """The control plane could not be asked."""
        now = time.monotonic_ns()
        if not 0 < self.unreachable <= now:
            self.held.header[_UNREACHABLE] = now

    def answered(self, day: int, grant: Grant) -> None:
        """The control plane has granted what it has. Raises OSError."""
        self.held.header[_UNREACHABLE] = 0
        with self.lock:
            if day < self.first_open:
                return
            entry = self.book(day).add(grant.limit)
        entry[RESETS], entry[LEFT] = max(int(grant.resets), 0), max(grant.left, 0)
        entry[SPENT] = int(grant.spent)
        entry[GRANTED] = max(entry[GRANTED], grant.total)
        entry[ANSWERED] = time.monotonic_ns()

    def wanted(self) -> Iterator[tuple[str, int, Entry]]:
        """Budgets (limit, day, entry) of which more is wanted than was granted, and not answered.

        Days are those of today and its neighbours: a worker may have another day than the clock.
        """
        now = today()
        for day in self.days():
            table = self.open(day) if abs(day - now) <= NEAR else None
            for name, entry in table.wanting() if table is not None else ():
                yield name, day, entry


def _sum(parts: list[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for name, units in part.items():
            found[name] = found.get(name, 0) + units
    return found
