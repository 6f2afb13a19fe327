"""Parity vectors: inputs and the trainer's own answers, recorded once and replayed at every load.

The file is msgpack and bit-exact. Scores must agree within the manifest's tolerance; a label must
agree wherever the recorded margin between the two best classes exceeds `tolerance.margin`, and
below it may flip to a class that close to the best. NaN equals NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Tolerance
from tapster.runtimes import LoadedModel

PREDICTION: Final = "prediction"
PROBABILITIES: Final = "probabilities"
_SHOWN: Final = 5

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Mismatch:
    """A recorded answer that did not come back: where, and both values."""

    row: int
    output: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"row {self.row}, {self.output}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Vector:
    """One recorded batch. `independent`: a row's answer does not depend on its neighbours."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    independent: bool = True


class _Stored(msgspec.Struct, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[str]


class _StoredVector(msgspec.Struct):
    inputs: dict[str, _Stored]
    outputs: dict[str, _Stored]
    independent: bool = True


class _File(msgspec.Struct):
    vectors: list[_StoredVector]
    version: int = 1


_FILES: Final = msgspec.msgpack.Decoder(_File)


def record(inputs: Tensors, outputs: Tensors, sizes: Sequence[int] = ()) -> bytes:
    """Store one table of rows and their answers; arrays share their first dimension.

    `sizes` cuts the rows into consecutive batches of those sizes, and a last one of the rest, so
    that a replay sees several batch sizes.
    """
    rows = len(next(iter(inputs.values())))
    edges = [0]
    for size in sizes:
        edges.append(min(rows, edges[-1] + size))
    edges.append(rows)
    return record_batches(
        [
            Vector(_rows(inputs, slice(a, b)), _rows(outputs, slice(a, b)))
            for a, b in pairwise(edges)
            if b > a
        ]
    )


def record_batches(vectors: Sequence[Vector]) -> bytes:
    """Store batches as they were answered, for models whose answers depend on the batch."""
    return msgspec.msgpack.encode(
        _File(
            vectors=[
                _StoredVector(
                    inputs={name: _store(array) for name, array in vector.inputs.items()},
                    outputs={name: _store(array) for name, array in vector.outputs.items()},
                    independent=vector.independent,
                )
                for vector in vectors
            ]
        )
    )


def load(data: bytes) -> list[Vector]:
    """The batches of a parity file. Raises TapsterError(unprocessable) for anything else."""
    try:
        file = _FILES.decode(data)
        return [
            Vector(
                {name: _restore(stored) for name, stored in vector.inputs.items()},
                {name: _restore(stored) for name, stored in vector.outputs.items()},
                vector.independent,
            )
            for vector in file.vectors
        ]
    except (msgspec.MsgspecError, ValueError, TypeError, UnicodeDecodeError):
        raise TapsterError(
            "unprocessable",
            "the package's parity vectors cannot be read",
            hint="train or import the model again",
        ) from None


def compare(
    expected: Tensors,
    got: Tensors,
    tolerance: Tolerance,
    classes: Sequence[str | int | float | bool] = (),
) -> list[Mismatch]:
    """Every row and output where `got` is not `expected`, by the rule at the top of this file.

    `classes` in the order of the columns of `probabilities` also checks that a label which
    flipped within the margin went to a class that close to the best.
    """
    found: list[Mismatch] = []
    scores = expected.get(PROBABILITIES)
    for name, recorded in expected.items():
        wanted, given = np.atleast_1d(recorded), np.atleast_1d(got[name])
        if given.shape != wanted.shape:
            shapes = (str(list(wanted.shape)), str(list(given.shape)))
            found.append(Mismatch(0, name, f"shape {shapes[0]}", f"shape {shapes[1]}"))
            continue
        if name == PREDICTION and scores is not None and scores.ndim == 2:
            bad = _flipped(wanted, given, scores, tolerance.margin, classes)
        elif wanted.dtype.kind == "f" and given.dtype.kind == "f":
            bad = ~_close(wanted, given, tolerance)
        else:
            bad = np.not_equal(wanted, given)
        found.extend(_mismatches(name, wanted, given, bad))
    return found


def replay(model: LoadedModel, data: bytes, tolerance: Tolerance, alone: int = 3) -> int:
    """Run every recorded batch whole, and up to `alone` rows of each again by themselves.

    Returns the number of rows replayed. Raises TapsterError(unprocessable) with the offending
    rows when an answer differs, when the model refuses a recorded input and when there is nothing
    recorded.
    """
    vectors = load(data)
    if not any(vector.outputs for vector in vectors):
        raise TapsterError(
            "unprocessable",
            "the package has no parity vectors, so its answers cannot be checked",
            hint="train or import the model again",
        )
    count = 0
    for vector in vectors:
        rows = len(np.atleast_1d(next(iter(vector.outputs.values()))))
        _replay_batch(model, vector.inputs, vector.outputs, tolerance, count)
        if vector.independent and rows > 1:
            for row in _spread(rows, alone):
                one = slice(row, row + 1)
                _replay_batch(
                    model,
                    _rows(vector.inputs, one),
                    _rows(vector.outputs, one),
                    tolerance,
                    count + row,
                )
        count += rows
    return count


def _replay_batch(
    model: LoadedModel, inputs: dict[str, Array], outputs: Tensors, tolerance: Tolerance, first: int
) -> None:
    names = list(outputs)
    try:
        answers = model.run(inputs, names)
    except TapsterError as error:
        raise TapsterError(
            "unprocessable",
            f"the model refuses a recorded input of its own: {error.message}",
            hint="train or import the model again",
        ) from None
    got = dict(zip(names, answers, strict=True))
    if bad := compare(outputs, got, tolerance, model.signature.classes):
        raise mismatch_error(bad, first)


def mismatch_error(found: Sequence[Mismatch], first: int = 0) -> TapsterError:
    """TapsterError(unprocessable) that shows the first few; `first` is the first row's number."""
    rows = {item.row for item in found}
    shown = "; ".join(
        str(Mismatch(item.row + first, item.output, item.expected, item.got))
        for item in found[:_SHOWN]
    )
    return TapsterError(
        "unprocessable",
        f"the model does not reproduce its recorded answers in {len(rows)}"
        f" row{'s' if len(rows) > 1 else ''}: {shown}",
        hint="its graph, or the runtime that ran it, differs from what was sealed; train again",
    )


def _close(wanted: Array, given: Array, tolerance: Tolerance) -> Array:
    """|a - b| <= atol + rtol * |b| with b recorded, in 64 bits; equal infinities and NaN agree."""
    a: Array = np.atleast_1d(given.astype(np.float64))
    b: Array = np.atleast_1d(wanted.astype(np.float64))
    with np.errstate(invalid="ignore"):
        near: Array = np.less_equal(np.abs(a - b), tolerance.atol + tolerance.rtol * np.abs(b))
    near[~(np.isfinite(a) & np.isfinite(b))] = False
    near[np.equal(a, b) | (np.isnan(a) & np.isnan(b))] = True
    return near


def _flipped(
    wanted: Array,
    given: Array,
    scores: Array,
    margin: float,
    classes: Sequence[str | int | float | bool],
) -> Array:
    """Rows whose label differs although the recorded scores are not a tie within `margin`."""
    unequal: Array = np.asarray(np.not_equal(wanted, given)).reshape(len(wanted), -1)
    different: Array = np.asarray(unequal.any(axis=1))
    if not different.any() or scores.shape[1] < 2:
        return different
    ranked = np.sort(scores.astype(np.float64), axis=1)
    bad: Array = different & ~(ranked[:, -1] - ranked[:, -2] <= margin)
    positions = {label: index for index, label in enumerate(classes)}
    for row in np.flatnonzero(different & ~bad) if positions else ():
        column = positions.get(given.reshape(len(given), -1)[row, 0])
        bad[row] = column is None or not ranked[row, -1] - scores[row, column] <= margin
    return bad


def _mismatches(name: str, wanted: Array, given: Array, bad: Array) -> list[Mismatch]:
    rows = np.flatnonzero(bad.reshape(len(wanted), -1).any(axis=1)) if bad.size else ()
    return [
        Mismatch(int(row), name, _shown(wanted[row], bad[row]), _shown(given[row], bad[row]))
        for row in rows
    ]


def _shown(value: Any, bad: Any) -> str:
    cells = np.atleast_1d(np.asarray(value))
    mask = np.broadcast_to(np.atleast_1d(np.asarray(bad)), cells.shape)
    text = ", ".join(str(cell)[:40] for cell in cells[mask][:3].tolist())
    return f"{text}, ..." if mask.sum() > 3 else text


def _rows(tensors: Tensors, which: slice) -> dict[str, Array]:
    return {name: array[which] for name, array in tensors.items()}


def _spread(rows: int, count: int) -> list[int]:
    """Up to `count` row numbers, evenly spread, first and last among them."""
    return sorted({int(row) for row in np.linspace(0, rows - 1, min(rows, max(0, count)))})


def _store(array: Array) -> _Stored:
    if array.dtype.kind in "OUT":
        return _Stored("str", array.shape, [str(cell) for cell in array.ravel().tolist()])
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return _Stored(little.dtype.str, array.shape, little.tobytes())


def _restore(stored: _Stored) -> Array:
    if stored.dtype == "str" and isinstance(stored.data, list):
        return np.array(stored.data, dtype=np.object_).reshape(stored.shape)
    dtype = np.dtype(stored.dtype)
    if dtype.kind not in "biuf" or not isinstance(stored.data, bytes):
        raise ValueError(f"not a tensor: {stored.dtype}")
    native = np.frombuffer(stored.data, dtype=dtype).reshape(stored.shape)
    return native.astype(dtype.newbyteorder("="))
