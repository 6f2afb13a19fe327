"""Threads for work that the event loop must not wait for."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

IDLE_SECONDS: Final = 30.0


class Threads:
    """Threads made when all others are busy, ended when idle for long; any number may be busy.

    Who starts jobs keeps their number within bounds. A job must not raise.
    """

    def __init__(self, name: str, idle: float = IDLE_SECONDS) -> None:
        self._name = name
        self._idle = idle
        # Those who wait are `_free` and as many as there are jobs, each of which one will take. Not
        # a queue.SimpleQueue: what waits there for a while may wait for ever when another takes
        # what woke it (CPython 3.11).
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._free = 0
        self.count = 0

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` in a thread, soon."""
        with self._changed:
            if self._free:
                self._free -= 1
                self._jobs.append(job)
                self._changed.notify()
                return
            self.count += 1
        threading.Thread(target=self._serve, args=(job,), name=self._name, daemon=True).start()

    def _serve(self, job: Callable[[], None] | None) -> None:
        while job is not None:
            job()
            job = None  # what it holds must not wait with us
            job = self._next()

    def _next(self) -> Callable[[], None] | None:
        """Another job; None after too long without one."""
        ends = time.monotonic() + self._idle
        with self._changed:
            self._free += 1
            while not self._jobs:
                left = ends - time.monotonic()
                if left <= 0:
                    self._free -= 1
                    self.count -= 1
                    return None
                self._changed.wait(left)
            return self._jobs.popleft()
