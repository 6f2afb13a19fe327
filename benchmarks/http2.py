"""gRPC for the load generator: just enough HTTP/2 to call one method over and over.

A caller has a connection of its own and one call open at a time. Requests look as gRPC's C core
writes them: the first one's headers go into the compression table, all others refer to it (RFC
9113, RFC 7541). Response headers are not read: a call that failed has no message in its answer.
"""

import asyncio
import struct
import time
from typing import Any, Final, cast

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WIDEST: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65_535
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
# Names of RFC 7541's static table by their place in it.
_KNOWN: Final = {":authority": 1, ":path": 4, "authorization": 23, "content-type": 31}
_POST, _HTTP, _FIRST = 0x83, 0x86, 62


class Connection(asyncio.Protocol):
    """One gRPC caller: calls again as soon as the answer to the last call is whole."""

    def __init__(self, tally: Any, first: int) -> None:
        self._tally = tally
        self._messages = [b"\0" + len(message).to_bytes(4) + message for message in tally.requests]
        self._case = first
        self._first_block, self._block = header_blocks(tally.plan.headers)
        self._stream = -1
        self._buffer = b""
        self._message = b""
        self._unsent = b""
        self._window = DEFAULT_WINDOW
        self._stream_window = self._initial_window = DEFAULT_WINDOW
        self._frame_size = 16_384
        self._taken = 0
        self._sent = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce ourselves; the first call waits for the server's settings."""
        self._transport = cast(asyncio.Transport, transport)
        self._tally.open += 1
        settings = struct.pack(">HIHI", INITIAL_WINDOW_SIZE, WIDEST, 2, 0)
        self._transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + self._widen(WIDEST))

    def connection_lost(self, exc: Exception | None) -> None:
        """Servers must not close."""
        if not self._tally.stopping:
            self._tally.wrong(f"the server closed a connection: {exc!r}")
        self._tally.closed()

    def data_received(self, data: bytes) -> None:
        """Take whole frames; keep what is left of one."""
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        while end - at >= 9:
            stop = at + 9 + int.from_bytes(data[at : at + 3])
            if stop > end:
                break
            self._take(data[at + 3], data[at + 4], data[at + 5 : stop])
            at = stop
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, rest: bytes) -> None:
        """One frame; `rest` begins with the stream's number."""
        if kind == DATA:
            self._message += rest[4:]
            self._taken += len(rest)
            if self._taken > WIDEST // 2:
                self._transport.write(self._widen(self._taken))
                self._taken = 0
        elif kind != HEADERS:
            self._control(kind, flags, rest)
        if flags & END_STREAM and kind in {DATA, HEADERS}:
            self._answered(rest)

    def _answered(self, last: bytes) -> None:
        tally, message = self._tally, self._message
        if len(message) < 5 or message[0] or len(message) != 5 + int.from_bytes(message[1:5]):
            tally.wrong(f"no message in the answer, which ended with {last!r}")
        else:
            tally.take(b"", message[5:], self._case, self._sent)
        if tally.stopping:
            self._transport.close()
            return
        self._case += 1
        if self._case == len(self._messages):
            self._case = 0
        self._call()

    def _call(self) -> None:
        """Open the next stream and send as much of the message as the windows allow."""
        self._sent = time.perf_counter()
        self._stream += 2
        self._message = b""
        block = self._first_block if self._stream == 1 else self._block
        head = frame(HEADERS, END_HEADERS, self._stream, block)
        message = self._messages[self._case]
        self._stream_window = self._initial_window
        if len(message) <= min(self._frame_size, self._window, self._stream_window):
            self._window -= len(message)
            self._transport.write(head + frame(DATA, END_STREAM, self._stream, message))
        else:
            self._transport.write(head)
            self._unsent = message
            self._send_more()

    def _send_more(self) -> None:
        while self._unsent:
            size = min(self._frame_size, self._window, self._stream_window, len(self._unsent))
            if size <= 0:
                return
            piece, self._unsent = self._unsent[:size], self._unsent[size:]
            self._window -= size
            self._stream_window -= size
            last = 0 if self._unsent else END_STREAM
            self._transport.write(frame(DATA, last, self._stream, piece))

    def _control(self, kind: int, flags: int, rest: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._configure(rest[4:])
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, rest[4:]))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(rest[4:8])
            if int.from_bytes(rest[:4]):
                self._stream_window += more
            else:
                self._window += more
            self._send_more()
        elif kind in {RST_STREAM, GOAWAY}:
            self._tally.wrong(f"the server gave up: {rest!r}")
            self._transport.abort()

    def _configure(self, settings: bytes) -> None:
        """Take the server's settings; the first ones start the first call."""
        for name, value in struct.iter_unpack(">HI", settings):
            if name == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME_SIZE:
                self._frame_size = value
        self._transport.write(frame(SETTINGS, ACK, 0, b""))
        if self._stream < 0:
            self._call()

    def _widen(self, size: int) -> bytes:
        """A WINDOW_UPDATE for the whole connection, up to the largest window there is."""
        more = min(size, WIDEST - DEFAULT_WINDOW)
        return frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def header_blocks(headers: dict[str, str]) -> tuple[bytes, bytes]:
    """The header blocks of a connection's first request and of all others.

    `headers` must hold `:path` and `:authority`.
    """
    first = bytes([_POST, _HTTP])
    entries = {
        **headers,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "grpc-load",
        "grpc-accept-encoding": "identity",
    }
    for name, text in entries.items():
        known = _KNOWN.get(name)
        first += bytes([0x40 | known]) if known else b"\x40" + _string(name)
        first += _string(text)
    others = [0x80 | _FIRST + place for place in reversed(range(len(entries)))]
    return first, bytes([_POST, _HTTP, *others])


def _string(text: str) -> bytes:
    """A string as HPACK writes it without Huffman coding (lengths with a prefix of 7 bits)."""
    data = text.encode()
    left = len(data) - 127
    if left < 0:
        return bytes([len(data)]) + data
    length = b"\x7f"
    while left > 127:
        length += bytes([left & 127 | 128])
        left >>= 7
    return length + bytes([left]) + data
