"""Frames of an HTTP/2 connection, as they come in (RFC 9113), and what may not come.

The connection's window is renewed as bytes come in, because what a peer may leave here is bounded
by its streams' windows, which whoever gathers the messages widens. Frames that ask for nothing are
counted, and too many of them a second end the connection.
"""

from abc import abstractmethod
from typing import Any, Final

from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEAD_BYTES,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    WITH_PRIORITY,
    PeerError,
    StreamError,
    unpack_head,
)
from tapster.serving.rpc.hpack import Decoder
from tapster.serving.rpc.streams import MAX_OUT_FRAME, Sending
from tapster.serving.shares import QUOTA, Share

MAX_STREAMS: Final = 256
# Frames that are taken in one go; while others wait, fewer.
FRAMES_A_TURN: Final = 1024
FRAMES_SHARED: Final = 2 * QUOTA
# Headers that are longer than usual count as a frame for so many bytes: decoding them takes long.
USUAL_BLOCK: Final = 1024
BLOCK_BYTES_A_FRAME: Final = 32
# The connection's window, and after how many bytes it is renewed.
SHARED_WINDOW: Final = 1 << 20
RENEWAL: Final = 1 << 19
# Frames a second that ask for nothing: pings, resets, settings, empty data.
PATIENCE: Final = 4000
PRIORITY_BYTES: Final = 5


class Receiving(Sending):
    """The half of a connection that takes frames in."""

    def __init__(self, max_headers: int, patience: float, share: Share) -> None:
        super().__init__(patience)
        self._share = share
        self._max_headers = max_headers
        self._last = 0  # the newest stream
        self._final = MAX_WINDOW  # the last stream that is served
        self._settled = False  # the peer's settings have come
        self._deaf = False  # whatever else arrives is dropped
        self._decoder = Decoder(max_headers)
        self._block: bytearray | None = None  # of headers that go on in the next frame
        self._block_of = (0, 0)
        self._taken = 0
        self._patience = PATIENCE
        self._widened = False  # the peer has let us send more since we last looked

    def _read(self, data: bytes, at: int) -> int:
        """Take frames; returns where the first one begins that was not taken."""
        end = len(data)
        left = FRAMES_SHARED if self._share.tight else FRAMES_A_TURN
        headed = -1  # where the frame of headers begins that was just taken
        while left > 0:
            if end - at < HEAD_BYTES:
                break
            if self._block is None and (known := self._again(data, at)):
                at += known
                left -= 1
                continue
            high, low, kind, flags, number = unpack_head(data, at)
            start = at + HEAD_BYTES
            after = start + (high << 8 | low)
            if after - start > FRAME_BYTES:
                raise PeerError(frames.FRAME_SIZE_ERROR, "a frame is too large")
            if after > end:
                break
            left -= _weight(kind, after - start)
            before, at = at, after
            number &= MAX_WINDOW
            try:
                self._on_frame(kind, flags, number, data[start:after])
            except StreamError as fault:
                self._refuse_stream(number, fault.code)
            if kind == DATA and headed >= 0:
                self._learn(data, headed, after)
            headed = before if kind == HEADERS else -1
            if self._deaf:
                break
        if self._widened:
            self._widened = False
            self._pump()
        return at

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None:
            self._on_other(kind, flags, number, payload)
        elif kind == DATA:
            self._on_data(flags, number, payload)
        elif kind == HEADERS:
            self._on_headers(flags, number, payload)
        else:
            self._on_other(kind, flags, number, payload)

    def _refuse_stream(self, number: int, code: int) -> None:
        self._bother()
        stream = self._streams.get(number)
        if stream is not None:
            self._abandon(stream, code)
        else:
            self._write(frames.reset(number, code))

    def _takes(self, number: int, size: int) -> bool:
        """Open a new stream that begins and ends with so much data, if that may be."""
        if (
            not number & 1
            or not self._last < number <= min(self._final, MAX_WINDOW)
            or len(self._streams) >= MAX_STREAMS
            or self._taken + size >= RENEWAL
        ):
            return False
        self._last = number
        self._taken += size
        return True

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._taken += size
        if self._taken >= RENEWAL:
            self._write(frames.window_update(0, self._taken))
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None:
            if not number & 1 or number > self._last:
                raise PeerError(frames.PROTOCOL_ERROR, "there is data for no stream")
            self._bother(not size)
            return
        stream.room -= size
        if stream.ended or stream.room < 0:
            raise StreamError(frames.STREAM_CLOSED if stream.ended else frames.FLOW_CONTROL_ERROR)
        if flags & PADDED:
            payload = frames.unpadded(flags, payload)
        if flags & END_STREAM:
            stream.ended = True
        elif not payload:
            self._bother()
        self._take(stream, payload)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = frames.unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < PRIORITY_BYTES:
                raise PeerError(frames.FRAME_SIZE_ERROR, "a priority has five bytes")
            payload = payload[PRIORITY_BYTES:]
        if flags & END_HEADERS:
            self._on_block(number, payload, bool(flags & END_STREAM))
        else:
            self._block, self._block_of = bytearray(payload), (number, flags)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or number != self._block_of[0]:
            raise PeerError(frames.PROTOCOL_ERROR, "a continuation of nothing")
        self._bother()
        self._block += payload
        if len(self._block) > self._max_headers:
            raise PeerError(frames.ENHANCE_YOUR_CALM, "the headers are too large")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(number, block, bool(self._block_of[1] & END_STREAM))

    def _on_block(self, number: int, block: bytes, ended: bool) -> None:
        """A whole block of headers: a new stream, or the end of one."""
        if number > self._last and number & 1:
            self._last = number
            if len(self._streams) >= MAX_STREAMS:
                self._decoder.decode(block)
                self._write(frames.reset(number, frames.REFUSED_STREAM))
                self._bother()
            elif number > self._final:
                self._decoder.decode(block)
            else:
                self._open(number, block, ended)
            return
        self._decoder.decode(block)
        stream = self._streams.get(number)
        if stream is None:
            if not number & 1 or not ended:
                raise PeerError(frames.STREAM_CLOSED, "headers for a stream that is closed")
            return
        if stream.ended or not ended:
            raise StreamError(frames.STREAM_CLOSED if stream.ended else frames.PROTOCOL_ERROR)
        stream.ended = True
        self._take(stream, b"")

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == CONTINUATION:
            self._on_continuation(flags, number, payload)
            return
        if self._block is not None:
            raise PeerError(frames.PROTOCOL_ERROR, "a block of headers is interrupted")
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(number, payload)
            return
        self._bother()
        if kind == frames.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == PING:
            self._on_ping(flags, number, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(number, payload)
        elif kind == frames.PUSH_PROMISE:
            raise PeerError(frames.PROTOCOL_ERROR, "clients do not push")
        # PRIORITY, GOAWAY (the peer will open no more) and what we do not know change nothing.

    def _on_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise PeerError(frames.FRAME_SIZE_ERROR, "a window update has four bytes")
        increment = frames.unpack_number(payload)[0] & MAX_WINDOW
        stream = self._streams.get(number) if number else None
        if number and stream is None:
            if number > self._last:
                raise PeerError(frames.PROTOCOL_ERROR, "a window for no stream")
            self._bother()
            return
        if stream is None:
            self._window += increment
            fits = self._window <= MAX_WINDOW
        else:
            stream.credit += increment
            fits = self._initial + stream.credit <= MAX_WINDOW
        if not fits or not increment:
            code = frames.PROTOCOL_ERROR if fits else frames.FLOW_CONTROL_ERROR
            raise StreamError(code) if stream else PeerError(code, "a window that cannot be")
        self._widened = True

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or (flags & ACK and payload):
            raise PeerError(frames.PROTOCOL_ERROR, "settings that cannot be")
        if flags & ACK:
            return
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise PeerError(frames.FLOW_CONTROL_ERROR, "the window is too large")
                self._resize(value)
            elif name == frames.MAX_FRAME_SIZE:
                if not FRAME_BYTES <= value < 1 << 24:
                    raise PeerError(frames.PROTOCOL_ERROR, "frames cannot have that size")
                self._frame_bytes = min(value, MAX_OUT_FRAME)
            elif name == frames.ENABLE_PUSH and value > 1:
                raise PeerError(frames.PROTOCOL_ERROR, "push is 0 or 1")
        self._settled = True
        self._write(frames.frame(frames.SETTINGS, ACK, 0))
        self._widened = True

    def _resize(self, window: int) -> None:
        """The peer gives every stream another window (RFC 9113, 6.9.2)."""
        self._initial = window
        if any(window + stream.credit > MAX_WINDOW for stream in self._streams.values()):
            raise PeerError(frames.FLOW_CONTROL_ERROR, "a stream's window is too large")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise PeerError(frames.FRAME_SIZE_ERROR, "a ping has eight bytes")
        if not flags & ACK:
            self._write(frames.frame(PING, ACK, 0, payload))
        else:
            self._heard_back(payload)

    def _on_reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise PeerError(frames.FRAME_SIZE_ERROR, "a reset has four bytes")
        if not number or number > self._last:
            raise PeerError(frames.PROTOCOL_ERROR, "a reset of no stream")
        stream = self._streams.get(number)
        if stream is not None:
            stream.ended = True
            self._gone(stream)
            self._forget(stream)

    def _bother(self, really: bool = True) -> None:
        """Count a frame that asks for nothing."""
        if really:
            self._patience -= 1
            if self._patience < 0:
                raise PeerError(frames.ENHANCE_YOUR_CALM, "too many frames of no use")

    @abstractmethod
    def _again(self, data: bytes, at: int) -> int:
        """Take a whole request that lies at `at`, if it is known; how many bytes that is."""

    @abstractmethod
    def _learn(self, data: bytes, start: int, end: int) -> None:
        """Headers and data that have just been taken, one after the other."""

    @abstractmethod
    def _open(self, number: int, block: bytes, ended: bool) -> None:
        """A stream begins: decode its headers and put it into `_streams`."""

    @abstractmethod
    def _take(self, stream: Any, data: bytes) -> None:
        """Data of a stream; `stream.ended` says whether more will come."""

    @abstractmethod
    def _heard_back(self, payload: bytes) -> None:
        """The peer has answered a ping."""


def _weight(kind: int, size: int) -> int:
    """For how many frames a frame counts."""
    if size > USUAL_BLOCK and kind in {HEADERS, CONTINUATION}:
        return size // BLOCK_BYTES_A_FRAME
    return 1
