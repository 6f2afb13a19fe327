"""Threads in which models are loaded, so that the event loop goes on meanwhile."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tapster.core import heap

LOADERS: Final = 2
# malloc keeps what loads have freed until it is told otherwise.
TRIM_EVERY: Final = 64

_Job = tuple[int, int, Callable[[], Any], Callable[[Any, BaseException | None], None]]


class Loader:
    """A few threads for jobs that may take long; what somebody waits for goes first.

    Two, so that a small model need not wait until a large one is read. They end with the process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int = LOADERS) -> None:
        self._loop = loop
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._most = threads
        self._threads = 0

    def submit(
        self,
        job: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None] = lambda result, error: None,
        *,
        urgent: bool = False,
    ) -> None:
        """Run `job`, then `done` with its result or its error on the event loop."""
        self._jobs.put((0 if urgent else 1, next(self._numbers), job, done))
        if self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._serve, name="load", daemon=True).start()

    def _serve(self) -> None:
        for count in itertools.count(1):
            if self._jobs.empty() or count % TRIM_EVERY == 0:
                heap.trim()
            *_, job, done = self._jobs.get()
            try:
                told = partial(done, job(), None)
            except BaseException as error:
                told = partial(done, None, error)
            self._loop.call_soon_threadsafe(told)
            del job, done, told  # what they hold must not wait with us
