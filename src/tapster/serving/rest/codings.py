"""Compressed bodies, within bounds: gzip and deflate in, whichever the caller understands out.

Source: RFC 9110, 8.4 (codings), 12.5.3 (Accept-Encoding); `deflate` is the zlib format.
"""

import zlib
from functools import lru_cache
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.serving.rest.bodies import invalid

CODINGS: Final = {b"gzip": b"gzip", b"x-gzip": b"gzip", b"deflate": b"deflate"}
# Answers from this size on are worth compressing.
WORTH: Final = 8 * 1024
MAX_MEMBERS: Final = 64
_LEVEL: Final = 1
_BITS: Final = {b"gzip": 31, b"deflate": 15}
_PIECE: Final = 1 << 20


def inflate(coding: bytes, body: bytes | bytearray, limit: int) -> bytes:
    """What a compressed body holds. Never makes more than `limit` bytes and one.

    Raises TapsterError: too_large beyond the limit, invalid for what is damaged or cut short.
    """
    pieces: list[bytes] = []
    left = limit
    rest = bytes(body)
    for _ in range(MAX_MEMBERS):  # of gzip, one after another
        stream = zlib.decompressobj(_BITS[coding])
        while not stream.eof:
            piece = _next(stream, rest, min(left + 1, _PIECE))
            left -= len(piece)
            if left < 0:
                raise TapsterError(
                    "too_large",
                    f"the body is larger than {limit} bytes once decompressed",
                    hint="send fewer rows at once",
                )
            pieces.append(piece)
            rest = stream.unconsumed_tail
        rest = stream.unused_data
        if not rest:
            return b"".join(pieces)
        if coding == b"deflate":
            break
    raise invalid("there is something after the compressed body")


def deflate(coding: bytes, body: bytes) -> bytes:
    """A body, compressed fast rather than small."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _BITS[coding])
    return stream.compress(body) + stream.flush()


@lru_cache(256)
def accepted(header: bytes) -> bytes:
    """The coding in which a caller who sends this Accept-Encoding is answered; b"" for none."""
    found: dict[bytes, bool] = {}
    for item in header.lower().split(b","):
        name, _, parameters = item.partition(b";")
        found[name.strip()] = parameters.replace(b" ", b"") not in _REFUSED
    for coding in (b"gzip", b"deflate"):
        if found.get(coding, found.get(b"*", False)):
            return coding
    return b""


_REFUSED: Final = frozenset({b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"})


def _next(stream: "zlib._Decompress", data: bytes, most: int) -> bytes:
    try:
        piece = stream.decompress(data, most)
    except zlib.error:
        raise invalid("the compressed body is damaged") from None
    if not piece and not stream.eof and not stream.unconsumed_tail:
        raise invalid("the compressed body is cut short")
    return piece
