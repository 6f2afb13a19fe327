"""Typed contents of Open Inference tensors, where no raw bytes are given.

INT8 to INT32 travel as varints in `int_contents`, UINT8 to UINT32 in `uint_contents`; FP16 and
BF16 have no typed field, so they come raw only. Source: the protocol's gRPC page.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.serving.rest.bodies import invalid, shown
from tapster.serving.rest.tensors import count_of, known_type, spell_shape
from tapster.serving.rpc.encoding import header

_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Elements that are laid out on the wire as numpy has them: their bytes are copied, not each value.
_FIXED: Final = {"FP32": 4, "FP64": 8, "BOOL": 1}
_PIECE: Final = 1 << 14


def decode(name: str, datatype: str, shape: Sequence[int], contents: Any) -> Array:
    """The array of `shape` that an InferTensorContents holds.

    Raises TapsterError(invalid) for an unknown datatype, one without a typed field, a bad shape,
    values in another field or of another number, and those out of range.
    """
    known = known_type(name, datatype)
    field = _FIELDS.get(known)
    if field is None:
        raise invalid(
            f"input {shown(name)} has datatype {known!r}, which typed contents cannot carry",
            hint="send it in raw_input_contents",
            field=name[:100],
        )
    count = count_of(name, shape)
    values = getattr(contents, field)
    if len(values) != count or len(contents.ListFields()) > 1:
        raise _miscounted(name, known, field, shape, len(values))
    if known == "BYTES":
        return _texts(name, values).reshape(list(shape))
    if known in _FIXED:
        return _fixed(known, field, contents, count).reshape(list(shape))
    return _whole(name, known, values).reshape(list(shape))


def _fixed(datatype: str, field: str, contents: Any, count: int) -> Array:
    """The elements of the only field that is filled: what follows its header in the message."""
    kind = NUMPY_TYPE[datatype]  # type: ignore[index]
    if not count:
        return np.empty(0, kind)
    size = count * _FIXED[datatype]
    start = len(header(contents.DESCRIPTOR.fields_by_name[field].number, size))
    return np.frombuffer(contents.SerializeToString()[start : start + size], kind)


def _whole(name: str, datatype: str, values: Any) -> Array:
    kind = NUMPY_TYPE[datatype]  # type: ignore[index]
    limits = np.iinfo(kind)
    array = np.empty(len(values), kind)
    for start in range(0, len(values), _PIECE):  # so that other threads have their turns
        piece = values[start : start + _PIECE]
        if min(piece) < limits.min or max(piece) > limits.max:
            raise invalid(
                f"input {shown(name)} has a value that {datatype} cannot hold", field=name[:100]
            )
        array[start : start + _PIECE] = piece
    return array


def _texts(name: str, values: Any) -> Array:
    array = np.empty(len(values), np.object_)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError:
        raise invalid(
            f"input {shown(name)} has an element that is not UTF-8 text",
            hint="BYTES hold text here; a model that takes bytes has an UINT8 input",
            field=name[:100],
        ) from None
    return array


def _miscounted(
    name: str, datatype: str, field: str, shape: Sequence[int], found: int
) -> TapsterError:
    return invalid(
        f"input {shown(name)} has {found} values in {field}; its shape {spell_shape(shape)} of"
        f" {datatype} takes as many as it has elements, and no other field may be filled",
        field=name[:100],
    )
