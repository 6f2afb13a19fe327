"""Where requests wait for a model: in one line, or in a line for each shape of their inputs."""

import math
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Final

from tapster.serving.costs import Cost
from tapster.serving.work import Work

# A batch takes no more of the time that its requests have left than this share.
SHARE: Final = 0.25


class Room:
    """How much more goes into a batch for a thread.

    No more rows than are worth it, and none that would leave the request with the tightest
    deadline less time than the run takes several times over; the first request goes in always.
    """

    def __init__(self, cost: Cost, together: bool) -> None:
        self._cost = cost
        self._most = cost.worthwhile if together else 0
        self._rows = 0
        self._until = math.inf
        self._now = time.monotonic()

    def takes(self, work: Work) -> bool:
        """Whether this request goes in too; asked in the order of the batch."""
        rows = self._rows + work.rows
        until = min(self._until, work.deadline)
        if self._rows and (
            rows > self._most or self._cost.duration(rows) > SHARE * (until - self._now)
        ):
            return False
        self._rows, self._until = rows, until
        return True


class Line(deque[Work]):
    """First come, first served."""

    def take(self, room: Room) -> tuple[list[Work], list[Work]]:
        """The oldest requests that there is room for, and those met whose caller is gone."""
        batch: list[Work] = []
        gone: list[Work] = []
        while self:
            work = self[0]
            if work.done:
                gone.append(self.popleft())
            elif room.takes(work):
                batch.append(self.popleft())
            else:
                break
        return batch, gone

    def expire(self, now: float) -> tuple[list[Work], list[Work]]:
        """Take out what is past its deadline, and what has lost its caller."""
        late = [work for work in self if work.deadline <= now and not work.done]
        gone = [work for work in self if work.done]
        if late or gone:
            kept = [work for work in self if work.deadline > now and not work.done]
            self.clear()
            self.extend(kept)
        return late, gone

    def drain(self) -> list[Work]:
        """Take out everything."""
        everything = list(self)
        self.clear()
        return everything


class Buckets:
    """A line for each shape, so that batches need no padding; the longest wait goes first."""

    def __init__(self) -> None:
        self._lines: dict[object, Line] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Work]:
        return chain.from_iterable(self._lines.values())

    def append(self, work: Work) -> None:
        """Let a request wait behind those of its shape."""
        shape = _shape(work)
        line = self._lines.get(shape)
        if line is None:
            line = self._lines[shape] = Line()
        line.append(work)
        self._count += 1

    def take(self, room: Room) -> tuple[list[Work], list[Work]]:
        """As `Line.take`, of the shape whose oldest request has waited longest."""
        gone: list[Work] = []
        batch: list[Work] = []
        while self._lines and not batch:
            shape = min(self._lines, key=lambda each: self._lines[each][0].began)
            line = self._lines[shape]
            batch, left = line.take(room)
            gone += left
            if not line:
                del self._lines[shape]
        self._count -= len(batch) + len(gone)
        return batch, gone

    def expire(self, now: float) -> tuple[list[Work], list[Work]]:
        """As `Line.expire`."""
        late: list[Work] = []
        gone: list[Work] = []
        for shape, line in list(self._lines.items()):
            expired, left = line.expire(now)
            late += expired
            gone += left
            if not line:
                del self._lines[shape]
        self._count -= len(late) + len(gone)
        return late, gone

    def drain(self) -> list[Work]:
        """As `Line.drain`."""
        everything = list(self)
        self._lines.clear()
        self._count = 0
        return everything


def _shape(work: Work) -> object:
    """What requests must have in common to run together; packed rows are all of one width."""
    if isinstance(work.inputs, bytes):
        return None
    return tuple((name, array.shape[1:]) for name, array in sorted(work.inputs.items()))
