"""A worker's hold on places, so that nobody else is given what it counts in.

Which places a worker holds stands in its region. A hold ends with the last object that refers to
it: an endpoint's version, or a request on its way to it. A place that no living worker holds is
taken back after a while, and whoever is given it next begins at nothing. That a worker lives is
told by a lock which ends with its process; what a dead one held is nobody's.
"""

import fcntl
import os
import time
from collections import Counter, deque
from typing import Any, Final

import numpy as np

from tapster.serving.labels import PLACES
from tapster.serving.slots import HELD, SWEPT, Region, Slots

# How long a place keeps its counters when nobody holds it, and when few are left: by then its last
# counts have been read a few times by whoever collects them.
KEPT_SECONDS: Final = 3600
SHORT_SECONDS: Final = 120
FEW: Final = PLACES // 4
SWEEP_SECONDS: Final = 10


class Hold:
    """A place that is held for as long as this lives. `place` is where its counters lie."""

    __slots__ = ("_left", "number", "place")

    def __init__(self, number: int, place: int, left: "deque[int]") -> None:
        self.number = number
        self.place = place
        self._left = left

    def __del__(self) -> None:
        self._left.append(self.number)  # in any thread, amid anything


class Places:
    """The places that a worker holds. Every method runs on its event loop."""

    def __init__(self, slots: Slots, region: Region) -> None:
        self._slots = slots
        self._region = region
        self._held: Counter[int] = Counter()
        self._left: deque[int] = deque()
        self._life = self._lock(region.index)
        if _taken(self._life):  # from a predecessor that is dead
            self._holding(region.offset)[:] = 0
        fcntl.flock(self._life, fcntl.LOCK_SH)

    def close(self) -> None:
        """Hold nothing any more, as if the process had ended."""
        os.close(self._life)

    def hold(self, tenant: str, endpoint: str, version: str) -> Hold:
        """The place of a version behind an endpoint; that of all others when none is left."""
        label = f"{tenant}/{endpoint}@{version}"
        slots, labels, region = self._slots, self._slots.labels, self._region
        with slots.locked():
            number = labels.give(label)
            if not number:
                self._sweep(int(time.time()))
                number = labels.give(label)
            if number:
                region.words[region.offset + HELD + number] = labels.number(number)
        self._held[number] += 1
        return Hold(number, region.place(number), self._left)

    def tend(self) -> None:
        """Let go of what nothing refers to any more; called every second or so."""
        region = self._region
        while self._left:
            number = self._left.popleft()
            self._held[number] -= 1
            if not self._held[number]:
                del self._held[number]
                region.words[region.offset + HELD + number] = 0
        now = int(time.time())
        if not 0 <= now - region.words[SWEPT] < SWEEP_SECONDS:
            with self._slots.locked():
                self._sweep(now)

    def _sweep(self, now: int) -> None:
        """Take back what nobody needs; the file is locked."""
        slots = self._slots
        slots.words[SWEPT] = now
        numbers = slots.labels.numbers()
        used = np.zeros(PLACES, bool)
        for index, offset in slots.regions().items():
            held = self._holding(offset)
            if held.any() and (index == self._region.index or self._lives(index, held)):
                used |= held == numbers
        slots.labels.rest(used, now, lambda free: KEPT_SECONDS if free > FEW else SHORT_SECONDS)

    def _lives(self, index: int, held: Any) -> bool:
        """Whether the worker whose region it is lives; else it holds nothing any more."""
        life = self._lock(index)
        try:
            if not _taken(life):
                return True
            held[:] = 0
            return False
        finally:
            os.close(life)

    def _lock(self, index: int) -> int:
        path = self._slots.path.with_name(f"{self._slots.path.name}-{index}")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _holding(self, offset: int) -> Any:
        start = offset + HELD
        return np.frombuffer(self._slots.words, np.uint64)[start : start + PLACES]


def _taken(lock: int) -> bool:
    """Whether a lock could be had, which nobody else has then."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
