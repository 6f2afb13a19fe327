"""Requests in, batches out: what one turn of the event loop parsed runs as one batch.

Work is inline while it fits the turn's budget (rows times measured cost), else on the model's own
thread; ONNX Runtime gives the interpreter lock back. A batch that fails is run again request by
request, so that only the culprit sees the error.
"""

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Signature
from tapster.runtimes import LoadedModel
from tapster.serving.slots import Region, Watched

MAX_QUEUE: Final = 1024
MAX_ROWS: Final = 1024
OVERRUN: Final = 4.0
EXILE: Final = 5.0
LONGEST_EXILE: Final = 300.0
LATE: Final = 0.1

Failure = BaseException
# Arrays by input name; or the 32-bit floats of all rows, where `packed_input` gives their place.
Inputs = dict[str, Array] | bytes


class Answer:
    """A batch's outputs: as arrays, and as flat lists made once for all its requests.

    `arrays` holds an array for each output of the signature, `columns` (values, values a row,
    shape); the values of row i are `values[i * width : (i + 1) * width]`. `alone` says that the
    batch is one request. `finite` says that no float is NaN or infinite, nor their sum, which is
    quicker to ask. `singly` says that every request is one row; then `spelled` is where a wire
    keeps what it has written for all rows, under its own key. `note` is what the answer must say
    about itself, empty as a rule.
    """

    __slots__ = ("_columns", "_finite", "alone", "arrays", "note", "rows", "singly", "spelled")

    def __init__(self, outputs: Sequence[Array], rows: int, requests: int) -> None:
        self.rows = rows
        self.arrays = outputs
        self.alone = requests == 1
        self.singly = requests == rows
        self.spelled: dict[object, list[bytes]] = {}
        self.note: dict[str, Any] = {}
        self._columns: list[tuple[list[Any], int, tuple[int, ...]]] | None = None
        self._finite = True
        if not self.alone and any(output.shape[:1] != (rows,) for output in outputs):
            raise TapsterError("internal", "the model did not answer row by row")

    @property
    def columns(self) -> list[tuple[list[Any], int, tuple[int, ...]]]:
        """The outputs as flat lists, made at first need."""
        if self._columns is None:
            self._columns = [
                (output.ravel().tolist(), output.size // self.rows, output.shape)
                for output in self.arrays
            ]
            self._finite = all(
                math.isfinite(sum(column[0]))
                for output, column in zip(self.arrays, self._columns, strict=True)
                if output.dtype.kind == "f"
            )
        return self._columns

    @property
    def finite(self) -> bool:
        """Whether every float can be written as a JSON number."""
        return self._finite if self._columns is not None else bool(self.columns) and self._finite


class Work(Watched, Protocol):
    """One request, from its arrival until its answer is given.

    `deadline` is on the monotonic clock, in seconds. `done` once it is answered, or its caller
    gone.
    """

    inputs: Inputs
    deadline: float
    done: bool
    tenant: str

    def render(self, answer: Answer, first: int) -> bytes:
        """The answer's body, from the batch's rows `first` and following."""
        ...

    def succeed(self, body: bytes) -> None:
        """Give the answer (on the event loop), which is counted already."""
        ...

    def fail(self, error: Failure) -> None:
        """Count and give an error (on the event loop)."""
        ...


class Budget:
    """Seconds of inline model work that one turn of the event loop may spend."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self.limit = limit
        self._loop = loop
        self._spent = 0.0

    def take(self, estimate: float) -> bool:
        """Spend `estimate` seconds of this turn, if so much is left."""
        if self._spent + estimate > self.limit:
            return False
        if self._spent == 0.0:
            self._loop.call_soon(self._renew)
        self._spent += estimate
        return True

    def _renew(self) -> None:
        self._spent = 0.0


class Cost:
    """What a run costs: seconds a call and a row, corrected by what runs really took."""

    def __init__(self, call: float, row: float) -> None:
        self._call = max(call, 1e-7)
        self._row = max(row, 1e-9)
        self._scale = 1.0

    def estimate(self, rows: int) -> float:
        """Seconds that a batch of `rows` should take."""
        return (self._call + rows * self._row) * self._scale

    def learn(self, rows: int, seconds: float) -> None:
        """Move a tenth of the way to what a batch really took."""
        ratio = seconds / (self._call + rows * self._row)
        self._scale = min(max(0.9 * self._scale + 0.1 * ratio, 0.05), 1000.0)


Outcome = bytes | Failure


class Batcher:
    """The queue of one model. All methods but `_serve` and `_outcomes` run on the event loop."""

    def __init__(
        self,
        loaded: LoadedModel,
        budget: Budget,
        region: Region,
        cost: Cost,
        *,
        inline: bool,
        together: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._loaded = loaded
        self._outputs = [spec.name for spec in loaded.signature.outputs]
        self._packed = packed_input(loaded.signature)
        self._ragged = any(-1 in spec.shape[1:] for spec in loaded.signature.inputs)
        self._together = together
        self._budget = budget
        self._region = region
        self._cost = cost
        self._inline = inline
        self._exiled_until = 0.0
        self._exile = EXILE
        self._queue: deque[Work] = deque()
        self._scheduled = False
        self._running: list[Work] = []
        self._jobs: queue.SimpleQueue[list[Work] | None] | None = None
        self._closing: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queue or self._running)

    def submit(self, work: Work) -> None:
        """Queue a request. Raises TapsterError(unavailable) when the queue is full."""
        if len(self._queue) >= MAX_QUEUE:
            raise TapsterError(
                "unavailable",
                "the server is full: too many requests wait for this model",
                hint="try again in a second",
            )
        self._queue.append(work)
        if not self._scheduled:
            self._schedule()

    def expire(self, now: float) -> float:
        """Fail what is past its deadline; returns how late the running batch is, in seconds.

        Queued work is dropped unrun. A run is asked to stop at its deadline by the runtime; one
        that does not is no longer waited for.
        """
        if any(work.deadline <= now for work in self._queue):
            expired = [work for work in self._queue if work.deadline <= now]
            self._queue = deque(work for work in self._queue if work.deadline > now)
            for work in expired:
                work.fail(_too_late())
        for work in self._running:
            if work.deadline + LATE <= now and not work.done:
                work.fail(_too_late())
        return max((now - work.deadline for work in self._running), default=0.0)

    def close(self, closed: Callable[[], None]) -> None:
        """Close the model once nothing waits or runs, then call `closed`."""
        self._closing = closed
        self._settle()

    def _schedule(self) -> None:
        if not self._scheduled and not self._running:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._running:
            return
        batch = self._take()
        if batch:
            rows = sum([work.rows for work in batch])
            self._region.batch(rows)
            if self._may_inline(rows):
                self._run_inline(batch, rows)
            else:
                self._hand_over(batch)
        if self._queue:
            self._schedule()
        else:
            self._settle()

    def _take(self) -> list[Work]:
        """The oldest requests that can run together, without those whose caller is gone."""
        if self._together and not self._ragged:
            batch = [work for work in self._queue if not work.done]
            if sum([work.rows for work in batch]) <= MAX_ROWS:
                self._queue.clear()
                return batch
        return self._take_some()

    def _take_some(self) -> list[Work]:
        batch: list[Work] = []
        rows = 0
        waiting = self._queue
        while waiting:
            work = waiting[0]
            if work.done:
                waiting.popleft()
                continue
            if batch and not (
                self._together
                and rows + work.rows <= MAX_ROWS
                and (not self._ragged or _fits(batch[0], work))
            ):
                break
            batch.append(waiting.popleft())
            rows += work.rows
        return batch

    def _may_inline(self, rows: int) -> bool:
        if not self._inline:
            return False
        if self._exiled_until and self._exiled_until > time.monotonic():
            return False
        return self._budget.take(self._cost.estimate(rows))

    def _run_inline(self, batch: list[Work], rows: int) -> None:
        began, cpu = time.monotonic_ns(), time.thread_time()
        outcomes = self._outcomes(batch, None)
        spent = time.thread_time() - cpu
        took = time.monotonic_ns() - began
        self._cost.learn(rows, min(spent, took / 1e9))
        if spent > OVERRUN * self._budget.limit:
            self._exiled_until = time.monotonic() + self._exile
            self._exile = min(2 * self._exile, LONGEST_EXILE)
        self._deliver(batch, outcomes, began, took)

    def _hand_over(self, batch: list[Work]) -> None:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(self._jobs,), daemon=True).start()
        self._running = batch
        self._jobs.put(batch)

    def _serve(self, jobs: "queue.SimpleQueue[list[Work] | None]") -> None:
        """The model's own thread."""
        while (batch := jobs.get()) is not None:
            began, cpu = time.monotonic_ns(), time.thread_time()
            outcomes = self._outcomes(batch, max(work.deadline for work in batch))
            spent = time.thread_time() - cpu
            self._loop.call_soon_threadsafe(self._handed_back, batch, outcomes, began, spent)

    def _handed_back(
        self, batch: list[Work], outcomes: list[Outcome], began: int, spent: float
    ) -> None:
        self._running = []
        self._cost.learn(sum(work.rows for work in batch), spent)
        self._deliver(batch, outcomes, began, time.monotonic_ns() - began)
        if self._queue:
            self._schedule()
        else:
            self._settle()

    def _outcomes(self, batch: list[Work], deadline: float | None) -> list[Outcome]:
        """A body or an error for each request of the batch."""
        try:
            return self._bodies(batch, deadline)
        except Exception as error:
            late = isinstance(error, TapsterError) and error.code == "deadline"
            if len(batch) == 1 or (late and deadline is not None):
                return [error] * len(batch)
        return [one for work in batch for one in self._outcomes([work], deadline)]

    def _bodies(self, batch: list[Work], deadline: float | None) -> list[Outcome]:
        rows = sum([work.rows for work in batch])
        inputs = self._gathered(batch)
        answer = Answer(self._loaded.run(inputs, self._outputs, deadline), rows, len(batch))
        bodies: list[Outcome] = []
        start = 0
        for work in batch:
            bodies.append(work.render(answer, start))
            start += work.rows
        return bodies

    def _gathered(self, batch: list[Work]) -> dict[str, Array]:
        """The inputs of a batch, one request's rows after another's."""
        arrays = [work.inputs for work in batch if not isinstance(work.inputs, bytes)]
        if self._packed is None or len(arrays) == len(batch):
            first = arrays[0]
            if len(arrays) == 1:
                return first
            return {name: np.concatenate([each[name] for each in arrays]) for name in first}
        name, width = self._packed
        values = b"".join(
            [
                given if isinstance(given := work.inputs, bytes) else given[name].tobytes()
                for work in batch
            ]
        )
        return {name: np.frombuffer(values, np.float32).reshape(-1, width)}

    def _deliver(self, batch: list[Work], outcomes: list[Outcome], began: int, took: int) -> None:
        """Answer what still waits; what is served is counted before any of it is written."""
        waiting = [pair for pair in zip(batch, outcomes, strict=True) if not pair[0].done]
        good = [work for work, outcome in waiting if isinstance(outcome, bytes)]
        self._region.served(good, time.monotonic_ns(), began, took)
        for work, outcome in waiting:
            if work.done:  # its connection ended with an answer before it
                continue
            if isinstance(outcome, bytes):
                work.succeed(outcome)
            else:
                work.fail(outcome)

    def _settle(self) -> None:
        if self._closing is None or self.busy:
            return
        closed, self._closing = self._closing, None
        if self._jobs is not None:
            self._jobs.put(None)
        self._loaded.close()
        closed()


def packed_input(signature: Signature) -> tuple[str, int] | None:
    """The name and width of a model's only input, if its rows are so many 32-bit floats."""
    if len(signature.inputs) == 1:
        spec = signature.inputs[0]
        if spec.datatype == "FP32" and len(spec.shape) == 2 and spec.shape[0] < 0 < spec.shape[1]:
            return spec.name, spec.shape[1]
    return None


def _fits(first: Work, other: Work) -> bool:
    if isinstance(first.inputs, bytes) or isinstance(other.inputs, bytes):
        return True  # packed rows are of one width
    there = other.inputs
    return all(array.shape[1:] == there[name].shape[1:] for name, array in first.inputs.items())


def _too_late() -> TapsterError:
    return TapsterError("deadline", "the model did not answer in time")
