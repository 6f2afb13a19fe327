"""Streams of an HTTP/2 connection, and answers out, as far as the peer's windows allow."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from tapster.serving.rest.connection import SLOWEST
from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADERS,
    WINDOW,
    head,
)

MAX_OUT_FRAME: Final = 1 << 16
WRITE_BUFFER: Final = 1 << 18


class Stream:
    """One request and its answer, as HTTP/2 sees them.

    `room`: bytes that the peer may still send. `credit`: bytes that we may send beyond the peer's
    initial window; negative once some of it is used. `ended`: the peer has said all it has to say.
    `out`: data that waits until it may be sent, then `tail`, the block of trailers, if any yet.
    `owed`: the bytes of that, `due`: when it is too late for some of it to be taken.
    """

    __slots__ = ("credit", "due", "ended", "id", "out", "owed", "room", "tail")

    def __init__(self, number: int, ended: bool) -> None:
        self.id = number
        self.ended = ended
        self.room = WINDOW
        self.credit = 0
        self.out: deque[memoryview] | None = None
        self.tail = b""
        self.owed = 0
        self.due = 0.0

    def excuse(self, passed: float) -> None:
        """We have not read for so many seconds: its time limits are so much later."""
        self.due += passed


class Sending(asyncio.Protocol, ABC):
    """The half of a connection that sends. Whoever takes its frames in is the subclass.

    A stream of whose answer next to nothing is taken for `patience` seconds is to be given up.
    """

    def __init__(self, patience: float) -> None:
        self._patience_out = patience
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._write: Callable[[bytes], None]
        self._streams: dict[int, Any] = {}
        self._window = WINDOW
        self._initial = WINDOW
        self._frame_bytes = FRAME_BYTES
        self._blocked: dict[int, Stream] = {}
        self._paused = False

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport
        self._write = transport.write
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def _answer(self, stream: Stream, begin: bytes, data: bytes, tail: bytes) -> None:
        """Send the block `begin` of headers, data, and the block `tail` of trailers, which ends.

        Each may be empty: there are no headers, no data, or more is to come. Headers alone end it.
        """
        size = len(data)
        if begin and size and tail and stream.out is None and self._fits(stream, size):
            self._window -= size
            stream.credit -= size
            self._write(frames.unary(stream.id, begin, data, tail))
            self._close(stream)
            return
        if begin:
            last = END_HEADERS if data or tail else END_HEADERS | END_STREAM
            begin = head(len(begin), HEADERS, last, stream.id) + begin
        if stream.out is None and (not size or self._fits(stream, size)):
            if size:
                self._window -= size
                stream.credit -= size
                begin = b"".join((begin, head(size, DATA, 0, stream.id), data))
            if tail:
                begin += head(len(tail), HEADERS, END_HEADERS | END_STREAM, stream.id) + tail
            self._write(begin)
            if tail or not size:
                self._close(stream)
            return
        if begin:
            self._write(begin)
        self._queue(stream, data, tail)

    def _fits(self, stream: Stream, size: int) -> bool:
        """Whether so many bytes may be sent now, in one frame."""
        return (
            size <= self._frame_bytes
            and size <= self._window
            and size <= self._initial + stream.credit
            and not self._paused
        )

    def _queue(self, stream: Stream, data: bytes, tail: bytes) -> None:
        if stream.out is None:
            stream.out = deque()
            stream.due = self._loop.time() + self._patience_out
            self._blocked[stream.id] = stream
        if data:
            stream.out.append(memoryview(data))
            stream.owed += len(data)
            self._hold(len(data))
        stream.tail = tail
        self._pump()

    def _pump(self) -> None:
        """Send what windows allow, a frame of each stream in turn."""
        moving = bool(self._blocked)
        while moving:
            moving = False
            for stream in list(self._blocked.values()):
                if self._paused:
                    return
                # What was unblocked before may have had all of this one sent.
                if stream.id in self._blocked and self._step(stream):
                    moving = True

    def _step(self, stream: Stream) -> bool:
        """Send one frame of a stream that waits; whether that was possible."""
        out = stream.out
        assert out is not None
        if out:
            room = min(self._frame_bytes, self._window, self._initial + stream.credit)
            if room <= 0:
                return False
            piece = out[0][:room]
            if len(piece) == len(out[0]):
                out.popleft()
            else:
                out[0] = out[0][room:]
            self._window -= len(piece)
            stream.credit -= len(piece)
            stream.owed -= len(piece)
            self._hold(-len(piece))
            latest = self._loop.time() + self._patience_out
            stream.due = min(stream.due + len(piece) / SLOWEST, latest)
            self._write(head(len(piece), DATA, 0, stream.id) + piece)
        if not out:
            self._sent(stream)
        return True

    def _sent(self, stream: Stream) -> None:
        """Everything that waited has been sent."""
        stream.out = None
        del self._blocked[stream.id]
        if stream.tail:
            flags = END_HEADERS | END_STREAM
            self._write(head(len(stream.tail), HEADERS, flags, stream.id) + stream.tail)
            self._close(stream)
        else:
            self._unblocked(stream)

    def _close(self, stream: Stream) -> None:
        """Everything is said on this stream."""
        if not stream.ended:
            self._write(frames.reset(stream.id, frames.NO_ERROR))
        self._forget(stream)

    def _abandon(self, stream: Stream, code: int) -> None:
        """End a stream without an answer."""
        self._write(frames.reset(stream.id, code))
        self._gone(stream)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            if stream.out is not None:
                self._blocked.pop(stream.id, None)
                self._hold(-stream.owed)
                stream.owed = 0
            self._freed(stream)

    @abstractmethod
    def _hold(self, size: int) -> None:
        """So many bytes more (or fewer) wait until they may be sent."""

    @abstractmethod
    def _unblocked(self, stream: Any) -> None:
        """All data that a stream had to send has been sent."""

    @abstractmethod
    def _freed(self, stream: Any) -> None:
        """A stream has ended, whichever way."""

    @abstractmethod
    def _gone(self, stream: Any) -> None:
        """A stream's caller will not read its answer."""
