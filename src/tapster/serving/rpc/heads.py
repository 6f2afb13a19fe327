"""What the headers of a gRPC request say. Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md)."""

from typing import Final

from tapster.contract.errors import TapsterError
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.heads import MAX_IDENTITY
from tapster.serving.rpc.frames import PROTOCOL_ERROR, StreamError
from tapster.serving.rpc.hpack import Field

MAX_FIELDS: Final = 256
GZIP: Final = b"gzip"
DEFLATE: Final = b"deflate"
_ENCODINGS: Final = frozenset({GZIP, DEFLATE})
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
# Of these, one answer must be the right one, so they may come only once.
_NOTED: Final = frozenset(
    {
        b"authorization",
        b"content-type",
        b"grpc-encoding",
        b"grpc-timeout",
        b"te",
        b"x-request-id",
        b"x-sticky-key",
    }
)
# Meant for one connection of HTTP/1, they have no place in HTTP/2.
_HOPPING: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class Head:
    """A request's headers, once understood.

    `timeout` is in seconds, 0 for none. `parent` is the caller's `traceparent`. `status` is the
    HTTP status for who does not speak gRPC, b"" for who does; `refusal` is what is wrong with the
    rest.
    """

    __slots__ = (
        "authorization",
        "encoding",
        "identity",
        "parent",
        "path",
        "refusal",
        "status",
        "sticky",
        "timeout",
    )

    def __init__(self, noted: dict[bytes, bytes]) -> None:
        self.path = noted[b":path"]
        self.authorization = noted.get(b"authorization", b"")
        self.identity = _identity(noted.get(b"x-request-id", b""))
        self.parent = noted.get(b"traceparent", b"")
        self.sticky = noted.get(b"x-sticky-key", b"")
        self.encoding = b""
        self.timeout = 0.0
        self.refusal: TapsterError | None = None
        self.status = _status(noted)
        try:
            self.encoding = _encoding(noted.get(b"grpc-encoding", b"identity"))
            self.timeout = _timeout(noted.get(b"grpc-timeout"))
        except TapsterError as error:
            self.refusal = error


def read_head(fields: list[Field], fits: bool) -> Head:
    """The head that fields spell; `fits` says that none was left out for being too many.

    Raises StreamError for what may not be a request at all.
    """
    noted: dict[bytes, bytes] = {}
    twice = b""
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name not in _PSEUDO or name in noted:
                raise StreamError(PROTOCOL_ERROR)
            noted[name] = value
            continue
        regular = True
        if name in _NOTED:
            if name in noted:
                twice = name
            noted[name] = value
        elif name == b"traceparent":  # two are none
            noted[name] = b"" if name in noted else value
        elif name in _HOPPING:
            raise StreamError(PROTOCOL_ERROR)
    if not (noted.get(b":path") and noted.get(b":method") and noted.get(b":scheme")):
        raise StreamError(PROTOCOL_ERROR)
    head = Head(noted)
    if twice:
        head.refusal = invalid(f"the header {twice.decode()} is there twice")
    if not fits or len(fields) > MAX_FIELDS:
        head.refusal = TapsterError("too_large", "the headers are too large")
    return head


def _status(noted: dict[bytes, bytes]) -> bytes:
    if noted[b":method"] != b"POST":
        return b"405"
    kind = noted.get(b"content-type", b"")
    grpc = kind == b"application/grpc" or kind.startswith(
        (b"application/grpc+", b"application/grpc;")
    )
    return b"" if grpc else b"415"


def _identity(given: bytes) -> bytes:
    """The caller's identifier, if it may be echoed and written into logs."""
    fits = len(given) <= MAX_IDENTITY and given.isascii() and given.decode().isprintable()
    return given if fits else b""


def _encoding(name: bytes) -> bytes:
    if name == b"identity":
        return b""
    if name not in _ENCODINGS:
        raise TapsterError("unsupported", "messages may be compressed by gzip or deflate only")
    return name


def _timeout(given: bytes | None) -> float:
    if given is None:
        return 0.0
    digits, unit = given[:-1], _UNITS.get(given[-1:], 0.0)
    if not unit or not digits.isdigit() or len(digits) > 8:
        raise invalid("the header grpc-timeout must be up to eight digits and a unit")
    # Nothing at all is allowed too, and is over at once.
    return max(int(digits) * unit, 1e-9)
