"""gRPC's statuses and the blocks of headers that answers begin and end with.

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md): `grpc-status`, percent-encoded `grpc-message`.
"""

import math
from typing import Final
from urllib.parse import quote_from_bytes

from tapster.contract.errors import GRPC_STATUS, TapsterError
from tapster.serving.meters import LimitError
from tapster.serving.rpc.hpack import encode, encode_static

NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
MAX_MESSAGE: Final = 1024
LONGEST_PUSHBACK: Final = 60.0
# Answers of every kind begin so.
BEGIN: Final = encode_static(b":status", b"200") + encode(b"content-type", b"application/grpc")
OK: Final = encode(b"grpc-status", b"0")
ENCODINGS: Final = encode(b"grpc-accept-encoding", b"identity,deflate,gzip")
_REQUEST_ID: Final = encode(b"x-request-id", b"")[:-1]
# All of printable ASCII but the percent sign stays as it is.
_SAFE: Final = bytes(byte for byte in range(0x20, 0x7F) if byte != ord("%")).decode()


def text_of(error: TapsterError) -> str:
    """An error in one line, as gRPC's clients show it."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def refusal(error: TapsterError, identity: bytes) -> bytes:
    """The trailers of an error."""
    status = b"%d" % NUMBERS[GRPC_STATUS[error.code]]
    said = text_of(error).encode()[:MAX_MESSAGE].decode(errors="ignore")  # whole characters only
    message = quote_from_bytes(said.encode(), _SAFE).encode()
    block = encode(b"grpc-status", status) + encode(b"grpc-message", message)
    if error.code in {"unavailable", "exhausted"}:
        block += _retried(error.retry_after or 1.0)
        if isinstance(error, LimitError):
            block += encode(b"ratelimit-limit", b"%d" % error.limit)
            block += encode(b"ratelimit-remaining", b"%d" % error.remaining)
            block += encode(b"ratelimit-reset", b"%d" % max(1, math.ceil(error.resets)))
    elif error.code == "unsupported":
        block += ENCODINGS
    return block + named(identity)


def _retried(pause: float) -> bytes:
    """The trailers that say when to try again. Clients that do so by themselves (gRFC A6) are told
    not to when that is long after.
    """
    pushback = b"%d" % round(1000 * pause) if pause <= LONGEST_PUSHBACK else b"-1"
    seconds = b"%d" % max(1, math.ceil(pause))
    return encode(b"grpc-retry-pushback-ms", pushback) + encode(b"retry-after", seconds)


def named(identity: bytes) -> bytes:
    """The trailer that says a request's identifier, which has at most 128 characters."""
    size = len(identity)
    return _REQUEST_ID + (bytes((size,)) if size < 0x7F else b"\x7f%c" % (size - 0x7F)) + identity


def plain(status: bytes) -> bytes:
    """The headers of an answer to a caller who does not speak gRPC; it has no body."""
    return encode(b":status", status) + encode(b"content-length", b"0")
