"""Requests in, batches out: what one turn of the event loop parsed runs as one batch.

Work is inline while it fits the turn's budget (rows times measured cost), else in a thread; ONNX
Runtime gives the interpreter lock back. A batch that fails is run again request by request, so
that only the culprit sees the error.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tapster.contract.errors import Code, TapsterError
from tapster.contract.inference import Array
from tapster.runtimes import LoadedModel, Stop
from tapster.serving.costs import Budget, Cost
from tapster.serving.expiry import Guard
from tapster.serving.queues import Buckets, Line, Room
from tapster.serving.slots import CANCELLED, EXPIRED, QUEUE_FULL, UNAVAILABLE, Region
from tapster.serving.threads import Threads
from tapster.serving.work import Answer, Failure, Inputs, Work, gather, in_slices, packed_input

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

Outcome = bytes | Failure


@dataclass(frozen=True)
class Means:
    """What all batchers of a worker share."""

    budget: Budget
    region: Region
    threads: Threads
    guard: Guard


class _Run:
    """A batch in a thread. It ends at the latest of its requests' deadlines."""

    __slots__ = ("batch", "began", "deadline", "ran", "rows", "stop", "writing")

    def __init__(self, batch: list[Work], rows: int) -> None:
        self.batch = batch
        self.rows = rows
        self.began = time.monotonic()
        self.deadline = max([work.deadline for work in batch])
        self.stop = Stop()
        self.ran = 0  # nanoseconds in the thread, without those of `writing` answers
        self.writing = 0


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
        self._outputs = [spec.name for spec in loaded.signature.outputs]
        self._packed = packed_input(loaded.signature)
        variable = any(-1 in spec.shape[1:] for spec in loaded.signature.inputs)
        # That is the queue, unless shapes queue apart.
        self._line = None if variable and together else Line()
        self._queue: Line | Buckets = Buckets() if self._line is None else self._line
        self._rows = 0  # that wait
        self._together = together
        # A request of more rows is run in slices: what a model makes of a row may be large.
        self._slice = cost.most if together else sys.maxsize
        self._budget = means.budget
        self._region = means.region
        self._threads = means.threads
        self._guard = means.guard
        self._inline = inline and not variable  # what a longer row costs nobody knows
        self._exiled_until = 0.0
        self._exile = EXILE
        self._scheduled = False
        self._runs: list[_Run] = []
        self._company = 0
        self._company_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: Callable[[LoadedModel | None], None] | None = None
        self._most = 1024
        self._concurrency = 1
        self._window: float | None = None
        self.writing = 0  # as of a _Run, of the batch that runs inline

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queue or self._runs)

    def configure(self, queue: int, concurrency: int, window: float | None) -> None:
        """How many requests may wait, how many batches run at once, how long company is awaited."""
        self._most = queue
        self._concurrency = concurrency
        self._window = window

    def submit(self, work: Work) -> None:
        """Queue a request.

        Raises TapsterError(unavailable) when the queue is full, and when so much waits that the
        request would be late.
        """
        if len(self._queue) >= self._most:
            raise self._full(work, "too many requests wait for this model")
        if self._runs:
            self._admit(work)
        self._queue.append(work)
        self._rows += work.rows
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
            self._rows -= work.rows
            work.fail(_too_late())
        moments = [work.deadline for work in self._queue]
        for run in self._runs:
            moments += [now + ASK_SECONDS, *self._look_after(run, now)]
        if not self._queue:
            self._settle()
        return min(moments, default=float("inf"))

    def lateness(self, now: float) -> float:
        """See Guarded."""
        return max((now - run.deadline for run in self._runs), default=0.0)

    def leave(self, left: Callable[[LoadedModel | None], None]) -> None:
        """Give the model away, to `left`, once nothing waits or runs; None if there is none."""
        self._leaving = left
        self._settle()

    def resume(self, loaded: LoadedModel) -> None:
        """Take the model back, and run what has waited for it."""
        self._loaded = loaded
        self.used = time.monotonic_ns()
        self._schedule()

    def refuse(self, error: TapsterError) -> None:
        """Fail everything that waits: the model cannot be brought back."""
        self._rows = 0
        for work in self._queue.drain():
            if not work.done:
                self._region.count(work.place, UNAVAILABLE)
                work.fail(error)
        self._settle()

    # -- who gets in

    def _admit(self, work: Work) -> None:
        """Refuse a request that others would make late; one to an idle model is always tried."""
        now = time.monotonic()
        wait = self._wait(now)
        if now + wait + self.cost.duration(work.rows) > work.deadline:
            raise self._full(work, "so many requests wait for this model that it would be late")
        self._guard.attend(self, work.deadline)

    def _wait(self, now: float) -> float:
        """Seconds until a request that came now would run."""
        ahead = self.cost.wait(self._rows, len(self._queue) if not self._together else 0)
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

    def _forget(self, gone: Sequence[Work]) -> None:
        for work in gone:
            self._rows -= work.rows
            self._region.count(work.place, CANCELLED)

    def _look_after(self, run: _Run, now: float) -> list[float]:
        """Answer who has waited too long for a run; when the others will have."""
        for work in run.batch:
            if work.deadline + LATE <= now and not work.done:
                work.fail(_too_late())
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
        if (self._window or not inline) and self._queue and self._awaits_company():
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
        if self._queue:
            self._schedule()
        elif self._leaving is not None:
            self._settle()

    @property
    def _exiled(self) -> bool:
        return self._exiled_until > time.monotonic()

    def _await_model(self) -> None:
        if self._queue:
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
        until = min(until, tightest - 2 * self.cost.duration(self._rows))
        if until <= now:
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(until - now, self._time_is_up)
        return True

    def _awaited_until(self) -> float:
        if self._rows >= self.cost.worthwhile or not self._together:
            return 0.0
        if self._window is None:
            return self._company_until if len(self._queue) < self._company else 0.0
        oldest = min([work.began for work in self._queue])
        return oldest / 1e9 + self._window

    def _time_is_up(self) -> None:
        self._timer = None
        self._company = 0
        self._schedule()

    def _take_all(self) -> list[Work]:
        """Everything that waits, if it can run together, without those whose caller is gone."""
        queue = self._line
        if queue is None or not self._together or self._rows > self.cost.most:
            return self._take()
        batch = [work for work in queue if not work.done]
        if len(batch) < len(queue):
            self._forget([work for work in queue if work.done])
        queue.clear()
        self._rows = 0
        return batch

    def _take(self) -> list[Work]:
        batch, gone = self._queue.take(Room(self.cost, self._together))
        self._forget(gone)
        self._rows -= sum([work.rows for work in batch])
        return batch

    # -- runs

    def _run_inline(self, batch: list[Work], rows: int, loaded: LoadedModel) -> None:
        self.writing = 0
        self.used = began = time.monotonic_ns()
        cpu = time.thread_time()
        outcomes = self._outcomes(loaded, batch, None)
        spent = time.thread_time() - cpu
        took = time.monotonic_ns() - began
        self.cost.learn(rows, min(spent, took / 1e9))
        if spent > OVERRUN * self._budget.limit:
            self._exiled_until = time.monotonic() + self._exile
            self._exile = min(2 * self._exile, LONGEST_EXILE)
        self._deliver(batch, outcomes, began, took - self.writing)

    def _hand_over(self, batch: list[Work], rows: int, loaded: LoadedModel) -> None:
        run = _Run(batch, rows)
        self._runs.append(run)
        self.used = time.monotonic_ns()
        first = min([work.deadline for work in batch])
        self._guard.attend(self, min(first, run.began + ASK_SECONDS))
        self._threads.start(partial(self._serve, run, loaded))

    def _serve(self, run: _Run, loaded: LoadedModel) -> None:
        """In a thread."""
        began, cpu = time.monotonic_ns(), time.thread_time()
        try:
            outcomes = self._outcomes(loaded, run.batch, run)
        except BaseException as error:
            outcomes = [error] * len(run.batch)
        spent = time.thread_time() - cpu
        run.ran = time.monotonic_ns() - began - run.writing
        self._loop.call_soon_threadsafe(self._handed_back, run, outcomes, began, spent)

    def _handed_back(self, run: _Run, outcomes: list[Outcome], began: int, spent: float) -> None:
        self._runs.remove(run)
        took = time.monotonic_ns() - began
        self.cost.learn(run.rows, spent)
        self.cost.clock(run.rows, took / 1e9)
        window = min(self.cost.overhead / 2, LONGEST_WINDOW)
        self._company = len(run.batch)
        self._company_until = time.monotonic() + window if window >= SHORTEST_WINDOW else 0.0
        self._deliver(run.batch, outcomes, began, run.ran)
        if self._queue:
            self._schedule()
        else:
            self._settle()

    def _outcomes(self, loaded: LoadedModel, batch: list[Work], run: _Run | None) -> list[Outcome]:
        """A body or an error for each request of the batch."""
        try:
            return self._bodies(loaded, batch, run)
        except Exception as error:
            if len(batch) == 1 or (run is not None and _ended(error)):
                return [error] * len(batch)
        return [
            one
            for work in batch
            for one in ([_too_late()] if run and work.done else self._outcomes(loaded, [work], run))
        ]

    def _bodies(self, loaded: LoadedModel, batch: list[Work], run: _Run | None) -> list[Outcome]:
        rows = sum([work.rows for work in batch])
        inputs = gather(batch, self._packed)
        if rows > self._slice:
            outputs = in_slices(partial(self._once, loaded, run=run), inputs, rows, self._slice)
        else:
            outputs = self._once(loaded, inputs, run)
        answer = Answer(outputs, rows, len(batch))
        ran = time.monotonic_ns()
        bodies: list[Outcome] = []
        start = 0
        for work in batch:
            bodies.append(work.render(answer, start))
            start += work.rows
        (run or self).writing += time.monotonic_ns() - ran
        return bodies

    def _once(self, loaded: LoadedModel, inputs: dict[str, Array], run: _Run | None) -> list[Array]:
        if run is None:
            return loaded.run(inputs, self._outputs)
        return loaded.run(inputs, self._outputs, run.deadline, run.stop)

    def _deliver(self, batch: list[Work], outcomes: list[Outcome], began: int, ran: int) -> None:
        """Answer what still waits; what is served is counted before any of it is written."""
        waiting = [pair for pair in zip(batch, outcomes, strict=True) if not pair[0].done]
        good = [work for work, outcome in waiting if isinstance(outcome, bytes)]
        self._region.served(good, time.monotonic_ns(), began, ran)
        for work, outcome in waiting:
            if work.done:  # its connection ended with an answer before it
                continue
            if isinstance(outcome, bytes):
                work.succeed(outcome)
            else:
                work.fail(outcome)

    def _settle(self) -> None:
        if self._leaving is None or self.busy:
            return
        left, self._leaving = self._leaving, None
        loaded, self._loaded = self._loaded, None
        left(loaded)


def _ended(error: Exception) -> bool:
    """Whether a run was ended because of the time, so that there is none to try again."""
    return isinstance(error, TapsterError) and error.code in _ENDED


_ENDED: Final[frozenset[Code]] = frozenset({"deadline", "cancelled"})


def _too_late() -> TapsterError:
    return TapsterError("deadline", "the model did not answer in time")
