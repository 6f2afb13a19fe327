"""One timer for everything that waits or runs: whose deadline has passed is told so."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

# A run that ignored its deadline so long holds its thread for ever: a new worker helps.
STUCK_SECONDS: Final = 3.0
# Deadlines so close together are looked after in one go.
LEAST_SECONDS: Final = 0.01


class Guarded(Protocol):
    """What has requests that wait or run."""

    def expire(self, now: float) -> float:
        """Do what is due; the next moment to look again, infinity when nothing is left."""
        ...

    def lateness(self, now: float) -> float:
        """Seconds since a run should have ended, of the one that is most overdue."""
        ...

    def __len__(self) -> int:
        """Requests that wait."""
        ...


class Guard:
    """Calls `expire` of whoever has asked for it, at the earliest moment that any has named.

    `stuck` is called, with how late it is, when a run does not end.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stuck: Callable[[float], None] = lambda late: None
    ) -> None:
        self._loop = loop
        self._stuck = stuck
        self._guarded: set[Guarded] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Requests that wait at those who are guarded."""
        return sum(map(len, self._guarded))

    def attend(self, guarded: Guarded, moment: float) -> None:
        """Look after `guarded` from `moment` (monotonic clock) on, until it has nothing left."""
        self._guarded.add(guarded)
        if moment < self._due:
            self._set(moment)

    def _set(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = moment
        delay = max(moment - time.monotonic(), LEAST_SECONDS)
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self._due = math.inf
        now = time.monotonic()
        nearest, late = math.inf, 0.0
        for guarded in list(self._guarded):
            moment = guarded.expire(now)
            if moment == math.inf:
                self._guarded.discard(guarded)
            nearest = min(nearest, moment)
            late = max(late, guarded.lateness(now))
        if nearest < self._due:  # `expire` may have attended to something itself
            self._set(nearest)
        if late > STUCK_SECONDS:
            self._stuck(late)
