"""Requests in, batches out: what one turn of the event loop parsed runs as one batch.

Work is inline while it fits the turn's budget (rows times measured cost), else in a thread; ONNX
Runtime gives the interpreter lock back. When not all that waits goes into one batch, tenants take
turns.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.runtimes import LoadedModel
from tapster.serving.costs import Budget, Cost
from tapster.serving.expiry import Guard
from tapster.serving.queues import Queue, Room
from tapster.serving.runs import Outcome, Run, Runner, too_late
from tapster.serving.slots import CANCELLED, EXPIRED, QUEUE_FULL, UNAVAILABLE, Region
from tapster.serving.threads import Threads
from tapster.serving.work import Answer, Failure, Inputs, Work, deliver

__all__ = ["Answer", "Batcher", "Failure", "Inputs", "Means", "Work"]

OVERRUN: Final = 4.0
EXILE: Final = 5.0
LONGEST_EXILE: Final = 300.0
# A run that ends at its deadline may still say so itself.
LATE: Final = 0.05
# How often a run is asked whether anybody still waits for it.
ASK_SECONDS: Final = 0.25
# Callers who have just been answered are waited for so long, if that saves a call.
LONGEST_WINDOW: Final = 0.01
SHORTEST_WINDOW: Final = 0.001
LONGEST_RETRY: Final = 60.0
FULL: Final = "too many requests wait for this model"


@dataclass(frozen=True)
class Means:
    """What all batchers of a worker share."""

    budget: Budget
    region: Region
    threads: Threads
    guard: Guard
    weight: Callable[[str], float] = lambda tenant: 1.0  # of a tenant, while several wait


class Batcher:
    """The queue of one model. All methods but `_serve` and those it calls run on the event loop.

    In a thread, up to `concurrency` batches run at once and requests gather while they do. With
    no window of the endpoint's own, a request that finds the model idle runs at once, unless a
    larger batch has just been answered: its callers are waited for during half of what a call
    costs beyond its rows (10 ms at most), or until as many are back. A window that is set is
    waited for always, from the oldest request's arrival; neither when a deadline is near.

    Without its model (see `leave`) requests wait, and `wake` is called until `resume` is.
    """

    def __init__(
        self, loaded: LoadedModel, means: Means, cost: Cost, *, inline: bool, together: bool
    ) -> None:
        self.cost = cost
        self.used = time.monotonic_ns()
        self.wake: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._loaded: LoadedModel | None = loaded
        variable = any(-1 in spec.shape[1:] for spec in loaded.signature.inputs)
        self._queue = Queue(means.weight, together=together, shaped=variable)
        self._together = together
        self._mixes = together and not variable  # whatever waits may run together
        self._runner = Runner(loaded.signature, cost.most if together else sys.maxsize)
        self._budget = means.budget
        self._region = means.region
        self._threads = means.threads
        self._guard = means.guard
        self._inline = inline and not variable  # what a longer row costs nobody knows
        self._exiled_until = 0.0
        self._exile = EXILE
        self._scheduled = False
        self._runs: list[Run] = []
        self._company = 0
        self._company_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it rings
        self._leaving: Callable[[LoadedModel | None], None] | None = None
        self._most = 1024
        self._concurrency = 1
        self._window: float | None = None

    def __len__(self) -> int:
        return self._queue.count

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queue.count or self._runs)

    def configure(self, queue: int, concurrency: int, window: float | None) -> None:
        """How many requests may wait, how many batches run at once, how long company is awaited."""
        self._most = queue
        self._concurrency = concurrency
        self._window = window

    def submit(self, work: Work) -> None:
        """Queue a request.

        Raises TapsterError(unavailable) when the queue is full, unless a tenant that holds more of
        it gives way, and when so much goes before the request that it would be late.
        """
        queue = self._queue
        fullest = None
        if queue.count >= self._most:
            fullest = queue.fullest(work.tenant)
            if fullest is None:
                raise self._full(work, FULL)
        if self._runs:
            self._admit(work)
        if fullest is not None:
            self._oust(queue.oust(fullest))
        queue.append(work)
        if not self._scheduled:
            self._schedule()

    def expire(self, now: float) -> float:
        """See Guarded. Queued work past its deadline is dropped unrun.

        A run is ended at its deadline by the runtime; one that goes on is no longer waited for,
        and one that nobody waits for is called off.
        """
        late, gone = self._queue.expire(now)
        self._forget(gone)
        for work in late:
            self._region.count(work.place, EXPIRED)
            work.fail(too_late())
        moments = [work.deadline for work in self._queue]
        for run in self._runs:
            moments += [now + ASK_SECONDS, *self._look_after(run, now)]
        if not self._queue.count:
            self._settle()
        return min(moments, default=float("inf"))

    def lateness(self, now: float) -> float:
        """See Guarded."""
        return max((now - run.deadline for run in self._runs), default=0.0)

    def leave(self, left: Callable[[LoadedModel | None], None]) -> None:
        """Give the model away, to `left`, once nothing waits or runs; None if there is none."""
        self._leaving = left
        self._settle()

    def stay(self) -> None:
        """Keep the model after all, if it has not left."""
        self._leaving = None

    def resume(self, loaded: LoadedModel) -> None:
        """Take the model back, and run what has waited for it."""
        self._loaded = loaded
        self.used = time.monotonic_ns()
        self._schedule()

    def refuse(self, error: TapsterError) -> None:
        """Fail everything that waits: the model cannot be brought back."""
        for work in self._queue.drain():
            if not work.done:
                self._region.count(work.place, UNAVAILABLE)
                work.fail(error)
        self._settle()

    # -- who gets in

    def _admit(self, work: Work) -> None:
        """Refuse a request that others would make late; one to an idle model is always tried."""
        now = time.monotonic()
        left = work.deadline - now - self.cost.duration(work.rows)
        if self._wait(now) > left and self._wait(now, self._queue.ahead(work.tenant)) > left:
            raise self._full(work, "so many requests wait for this model that it would be late")
        self._guard.attend(self, work.deadline)

    def _wait(self, now: float, share: float = 1.0) -> float:
        """Seconds until a request would run that came now, after such a share of what waits."""
        rows, requests = share * self._queue.rows, share * self._queue.count
        ahead = self.cost.wait(rows, requests if not self._together else 0)
        if len(self._runs) < self._concurrency:
            return ahead / self._concurrency
        first = min([run.began + self.cost.duration(run.rows) for run in self._runs])
        return max(0.0, first - now) + ahead / self._concurrency

    def _full(self, work: Work, problem: str) -> TapsterError:
        self._region.count(work.place, QUEUE_FULL)
        seconds = min(max(1.0, self._wait(time.monotonic())), LONGEST_RETRY)
        return TapsterError(
            "unavailable",
            f"the server is full: {problem}",
            hint=f"try again in {seconds:.0f} s",
            retry_after=seconds,
        )

    def _oust(self, work: Work) -> None:
        """A request has given way to another tenant's."""
        if work.done:
            self._forget([work])
        else:
            work.fail(self._full(work, FULL))

    def _forget(self, gone: Sequence[Work]) -> None:
        for work in gone:
            self._region.count(work.place, CANCELLED)

    def _look_after(self, run: Run, now: float) -> list[float]:
        """Answer who has waited too long for a run; when the others will have."""
        for work in run.batch:
            if work.deadline + LATE <= now and not work.done:
                work.fail(too_late())
        moments = [work.deadline + LATE for work in run.batch if not work.done]
        if not moments and not run.stop.called:
            run.stop.call()
        return moments

    # -- who runs when

    def _schedule(self) -> None:
        if not self._scheduled and len(self._runs) < self._concurrency:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if len(self._runs) >= self._concurrency:
            return
        if self._loaded is None:
            self._await_model()
            return
        inline = self._inline and not (self._exiled_until and self._exiled)
        if (self._window or not inline) and self._queue.count and self._awaits_company():
            return
        batch = self._take_all() if inline else self._take()
        if batch:
            rows = sum([work.rows for work in batch])
            self._region.batch(rows)
            cost = self.cost
            if inline and rows <= cost.trusted and self._budget.take(cost.estimate(rows)):
                self._run_inline(batch, rows, self._loaded)
            else:
                self._hand_over(batch, rows, self._loaded)
        if self._queue.count:
            self._schedule()
        elif self._leaving is not None:
            self._settle()

    @property
    def _exiled(self) -> bool:
        return self._exiled_until > time.monotonic()

    def _await_model(self) -> None:
        if self._queue.count:
            self._guard.attend(self, min([work.deadline for work in self._queue]))
            self.wake()
        else:
            self._settle()

    def _awaits_company(self) -> bool:
        """Whether what waits should wait on, by the rule above; then a turn comes in time."""
        now = time.monotonic()
        until = self._awaited_until()
        if until <= now:
            return False
        tightest = min([work.deadline for work in self._queue])
        until = min(until, tightest - 2 * self.cost.duration(self._queue.rows))
        if until <= now:
            return False
        if self._timer is None or until < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = until
            self._timer = self._loop.call_later(until - now, self._time_is_up)
        return True

    def _awaited_until(self) -> float:
        if self._queue.rows >= self.cost.worthwhile or not self._together:
            return 0.0
        if self._window is None:
            return self._company_until if self._queue.count < self._company else 0.0
        oldest = min([work.began for work in self._queue])
        return oldest / 1e9 + self._window

    def _time_is_up(self) -> None:
        self._timer = None
        self._company = 0
        self._schedule()

    def _take_all(self) -> list[Work]:
        """Everything that waits, if it can run together, without those whose caller is gone.

        Of what several tenants have waiting, no more than is worth a run, by turns.
        """
        queue, cost = self._queue, self.cost
        most = cost.worthwhile if queue.contended else cost.most
        if queue.rows > most or not self._mixes:
            return self._take()
        everything = queue.drain()
        batch = [work for work in everything if not work.done]
        if len(batch) < len(everything):
            self._forget([work for work in everything if work.done])
        return batch

    def _take(self) -> list[Work]:
        batch, gone = self._queue.take(Room(self.cost, self._together))
        self._forget(gone)
        return batch

    # -- runs

    def _run_inline(self, batch: list[Work], rows: int, loaded: LoadedModel) -> None:
        runner = self._runner
        runner.writing = 0
        self.used = began = time.monotonic_ns()
        cpu = time.thread_time()
        outcomes = runner.outcomes(loaded, batch, None)
        spent = time.thread_time() - cpu
        took = time.monotonic_ns() - began
        self.cost.learn(rows, min(spent, took / 1e9))
        if spent > OVERRUN * self._budget.limit:
            self._exiled_until = time.monotonic() + self._exile
            self._exile = min(2 * self._exile, LONGEST_EXILE)
        deliver(self._region, list(zip(batch, outcomes, strict=True)), began, took - runner.writing)

    def _hand_over(self, batch: list[Work], rows: int, loaded: LoadedModel) -> None:
        run = Run(batch, rows)
        self._runs.append(run)
        self.used = time.monotonic_ns()
        first = min([work.deadline for work in batch])
        self._guard.attend(self, min(first, run.began + ASK_SECONDS))
        self._threads.start(partial(self._serve, run, loaded))

    def _serve(self, run: Run, loaded: LoadedModel) -> None:
        """In a thread."""
        began, cpu = time.monotonic_ns(), time.thread_time()
        try:
            outcomes = self._runner.outcomes(loaded, run.batch, run)
        except BaseException as error:
            outcomes = [error] * len(run.batch)
        spent = time.thread_time() - cpu
        run.ran = time.monotonic_ns() - began - run.writing
        self._loop.call_soon_threadsafe(self._handed_back, run, outcomes, began, spent)

    def _handed_back(self, run: Run, outcomes: list[Outcome], began: int, spent: float) -> None:
        self._runs.remove(run)
        took = time.monotonic_ns() - began
        self.cost.learn(run.rows, spent)
        self.cost.clock(run.rows, took / 1e9)
        window = min(self.cost.overhead / 2, LONGEST_WINDOW)
        self._company = len(run.batch)
        self._company_until = time.monotonic() + window if window >= SHORTEST_WINDOW else 0.0
        deliver(self._region, list(zip(run.batch, outcomes, strict=True)), began, run.ran)
        if self._queue.count:
            self._schedule()
        else:
            self._settle()

    def _settle(self) -> None:
        if self._leaving is None or self.busy:
            return
        left, self._leaving = self._leaving, None
        loaded, self._loaded = self._loaded, None
        left(loaded)
