"""Arrays as they travel between two processes: small ones in the frame, large ones beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from tapster.contract.inference import Array
from tapster.runtimes.isolated.segments import Segment

# Bytes of a tensor, and of all tensors of a frame, up to which they travel in the frame.
SMALL: Final = 64 << 10
FRAME: Final = 128 << 10
_ALIGNED: Final = 64
_TEXT: Final = "text"
_NUMBERS: Final = {
    np.dtype(kind).str: np.dtype(kind)
    for kind in (
        "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8",
    )
}  # fmt: skip
_texts: Final = msgspec.msgpack.Decoder(list[Any])


class Packed(msgspec.Struct, array_like=True):
    """A tensor in a frame: its bytes, or their place in the segment beside it.

    `kind` is a little-endian NumPy type, or "text": then the bytes are a msgpack list of strings.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: bytes | None
    offset: int = 0
    size: int = 0


class Parcel:
    """Named arrays on their way out: what goes into the frame, what into a segment."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        """Lay the arrays out. Raises TypeError for an array of a kind that does not travel."""
        self.tensors: list[Packed] = []
        self.size = 0
        self._large: list[tuple[int, Any]] = []
        inside = 0
        for name, array in arrays.items():
            kind, content, size = _spelled(array)
            shape = array.shape
            if size <= SMALL and inside + size <= FRAME:
                inside += size
                data = content if isinstance(content, bytes) else content.tobytes()
                self.tensors.append(Packed(name, kind, shape, data))
                continue
            self.tensors.append(Packed(name, kind, shape, None, self.size, size))
            self._large.append((self.size, content))
            self.size += -(-size // _ALIGNED) * _ALIGNED

    def put(self, segment: Segment | None) -> None:
        """Write what is large into the segment, which has room for `size` bytes."""
        for offset, content in self._large:
            assert segment is not None
            if isinstance(content, bytes):
                segment.memory[offset : offset + len(content)] = content
            else:
                there = np.frombuffer(segment.memory, content.dtype, content.size, offset)
                np.copyto(there.reshape(content.shape), content)


def unpack(tensors: Sequence[Packed], segment: Segment | None) -> dict[str, Array]:
    """The arrays by name; large ones lie in the segment still, small ones cannot be written to.

    Raises ValueError for tensors that cannot be.
    """
    return {tensor.name: _unpacked(tensor, segment) for tensor in tensors}


def _spelled(array: Array) -> tuple[str, Any, int]:
    """Kind, content (bytes, or an array of that kind) and bytes of an array."""
    if array.dtype.kind in "OUST":
        data = msgspec.msgpack.encode(
            [cell if isinstance(cell, str | bytes) else str(cell) for cell in array.ravel()]
        )
        return _TEXT, data, len(data)
    little = array.dtype.newbyteorder("<")
    if little.str not in _NUMBERS:
        raise TypeError(f"{array.dtype} does not travel")
    return little.str, array.astype(little, copy=False), array.nbytes


def _unpacked(tensor: Packed, segment: Segment | None) -> Array:
    count = math.prod(tensor.shape)
    if any(size < 0 for size in tensor.shape) or len(tensor.shape) > 64:
        raise ValueError("a tensor has a shape that cannot be")
    if tensor.data is not None:
        data: Any = tensor.data
    elif segment is None or not 0 <= tensor.offset <= tensor.offset + tensor.size <= segment.size:
        raise ValueError("a tensor lies outside of its memory")
    else:
        data = memoryview(segment.memory)[tensor.offset : tensor.offset + tensor.size]
    if tensor.kind == _TEXT:
        return _text(data, count).reshape(tensor.shape)
    kind = _NUMBERS.get(tensor.kind)
    if kind is None or count * kind.itemsize != len(data):
        raise ValueError("a tensor is of a kind or a size that cannot be")
    return np.frombuffer(data, kind).reshape(tensor.shape)


def _text(data: Any, count: int) -> Array:
    try:
        values = _texts.decode(data)
    except msgspec.MsgspecError:
        raise ValueError("a tensor's text cannot be read") from None
    if len(values) != count or not set(map(type, values)) <= {str, bytes}:
        raise ValueError("a tensor's text does not fit its shape")
    made = np.empty(count, np.object_)
    made[:] = values
    return made
