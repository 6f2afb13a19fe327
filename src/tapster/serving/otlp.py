"""Spans as OpenTelemetry's protocol has them, over HTTP: spelled here, to cost little.

Only what spans of requests need of `ExportTraceServiceRequest` is written; field numbers are those
of opentelemetry-proto 1.x (trace.proto, common.proto, resource.proto), which do not change.
Source: OTLP specification 1.x, "OTLP/HTTP", with its list of statuses that are worth another try.
"""

import http.client
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

Value = str | int | float

INTERNAL: Final = 1
SERVER: Final = 2
PATH: Final = "/v1/traces"
ANSWER_SECONDS: Final = 5.0
AGAIN: Final = frozenset({429, 502, 503, 504})
_LENGTH: Final = 2
_DOUBLE: Final = struct.Struct("<d")
_TIMES: Final = struct.Struct("<BQBQ")
_FAILED: Final = b"\x7a\x02\x18\x02"  # status (15): code (3) = ERROR (2)


class Sender:
    """Sends batches to a collector, each by a connection of its own; blocks.

    `headers` are as `OTEL_EXPORTER_OTLP_HEADERS` spells them: `name=value,name=value`.
    """

    def __init__(self, url: str, headers: str = "") -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port
        self._path = parts.path.rstrip("/") + PATH
        pairs = [pair.partition("=") for pair in headers.split(",") if "=" in pair]
        self._headers = {name.strip(): unquote(value.strip()) for name, _, value in pairs}

    def send(self, batch: bytes) -> int:
        """The status of the collector's answer. Raises OSError and http.client.HTTPException."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        line = kind(self._host, self._port, timeout=ANSWER_SECONDS)
        try:
            headers = {**self._headers, "Content-Type": "application/x-protobuf"}
            line.request("POST", self._path, batch, headers)
            answer = line.getresponse()
            answer.read(1 << 16)
            return answer.status
        finally:
            line.close()


def request(resource: Mapping[str, Value], scope: str, spans: Iterable[bytes]) -> bytes:
    """All that is sent at once: spans of one resource."""
    described = b"".join([attribute(name, value, 1) for name, value in resource.items()])
    named = _field(1, scope.encode())
    scoped = _field(1, named) + b"".join([_field(2, span) for span in spans])
    return _field(1, _field(1, described) + _field(2, scoped))


def span(
    trace: bytes,
    own: bytes,
    parent: bytes,
    name: str,
    times: tuple[int, int],
    *,
    kind: int = INTERNAL,
    attributes: bytes = b"",
    failed: bool = False,
) -> bytes:
    """A span: ids of 16, 8 and 8 bytes (`parent` b"" for none), start and end in ns since 1970."""
    return b"".join(
        (
            _field(1, trace),
            _field(2, own),
            _field(4, parent) if parent else b"",
            _text(5, name),
            bytes((6 << 3, kind)),
            _TIMES.pack(7 << 3 | 1, times[0], 8 << 3 | 1, times[1]),
            attributes,
            _FAILED if failed else b"",
        )
    )


def attribute(name: str, value: Value, number: int = 9) -> bytes:
    """An attribute of a span (field 9) or, by its `number`, of something else."""
    if isinstance(value, str):
        spelled = _field(1, value.encode())
    elif isinstance(value, int):
        spelled = b"\x18" + _varint(value)
    else:
        spelled = b"\x21" + _DOUBLE.pack(value)
    return _field(number, _text(1, name) + _field(2, spelled))


@lru_cache(256)
def _text(number: int, text: str) -> bytes:
    """A field whose text is one of few."""
    return _field(number, text.encode())


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, by its length; numbers below 16 take one byte."""
    size = len(data)
    if size < 128:
        return bytes((number << 3 | _LENGTH, size)) + data
    return b"%c%b%b" % (number << 3 | _LENGTH, _varint(size), data)


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
