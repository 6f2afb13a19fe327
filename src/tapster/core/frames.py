"""Files that grow by frames, each whole by itself and, with a key, sealed by itself.

A frame is a letter (`P` plain, `S` sealed), its length and a CRC-32 (32 bits each, big-endian), and
so many bytes. What a process that was killed has not finished is no frame, nor is what follows it.
A sealed frame opens only where it belongs: in this file, at this number.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from tapster.core.envelope import DataKey, damaged, opened_bytes, sealed_bytes

_HEAD: Final = struct.Struct(">cII")
_PLAIN, _SEALED = b"P", b"S"


def frame(data: bytes, key: DataKey | None, number: int, *place: str) -> bytes:
    """The next frame of a file; `place` are the words that say which file it is."""
    kind = _PLAIN
    if key is not None:
        kind, data = _SEALED, sealed_bytes(data, key, *place, str(number))
    return _HEAD.pack(kind, len(data), zlib.crc32(data)) + data


def frames(data: bytes, find: Callable[[str], DataKey] | None, *place: str) -> Iterator[bytes]:
    """What the frames of a file hold, in order, up to the first that is not whole.

    `find` gives the data key by its id. Raises TapsterError(unprocessable) for a sealed frame that
    was altered or belongs elsewhere, and for any that is sealed while there are no keys.
    """
    at = number = 0
    while at + _HEAD.size <= len(data):
        kind, size, checksum = _HEAD.unpack_from(data, at)
        held = data[at + _HEAD.size : at + _HEAD.size + size]
        if kind not in {_PLAIN, _SEALED} or len(held) < size or zlib.crc32(held) != checksum:
            return
        if kind == _SEALED:
            if find is None:
                raise damaged()
            held = opened_bytes(held, find, *place, str(number))
        yield held
        at += _HEAD.size + size
        number += 1
