"""Tensors from JSON values, with every datatype, shape and range checked."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Datatype
from tapster.serving.model import Model
from tapster.serving.rest.bodies import invalid, shown

MAX_RANK: Final = 8
MAX_SIZE: Final = 1 << 40
# Shortly spelled, the largest 32-bit float is 3.4028235e38, which is more and is rounded to it.
FLOAT_LIMITS: Final[dict[str, float]] = {
    "FP16": float(np.finfo(np.float16).max),
    "FP32": float(np.nextafter((2 - 2.0**-24) * 2.0**127, 0)),
    "FP64": float(np.finfo(np.float64).max),
}
_NUMBERS: Final = frozenset({int, float})
_WHOLE: Final = frozenset({int})
_TRUTHS: Final = frozenset({bool})
_TEXTS: Final = frozenset({str})

Inputs = dict[str, Array]


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """The array of `shape` that `data`, flat or nested in row-major order, spells.

    NaN and infinities are taken for floats. Raises TapsterError(invalid) for an unknown datatype,
    a bad shape, data of another length, and values of another type or out of range.
    """
    known = known_type(name, datatype)
    if known == "BF16":
        raise invalid(
            f"input {shown(name)} has datatype 'BF16', which JSON cannot carry",
            hint="send it as binary data",
            field=name[:100],
        )
    count = count_of(name, shape)
    values = _flat(name, shape, data)
    if len(values) != count:
        raise invalid(
            f"input {shown(name)} has {len(values)} values, its shape"
            f" {spell_shape(shape)} takes {count}",
            field=name[:100],
        )
    return _array(name, known, values).reshape(list(shape))


def nested(name: str, datatype: Datatype, data: Any) -> Array:
    """The array that nested lists spell by their nesting. Raises TapsterError(invalid)."""
    shape: list[int] = []
    node = data
    while isinstance(node, list):
        shape.append(len(node))
        if not node:
            break
        node = node[0]
    return tensor(name, datatype, shape, data)


def conform(model: Model, arrays: Mapping[str, tuple[str, Array]]) -> tuple[Inputs, int]:
    """Inputs for the model and their number of rows, from (datatype, array) by tensor name.

    Raises TapsterError(invalid) for missing, extra, mistyped and misshapen inputs.
    """
    _check_names(model, arrays)
    inputs: Inputs = {}
    rows = -1
    for name, (datatype, wanted) in model.inputs.items():
        given, array = arrays[name]
        if given != datatype:
            raise _unfit(model, f"input {shown(name)} must be {datatype}, not {given}", name)
        if array.ndim == 1 and wanted[1:] == (1,):
            array = array.reshape(-1, 1)
        if len(wanted) != array.ndim or any(
            size not in (-1, actual) for size, actual in zip(wanted, array.shape, strict=True)
        ):
            shapes = f"{spell_shape(wanted)}, not {spell_shape(array.shape)}"
            raise _unfit(model, f"input {shown(name)} must have shape {shapes}", name)
        if wanted and wanted[0] == -1:
            if rows not in (-1, array.shape[0]):
                raise invalid("the inputs differ in their number of rows", field=name[:100])
            rows = array.shape[0]
        inputs[name] = array
    if rows == 0:
        raise invalid("there are no rows", hint="send at least one row")
    return inputs, max(rows, 1)


def rows_of(inputs: Inputs) -> int:
    """The number of rows of tensors made from named columns."""
    return len(next(iter(inputs.values())))


def _check_names(model: Model, arrays: Mapping[str, Any]) -> None:
    missing = [name for name in model.inputs if name not in arrays]
    extra = [name for name in arrays if name not in model.inputs]
    if missing:
        instead = f"; there is no {shown(extra[0])}" if extra else ""
        raise _unfit(model, f"input {shown(missing[0])} is missing{instead}", missing[0])
    if extra:
        raise _unfit(model, f"the model has no input {shown(extra[0])}", extra[0])


def _unfit(model: Model, message: str, name: str) -> TapsterError:
    takes = "; ".join(
        f"{known} {datatype} {spell_shape(shape)}"
        for known, (datatype, shape) in model.inputs.items()
    )
    return invalid(message, hint=f"the model takes: {takes[:500]}", field=name[:100])


def known_type(name: str, datatype: str) -> Datatype:
    """A datatype of the protocol. Raises TapsterError(invalid) for any other."""
    for known in NUMPY_TYPE:
        if known == datatype:
            return known
    raise invalid(
        f"input {shown(name)} has datatype {shown(datatype)}, which does not exist",
        hint=f"one of: {', '.join(NUMPY_TYPE)}",
        field=name[:100],
    )


def count_of(name: str, shape: Sequence[int]) -> int:
    """The number of elements of a shape. Raises TapsterError(invalid) for a bad one."""
    if len(shape) > MAX_RANK:
        raise invalid(f"input {shown(name)} has {len(shape)} dimensions, at most {MAX_RANK} go")
    count = extent = 1
    for size in shape:
        if size < 0:
            raise invalid(f"input {shown(name)} has a negative dimension in its shape")
        if size > MAX_SIZE:
            raise invalid(f"input {shown(name)} has a dimension that no data could fill")
        count *= size
        extent *= size or 1
    if not count and extent > MAX_SIZE:  # numpy does not have arrays without elements that large
        raise invalid(f"input {shown(name)} has a shape that no data could fill")
    return count


def spell_shape(shape: Sequence[int]) -> str:
    """A shape as errors show it: `n` for a variable dimension."""
    return "[" + ", ".join("n" if size == -1 else str(size)[:30] for size in shape[:10]) + "]"


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    if not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for size in shape:
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise invalid(
                f"input {shown(name)} is nested otherwise than its shape {spell_shape(shape)} says",
                field=name[:100],
            )
        level = list(chain.from_iterable(level))
    return level


def _array(name: str, datatype: Datatype, values: list[Any]) -> Array:
    kinds = set(map(type, values))
    if datatype == "BYTES":
        _check_kinds(name, kinds, _TEXTS, "strings")
        return np.array(values, dtype=np.object_)
    if datatype == "BOOL":
        _check_kinds(name, kinds, _TRUTHS, "true or false")
        return np.array(values, dtype=np.bool_)
    if datatype in FLOAT_LIMITS:
        _check_kinds(name, kinds, _NUMBERS, "numbers")
        return _floats(name, datatype, values)
    _check_kinds(name, kinds, _WHOLE, "whole numbers")
    limits = np.iinfo(NUMPY_TYPE[datatype])
    if values and not (limits.min <= min(values) and max(values) <= limits.max):
        raise invalid(f"input {shown(name)} has a value that {datatype} cannot hold", field=name)
    return np.array(values, dtype=NUMPY_TYPE[datatype])


def _floats(name: str, datatype: Datatype, values: list[Any]) -> Array:
    try:
        wide = np.array(values, dtype=np.float64)
    except OverflowError:
        wide = np.array([np.inf])
        values = [0.0]
    limit = FLOAT_LIMITS[datatype]
    beyond = np.abs(wide) > limit
    if beyond.any() and not np.isinf(np.array(values, dtype=np.float64)[beyond]).all():
        raise invalid(f"input {shown(name)} has a value that {datatype} cannot hold", field=name)
    return wide.astype(NUMPY_TYPE[datatype])


def _check_kinds(name: str, kinds: set[type], allowed: frozenset[type], words: str) -> None:
    odd = kinds - allowed
    if odd:
        found = {type(None): "null", bool: "true or false", str: "strings", list: "lists"}
        what = sorted(found.get(kind, "other values") for kind in odd)[0]
        raise invalid(
            f"input {shown(name)} must hold {words}; it has {what}",
            hint="a missing number is NaN, a missing text is an empty string"
            if type(None) in odd
            else "",
            field=name[:100],
        )
