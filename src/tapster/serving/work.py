"""A request to a model, and the answer of the batch that it ran in."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Signature
from tapster.serving.bills import Watched
from tapster.serving.slots import UNAVAILABLE, Region

# Values that are made Python's at once.
PIECE: Final = 1 << 15
# Answers beyond this are given only while there is memory for them.
LARGE_ANSWER: Final = 64 * 1024
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
            raise _uneven()

    @property
    def columns(self) -> list[tuple[list[Any], int, tuple[int, ...]]]:
        """The outputs as flat lists, made at first need."""
        if self._columns is None:
            self._columns = [
                (_listed(output.ravel()), output.size // self.rows, output.shape)
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


def _listed(values: Array) -> list[Any]:
    """The values of a flat array; those of a long one in pieces, for the other threads' sake."""
    found: list[Any] = []
    if values.size <= PIECE:
        found = values.tolist()
        return found
    for at in range(0, values.size, PIECE):
        found += values[at : at + PIECE].tolist()
    return found


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

    def withhold(self, size: int) -> TapsterError | None:
        """What is wrong with giving a large answer of so many bytes; None as a rule."""
        ...

    def succeed(self, body: bytes) -> None:
        """Give the answer (on the event loop), which is counted already."""
        ...

    def fail(self, error: Failure) -> None:
        """Count and give an error (on the event loop)."""
        ...


def deliver(
    region: Region, outcomes: Sequence[tuple[Work, bytes | Failure]], began: int, ran: int
) -> None:
    """Answer what still waits; what is served is counted before any of it is written.

    The batch began to run at `began` (monotonic clock) and took `ran`, both in nanoseconds. Of
    what was counted nothing is ever taken back, so a large answer is counted by itself, once there
    is memory for it.
    """
    waiting = [pair for pair in outcomes if not pair[0].done]
    good = [work for work, outcome in waiting if isinstance(outcome, bytes)]
    large = [work for work, body in waiting if isinstance(body, bytes) and len(body) > LARGE_ANSWER]
    spent = dict.fromkeys(large, 0)
    if large:
        rows = sum([work.rows for work in good]) or 1
        spent = {work: ran * work.rows // rows for work in large}
        good = [work for work in good if work not in spent]
        ran -= sum(spent.values())
    region.served(good, time.monotonic_ns(), began, ran)
    for work, outcome in waiting:
        if work.done:  # its connection ended with an answer before it
            continue
        if not isinstance(outcome, bytes):
            work.fail(outcome)
        elif work not in spent or _admit(region, work, len(outcome), began, spent[work]):
            work.succeed(outcome)


def _admit(region: Region, work: Work, size: int, began: int, spent: int) -> bool:
    """Whether a large answer may be given; it is counted either way."""
    error = work.withhold(size)
    if error is None:
        region.served([work], time.monotonic_ns(), began, spent)
        return True
    region.count(work.place, UNAVAILABLE)
    work.fail(error)
    return False


def packed_input(signature: Signature) -> tuple[str, int] | None:
    """The name and width of a model's only input, if its rows are so many 32-bit floats."""
    if len(signature.inputs) == 1:
        spec = signature.inputs[0]
        if spec.datatype == "FP32" and len(spec.shape) == 2 and spec.shape[0] < 0 < spec.shape[1]:
            return spec.name, spec.shape[1]
    return None


def gather(batch: Sequence[Work], packed: tuple[str, int] | None) -> dict[str, Array]:
    """The inputs of a batch, one request's rows after another's; `packed` as above."""
    arrays = [work.inputs for work in batch if not isinstance(work.inputs, bytes)]
    if packed is None or len(arrays) == len(batch):
        first = arrays[0]
        if len(arrays) == 1:
            return first
        return {name: np.concatenate([each[name] for each in arrays]) for name in first}
    name, width = packed
    values = b"".join(
        [
            given if isinstance(given := work.inputs, bytes) else given[name].tobytes()
            for work in batch
        ]
    )
    return {name: np.frombuffer(values, np.float32).reshape(-1, width)}


def in_slices(
    run: Callable[[dict[str, Array]], list[Array]], inputs: dict[str, Array], rows: int, size: int
) -> list[Array]:
    """The outputs of `run` for `rows` rows, asked for `size` at a time.

    Raises TapsterError(internal) when the model does not answer row by row.
    """
    parts = []
    for start in range(0, rows, size):
        part = run({name: array[start : start + size] for name, array in inputs.items()})
        count = min(size, rows - start)
        if any(output.shape[:1] != (count,) for output in part):
            raise _uneven()
        parts.append(part)
    try:
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    except ValueError:
        raise _uneven() from None


def _uneven() -> TapsterError:
    return TapsterError("internal", "the model did not answer row by row")
