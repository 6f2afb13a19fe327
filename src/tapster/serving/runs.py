"""Runs of a model: a batch in, and out a body or an error for each of its requests."""

import time
from functools import partial
from typing import Final

from tapster.contract.errors import Code, TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Signature
from tapster.runtimes import LoadedModel, Stop
from tapster.serving.work import Answer, Failure, Work, gather, in_slices, packed_input

Outcome = bytes | Failure

_ENDED: Final[frozenset[Code]] = frozenset({"deadline", "cancelled"})


class Run:
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


class Runner:
    """How batches are put to a model, in `slices` of rows: what it makes of a row may be large.

    A batch that fails is run again request by request, so that only the culprit sees the error.
    """

    def __init__(self, signature: Signature, slices: int) -> None:
        self._outputs = [spec.name for spec in signature.outputs]
        self._packed = packed_input(signature)
        self._slices = slices
        self.writing = 0  # as of a Run, of the batch that runs inline

    def outcomes(self, loaded: LoadedModel, batch: list[Work], run: Run | None) -> list[Outcome]:
        """A body or an error for each request of the batch; without a `run` it is inline."""
        try:
            return self._bodies(loaded, batch, run)
        except Exception as error:
            if len(batch) == 1 or (run is not None and _ended(error)):
                return [error] * len(batch)
        return [
            one
            for work in batch
            for one in ([too_late()] if run and work.done else self.outcomes(loaded, [work], run))
        ]

    def _bodies(self, loaded: LoadedModel, batch: list[Work], run: Run | None) -> list[Outcome]:
        rows = sum([work.rows for work in batch])
        inputs = gather(batch, self._packed)
        if rows > self._slices:
            outputs = in_slices(partial(self._once, loaded, run=run), inputs, rows, self._slices)
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

    def _once(self, loaded: LoadedModel, inputs: dict[str, Array], run: Run | None) -> list[Array]:
        if run is None:
            return loaded.run(inputs, self._outputs)
        return loaded.run(inputs, self._outputs, run.deadline, run.stop)


def too_late() -> TapsterError:
    """What to say to those whose time is over."""
    return TapsterError("deadline", "the model did not answer in time")


def _ended(error: Exception) -> bool:
    """Whether a run was ended because of the time, so that there is none to try again."""
    return isinstance(error, TapsterError) and error.code in _ENDED
