"""Threads for what takes too long on the event loop; tenants take turns at them.

Start-time fair queueing, as of requests (see `queues`), but by the time that jobs have really
taken: nobody knows before how long a body takes to read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from tapster.serving.queues import LEAST_WEIGHT

T = TypeVar("T")
# Jobs that a thread has been given: the one it does, and the next, so that it need not wait.
GIVEN: Final = 2


class Job(NamedTuple):
    """Something to do, and whom to tell."""

    done: "asyncio.Future[Any]"
    work: Callable[[], Any]


class Visitor:
    """A tenant with jobs, the next of which is `due` in virtual time (seconds of the thread)."""

    __slots__ = ("due", "jobs", "weight")

    def __init__(self, due: float, weight: float) -> None:
        self.due = due
        self.weight = weight
        self.jobs: deque[Job] = deque()


class Desk:
    """One thread. Every method runs on the event loop; `weight` is a tenant's."""

    def __init__(self, name: str, weight: Callable[[str], float]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._weight = weight
        self._visitors: dict[str, Visitor] = {}
        self._given = 0
        self._now = 0.0

    def run(self, tenant: str, work: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        """Have something done in the thread, at a tenant's turn."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        visitor = self._visitors.get(tenant)
        if visitor is None:
            weight = max(self._weight(tenant), LEAST_WEIGHT)
            visitor = self._visitors[tenant] = Visitor(self._now, weight)
        elif not visitor.jobs:
            visitor.due = max(visitor.due, self._now)
        visitor.jobs.append(Job(done, partial(work, *arguments)))
        self._give()
        return done

    def _give(self) -> None:
        """Give the thread jobs of those who are next."""
        while self._given < GIVEN:
            waiting = [visitor for visitor in self._visitors.values() if visitor.jobs]
            if not waiting:
                break
            visitor = min(waiting, key=lambda each: each.due)
            self._now = max(self._now, visitor.due)
            job = visitor.jobs.popleft()
            self._given += 1
            loop = asyncio.get_running_loop()
            given = loop.run_in_executor(self._thread, _timed, job.work)
            given.add_done_callback(partial(self._returned, visitor, job.done))

    def _returned(
        self, visitor: Visitor, done: "asyncio.Future[Any]", given: "asyncio.Future[Any]"
    ) -> None:
        self._given -= 1
        if given.cancelled():
            done.cancel()
            return
        seconds, result, error = given.result()
        visitor.due += seconds / visitor.weight
        self._give()
        if not self._given:
            self._visitors.clear()
            self._now = 0.0
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)


def _timed(work: Callable[[], Any]) -> tuple[float, Any, BaseException | None]:
    """In the thread: seconds, what came of it, or what went wrong."""
    began = time.perf_counter()
    try:
        result = work()
    except BaseException as error:
        return time.perf_counter() - began, None, error
    return time.perf_counter() - began, result, None
