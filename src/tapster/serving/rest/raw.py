"""Tensors as raw bytes: the binary tensor extension over HTTP, raw contents over gRPC.

Elements come in row-major order without padding, little-endian; a BOOL is a byte, 0 or 1. An
element of BYTES is its length as 32 bits and then so many bytes, which must be UTF-8: a model's
strings are text, and whatever else has bytes takes them as UINT8.
Source: Triton's binary tensor data extension.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Datatype
from tapster.serving.rest.bodies import invalid, shown
from tapster.serving.rest.tensors import count_of, known_type, spell_shape

assert sys.byteorder == "little", "raw tensors are passed on as they come"
_LENGTH: Final = 4
_SIZES: Final = {
    known: np.dtype(kind).itemsize for known, kind in NUMPY_TYPE.items() if known != "BYTES"
}


def size_of(datatype: str, count: int) -> int | None:
    """Bytes that `count` elements take; None for BYTES."""
    size = _SIZES.get(datatype)  # type: ignore[call-overload]
    return None if size is None else size * count


def decode(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The array of `shape` that `data` holds. BF16 comes as uint16 (see NUMPY_TYPE).

    Raises TapsterError(invalid) for an unknown datatype, a bad shape, data of another length, a
    BOOL that is neither 0 nor 1, and text that is not UTF-8.
    """
    known = known_type(name, datatype)
    count = count_of(name, shape)
    if known == "BYTES":
        return texts(name, count, data).reshape(list(shape))
    wanted = _SIZES[known] * count
    if len(data) != wanted:
        raise invalid(
            f"input {shown(name)} has {len(data)} bytes, its shape {spell_shape(shape)} of"
            f" {known} takes {wanted}",
            field=name[:100],
        )
    if known == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        raise invalid(f"input {shown(name)} has a BOOL that is neither 0 nor 1", field=name[:100])
    array = np.frombuffer(data, NUMPY_TYPE[known]) if count else np.empty(0, NUMPY_TYPE[known])
    return (array if array.flags.aligned else array.copy()).reshape(list(shape))


def texts(name: str, count: int, data: memoryview) -> Array:
    """The flat array of `count` strings that length-prefixed `data` hold.

    Raises TapsterError(invalid).
    """
    values: list[str] = []
    at, end = 0, len(data)
    while at < end and len(values) < count:
        start = at + _LENGTH
        at = start + int.from_bytes(data[at:start], "little")
        if at > end or start > end:
            raise _cut_short(name, len(values))
        try:
            values.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError:
            raise _not_text(name, len(values)) from None
    if len(values) != count or at != end:
        raise invalid(
            f"input {shown(name)} has {'more' if at != end else 'fewer'} elements in its bytes"
            f" than the {count} of its shape",
            field=name[:100],
        )
    array = np.empty(count, np.object_)
    array[:] = values
    return array


def encode(datatype: Datatype, array: Array) -> bytes:
    """The bytes of an array of this datatype."""
    if datatype != "BYTES":
        return array.tobytes()
    pieces: list[bytes] = []
    for value in array.ravel().tolist():
        text = value if isinstance(value, bytes) else str(value).encode()
        pieces += (len(text).to_bytes(_LENGTH, "little"), text)
    return b"".join(pieces)


def widened(array: Array) -> Array:
    """BF16, carried as uint16, as the 32-bit floats that it stands for."""
    wide: Array = (array.astype(np.uint32) << 16).view(np.float32)
    return wide


def _cut_short(name: str, index: int) -> Any:
    return invalid(
        f"input {shown(name)}: element {index} is longer than the bytes there are",
        hint="each element is its length as 32 bits, little-endian, then its bytes",
        field=name[:100],
    )


def _not_text(name: str, index: int) -> Any:
    return invalid(
        f"input {shown(name)}: element {index} is not UTF-8 text",
        hint="BYTES hold text here; a model that takes bytes has an UINT8 input",
        field=name[:100],
    )
