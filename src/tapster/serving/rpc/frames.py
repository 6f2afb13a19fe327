"""Frames of HTTP/2 (RFC 9113): their types, flags and errors, and how they are written."""

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
FRAME_BYTES: Final = 16384
WINDOW: Final = 65535
MAX_WINDOW: Final = 2**31 - 1

(
    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE,
    CONTINUATION,
) = range(10)  # fmt: skip

END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20

ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

(
    NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED,
    FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM,
) = range(12)  # fmt: skip

# The length in 16 and 8 bits, type, flags, stream.
_HEAD: Final = struct.Struct(">HBBBL")
_SETTING: Final = struct.Struct(">HL")
_NUMBER: Final = struct.Struct(">L")
unpack_head: Final = _HEAD.unpack_from
unpack_number: Final = _NUMBER.unpack_from


class PeerError(Exception):
    """What the peer did that ends the connection: an error code and a few words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamError(Exception):
    """What the peer did that ends one stream."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's payload."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def unary(stream: int, begin: bytes, data: bytes, tail: bytes) -> bytes:
    """A whole answer: a block of headers, data, and a block of trailers; none is empty."""
    pack = _HEAD.pack
    size, last = len(data), len(tail)
    return b"".join(
        (
            pack(len(begin) >> 8, len(begin) & 0xFF, HEADERS, END_HEADERS, stream),
            begin,
            pack(size >> 8, size & 0xFF, DATA, 0, stream),
            data,
            pack(last >> 8, last & 0xFF, HEADERS, END_HEADERS | END_STREAM, stream),
            tail,
        )
    )


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings in a payload. Raises PeerError."""
    if len(payload) % _SETTING.size:
        raise PeerError(FRAME_SIZE_ERROR, "settings are six bytes each")
    return list(_SETTING.iter_unpack(payload))


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(increment))


def go_away(last: int, code: int, reason: str = "") -> bytes:
    """A GOAWAY frame: streams above `last` were not looked at."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last) + _NUMBER.pack(code) + reason.encode()[:200])


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding. Raises PeerError."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise PeerError(PROTOCOL_ERROR, "a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]
