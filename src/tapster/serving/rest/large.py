"""Large JSON: read a piece at a time, so that neither memory nor other requests suffer.

A list of Python floats takes ten times the memory of its text, rows as objects more, and a decoder
that is given all of it keeps the interpreter to itself. Here the text of the list is cut out of
the document; what is left is small and read as always, and the list becomes arrays piece by piece.
Whatever is not just numbers, flat or nested as the shape says, or objects of plain values, is not
understood here (None).
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.serving.rest.bodies import finite, whole
from tapster.serving.rest.tensors import FLOAT_LIMITS, MAX_RANK

# From this size on, a body is read so.
LARGE: Final = 1 << 20
# JSON other than numbers takes up to twenty times its size while it is read.
MAX_ODD: Final = 8 << 20
# Lists of numbers that are looked for in one document.
MAX_LISTS: Final = 4096
_PIECE: Final = 1 << 18
_FLOATS: Final = msgspec.json.Decoder(list[float])
_WHOLE: Final = msgspec.json.Decoder(list[int])
_NUMERIC: Final = b"0123456789.eE+-\t\n\r NaInfity"
_FLAT: Final = bytes.maketrans(b"[]", b"  ")
_SPACE: Final = b" \t\r\n"

Body = bytes | bytearray
Span = tuple[int, int]


def cut(body: Body, key: bytes) -> tuple[bytes, list[Span]] | None:
    """A document without the lists of numbers under `key`, and where these lists are.

    Each list is replaced by an empty one. None when it does not look like that, or too much is
    left.
    """
    kept: list[bytes] = []
    spans: list[Span] = []
    done = at = 0
    for _ in range(MAX_LISTS):
        at = body.find(key, at)
        if at < 0:
            break
        at += len(key)
        span = _list_after(body, at)
        if span is not None:
            kept += (bytes(body[done : span[0]]), b"[]")
            spans.append(span)
            done = at = span[1]
    else:
        return None
    kept.append(bytes(body[done:]))
    return (b"".join(kept), spans) if spans and sum(map(len, kept)) <= MAX_ODD else None


def numbers(body: Body, span: Span, shape: Sequence[int], datatype: str) -> Array | None:
    """The array of `shape` that a list of numbers spells, flat or nested in row-major order."""
    count = _count(shape)
    if not 0 < count <= span[1] - span[0]:  # a number takes a character
        return None
    found = _read(body, span, datatype)
    if found is None or found[0].size != count:
        return None
    if found[1] not in (_structure([count]), _structure(shape)):
        return None
    return found[0].reshape(list(shape))


def rows(body: Body, span: Span, width: Sequence[int], datatype: str) -> Array | None:
    """The array [n, *width] that a list of numbers spells, nested accordingly."""
    step = _count(width) if len(width) < MAX_RANK else 0
    if not 0 < step <= span[1] - span[0]:
        return None
    found = _read(body, span, datatype)
    if found is None:
        return None
    shape = (found[0].size // step, *width)
    fits = found[0].size % step == 0 and found[1] == _structure(shape)
    return found[0].reshape(shape) if fits else None


def cut_objects(body: Body, key: bytes) -> tuple[bytes, Span] | None:
    """A document without the list of objects under `key`, the only list there is, and where that
    list is between its brackets."""
    start = body.find(key) + len(key)
    first = body.find(b"[", start, start + 64)
    last = body.rfind(b"]", len(body) - 1024)
    if last < 0 or not 0 <= first <= MAX_ODD or bytes(body[start:first]).strip(_SPACE) != b":":
        return None
    return bytes(body[:first]) + b"[]" + bytes(body[last + 1 :]), (first + 1, last)


def objects(body: Body, span: Span) -> Iterator[bytes]:
    """Lists of some of the objects that lie between the brackets of a list.

    Cut after what looks like the end of an object and a comma: if it is in a string, what is
    yielded is no JSON.
    """
    start, end = span
    while start < end:
        brace = body.find(b"}", start + _PIECE, end)
        comma = end if brace < 0 else body.find(b",", brace, end)
        comma = end if comma < 0 else comma
        yield b"[%b]" % bytes(body[start:comma])
        start = comma + 1


def _count(shape: Sequence[int]) -> int:
    """The number of elements of a shape; 0 for one that cannot be, or has none."""
    fits = len(shape) <= MAX_RANK and min(shape, default=1) > 0
    return math.prod(shape) if fits else 0


def too_odd() -> TapsterError:
    """What to say of a body that is beyond `MAX_ODD` and does not hold just numbers."""
    return TapsterError(
        "too_large",
        f"JSON beyond {MAX_ODD} bytes may only be rows of plain values, or tensors of numbers",
        hint="send fewer rows at once, binary tensors, or CSV to the plain wire",
    )


def _read(body: Body, span: Span, datatype: str) -> tuple[Array, bytes] | None:
    """All numbers of a list, and its brackets and commas."""
    if datatype == "BF16":
        return None
    arrays: list[Array] = []
    marks: list[bytes] = []
    for piece in _pieces(body, *span):
        array = _array(piece, datatype)
        if array is None:
            return None
        arrays.append(array)
        marks.append(piece.translate(None, _NUMERIC))
    return np.concatenate(arrays), b",".join(marks)


def _list_after(body: Body, start: int) -> Span | None:
    """Where the list of numbers is that follows a key's closing quotation mark and colon."""
    first = body.find(b"[", start, start + 64)
    if first < 0 or bytes(body[start:first]).strip(_SPACE) != b":":
        return None
    # Up to the next string and no further, or many keys would have all of the body read for each.
    end = body.find(b'"', first)
    for mark in (b"{", b"}"):
        sooner = body.find(mark, first, len(body) if end < 0 else end)
        end = end if sooner < 0 else sooner
    if end < 0:
        return None
    last = body.rfind(b"]", first, end)
    # Nothing but commas and closing brackets of what surrounds the list may follow it.
    if last < 0:
        return None
    return first, last + 1


def _pieces(body: Body, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        stop = body.find(b",", start + _PIECE, end)
        stop = end if stop < 0 else stop
        yield bytes(body[start:stop])
        start = stop + 1


def _array(piece: bytes, datatype: str) -> Array | None:
    text = b"[%b]" % piece.translate(_FLAT)
    try:
        if datatype in FLOAT_LIMITS:
            return _floats(text, datatype)
        kind: Any = NUMPY_TYPE[datatype]  # type: ignore[index]
        values: list[int] = _WHOLE.decode(text)
        limits = np.iinfo(kind)
        fits = limits.min <= min(values) and max(values) <= limits.max
        return np.array(values, dtype=kind) if fits else None
    except (msgspec.MsgspecError, KeyError, ValueError, OverflowError):
        return None


def _floats(text: bytes, datatype: str) -> Array | None:
    try:
        wide = np.array(_FLOATS.decode(text), np.float64)
    except msgspec.MsgspecError:
        if b"N" not in text and b"I" not in text:
            return None
        wide = _with_constants(text)
    beyond = np.abs(wide) > FLOAT_LIMITS[datatype]
    if beyond.any() and not np.isinf(wide[beyond]).all():
        return None
    return wide.astype(NUMPY_TYPE[datatype])  # type: ignore[index]


def _with_constants(text: bytes) -> Array:
    """Numbers among which NaN and Infinity are. Raises ValueError."""
    values = json.loads(text, parse_float=finite, parse_int=whole)
    if not set(map(type, values)) <= {int, float}:
        raise ValueError("not numbers")
    return np.array(values, np.float64)


def _structure(shape: Sequence[int]) -> bytes:
    """The brackets and commas of a list nested by `shape`."""
    text = b""
    for size in reversed(shape):
        text = b"[%b%b]" % ((text + b",") * (size - 1), text)
    return text
