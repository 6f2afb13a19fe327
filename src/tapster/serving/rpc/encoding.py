"""Pieces of protobuf's wire format, for answers that are put together from bytes.

Source: Protocol Buffers, "Encoding". A message's fields may come in any order, and messages of one
type may be joined, so an answer is its parts one after another.
"""

from functools import lru_cache

from tapster.contract.inference import Array


def varint(number: int) -> bytes:
    """A number, 7 bits a byte, the lowest first; a negative one as 64 bits."""
    number &= 0xFFFFFFFFFFFFFFFF
    if number < 0x80:
        return bytes((number,))
    spelled = bytearray()
    while number > 0x7F:
        spelled.append(number & 0x7F | 0x80)
        number >>= 7
    spelled.append(number)
    return bytes(spelled)


@lru_cache(1024)
def header(field: int, size: int) -> bytes:
    """What comes before `size` bytes of a field: its number, the type, and the size."""
    return varint(field << 3 | 2) + varint(size)


def delimited(field: int, data: bytes) -> bytes:
    """A field that holds bytes, a string, a message, or packed numbers."""
    return header(field, len(data)) + data


def text(field: int, value: str) -> bytes:
    """A string field, b"" for an empty one."""
    return delimited(field, value.encode()) if value else b""


def number(field: int, value: int) -> bytes:
    """An integer or enum field, b"" for 0."""
    return varint(field << 3) + varint(value) if value else b""


def packed(field: int, values: Array) -> bytes:
    """A repeated field of 32- or 64-bit floats."""
    return delimited(field, values.tobytes()) if values.size else b""
