"""An ONNX model's large weights apart from it, found without parsing them.

A protobuf parser copies what it reads and holds the interpreter lock meanwhile; here only the keys
and lengths of the outer messages are read (field numbers of onnx.proto). What is not spelled as
usual is left as it is: then there are no parts, and the whole model goes the common way.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Tensors from this size on are weights worth sharing, if a model's make up so much together.
LARGE: Final = 1 << 20
WORTH: Final = 4 << 20
# Weights begin at multiples of a page, so that a file of them can be mapped.
PAGE: Final = 4096

_GRAPH, _INITIALIZER, _RAW, _EXTERNAL, _LOCATION = 7, 5, 9, 13, 14
_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5


class _UnusualError(Exception):
    """The model is not spelled as exporters spell models."""


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    start: int
    value: int
    end: int


@dataclass(frozen=True)
class Parts:
    """A model without its large weights, and these, in order.

    `pieces` are bytes of the graph message; an index stands for the tensor with that weight, whose
    other bytes are in `tensors`.
    """

    head: bytes
    pieces: tuple[bytes | int, ...]
    tail: bytes
    tensors: tuple[bytes, ...]
    weights: tuple[memoryview, ...]

    def bare(self) -> bytes:
        """The model with tensors that lack their data: enough to look at its graph."""
        return self._joined([b""] * len(self.weights))

    def thin(self, location: str) -> bytes:
        """The model with its large weights in the file `location`, as `write` has written it."""
        entries = []
        offset = 0
        for weight in self.weights:
            words = {"location": location, "offset": str(offset), "length": str(weight.nbytes)}
            listed = [_field(_EXTERNAL, _entry(*word)) for word in words.items()]
            # TensorProto.DataLocation EXTERNAL is 1.
            entries.append(b"".join([*listed, bytes([_LOCATION << 3 | _VARINT, 1])]))
            offset += weight.nbytes + -weight.nbytes % PAGE
        return self._joined(entries)

    def write(self, path: Path) -> None:
        """Write the weights into a file, one after another. Raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for weight in self.weights:
                file.write(weight)
                file.write(bytes(-weight.nbytes % PAGE))

    def _joined(self, endings: list[bytes]) -> bytes:
        graph = b"".join(
            [
                piece
                if isinstance(piece, bytes)
                else _field(_INITIALIZER, self.tensors[piece] + endings[piece])
                for piece in self.pieces
            ]
        )
        return b"".join((self.head, _field(_GRAPH, graph), self.tail))


def split(model: bytes) -> Parts | None:
    """The parts of a model; None when it has no large weights, or is not spelled as usual."""
    if len(model) < WORTH:
        return None
    try:
        return _split(memoryview(model))
    except (_UnusualError, IndexError):
        return None


def _split(model: memoryview) -> Parts | None:
    graphs = [field for field in _fields(model, 0, len(model)) if field.number == _GRAPH]
    if len(graphs) != 1 or graphs[0].kind != _BYTES:
        raise _UnusualError
    graph = graphs[0]
    pieces: list[bytes | int] = []
    tensors: list[bytes] = []
    weights: list[memoryview] = []
    start = graph.value
    for field in _fields(model, graph.value, graph.end):
        if field.number != _INITIALIZER or field.end - field.start < LARGE:
            continue
        found = _weight(model, field)
        if found is not None:
            pieces += [bytes(model[start : field.start]), len(weights)]
            tensors.append(found[0])
            weights.append(found[1])
            start = field.end
    if sum(weight.nbytes for weight in weights) < WORTH:
        return None
    pieces.append(bytes(model[start : graph.end]))
    head, tail = bytes(model[: graph.start]), bytes(model[graph.end :])
    return Parts(head, tuple(pieces), tail, tuple(tensors), tuple(weights))


def _weight(model: memoryview, tensor: _Field) -> tuple[bytes, memoryview] | None:
    """A tensor's other bytes and its raw data; None if these are small or elsewhere."""
    fields = list(_fields(model, tensor.value, tensor.end))
    if any(field.number in {_EXTERNAL, _LOCATION} for field in fields):
        raise _UnusualError
    raw = [field for field in fields if field.number == _RAW]
    if len(raw) != 1 or raw[0].kind != _BYTES or raw[0].end - raw[0].value < LARGE:
        return None
    rest = (model[tensor.value : raw[0].start], model[raw[0].end : tensor.end])
    return b"".join(rest), model[raw[0].value : raw[0].end]


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of a message. Raises _UnusualError, IndexError."""
    at = start
    while at < end:
        key, value = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, stop = _varint(data, value)
        elif kind == _I64:
            stop = value + 8
        elif kind == _I32:
            stop = value + 4
        elif kind == _BYTES:
            length, value = _varint(data, value)
            stop = value + length
        else:
            raise _UnusualError
        if stop > end:
            raise _UnusualError
        yield _Field(key >> 3, kind, at, value, stop)
        at = stop


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    raise _UnusualError


def _field(number: int, value: bytes) -> bytes:
    return b"".join((bytes([number << 3 | _BYTES]), _spelled(len(value)), value))


def _entry(key: str, value: str) -> bytes:
    """A StringStringEntryProto."""
    return _field(1, key.encode()) + _field(2, value.encode())


def _spelled(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
