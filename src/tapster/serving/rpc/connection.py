"""The life of an HTTP/2 connection: greeting, time limits, keep-alive, and the end of it.

A connection without streams is closed after the keep-alive time, and one whose peer is silent is
asked whether it lives. Both ends are told before they are done: a peer that knows which streams
were not looked at sends them again elsewhere, and nothing is lost. While tenants compete, one that
is over its share is held back (see `shares`).
"""

import math
import socket
import struct
from abc import abstractmethod
from typing import Any, Final

from tapster.core.settings import Settings
from tapster.serving.rest.connection import SLOWEST
from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import HEAD_BYTES, MAX_WINDOW, PING, WINDOW, PeerError
from tapster.serving.rpc.receiving import MAX_STREAMS, PATIENCE, SHARED_WINDOW, Receiving
from tapster.serving.shares import BYTES_BITS, Shares

LINGER_SECONDS: Final = 1.0
NEVER: Final = math.inf
_LEAVING: Final = b"leaving!"
_LEAVING_NOW: Final = b"leaving."
_ASKING: Final = b"alive?  "


class Connection(Receiving):
    """What a connection does whatever its streams carry."""

    def __init__(self, settings: Settings, connections: "set[Any]", shares: Shares) -> None:
        super().__init__(settings.max_headers, settings.receive_timeout, shares.strangers)
        self._shares = shares
        self._halted = 0.0  # since when what has come waits for its tenant's turn; 0 if it does not
        self._settings = settings
        self._connections = connections
        self._rest = b""
        self._greeted = False  # the preface has come
        self._leaving = False
        self._renewed = 0.0
        self._heard = self._quiet = self._loop.time()
        self._overdue = self._heard + settings.receive_timeout
        self._asked = False
        self._unread = (0, NEVER)

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._connections.discard(self)
        self._drop_all()

    def eof_received(self) -> bool:
        """A peer that says no more still gets the answers to what it said, if it is there.

        What it has not said to the end is over. If it has gone, writing to it fails.
        """
        while not self._deaf and (self._halted or self._whole()):
            self.read_on()
        if self._deaf:
            return False
        self._deaf = self._leaving = True
        for stream in list(self._streams.values()):
            # Nor will it widen a window that is too narrow for what waits.
            if not self._answerable(stream) or (stream.out is not None and not self._paused):
                self._gone(stream)
                self._forget(stream)
        return bool(self._streams)

    def pause_writing(self) -> None:
        """The peer does not read: neither do we."""
        self._paused = True
        if not self._deaf:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._pump()
        if not self._deaf and not self._paused:
            self._transport.resume_reading()

    def shutdown(self) -> None:
        """Take no new streams, once the peer knows; close when those there are have ended.

        Said again to one that has not greeted yet: a peer refused while it connects sends no more.
        """
        if self._leaving or self._deaf:
            return
        if not self._greeted:
            if self._loop.time() - self._heard > LINGER_SECONDS:
                self._transport.close()
            return
        self._leaving = True
        self._write(frames.go_away(MAX_WINDOW, frames.NO_ERROR))
        self._write(frames.frame(PING, 0, 0, _LEAVING))
        self._loop.call_later(LINGER_SECONDS, self._leave)

    def abort(self) -> None:
        """Reset the connection; else the kernel would go on offering what was written."""
        line = self._transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def check(self, now: float) -> None:
        """End what takes too long; called a few times a second."""
        self._excuse(now)
        if self._stuck(now):
            self.abort()
            return
        for stream in list(self._blocked.values()):
            if stream.due < now:
                self._abandon(stream, frames.CANCEL)
        if self._deaf:
            if self._streams:  # whoever has gone makes this fail
                self._write(frames.frame(PING, 0, 0, _ASKING))
            return
        if now - self._renewed >= 1.0:
            self._renewed, self._patience = now, PATIENCE
        if self._overdue < now:
            self._fail(PeerError(frames.SETTINGS_TIMEOUT, "it did not arrive in time"))
            return
        self._check_silence(now)

    def _check_silence(self, now: float) -> None:
        settings = self._settings
        if not self._streams:
            if now - self._quiet > settings.keep_alive:
                self.shutdown()
        elif self._asked:
            if now - self._heard > settings.receive_timeout:
                self.abort()
        elif now - self._heard > settings.keep_alive:
            self._asked, self._heard = True, now
            self._write(frames.frame(PING, 0, 0, _ASKING))

    def _stuck(self, now: float) -> bool:
        """Whether the peer has taken next to nothing of what was written for too long."""
        left = self._transport.get_write_buffer_size()
        size, until = self._unread
        latest = now + self._settings.receive_timeout
        if left == 0:
            until = NEVER
        elif until == NEVER:
            until = latest
        elif left < size:
            until = min(until + (size - left) / SLOWEST, latest)
        self._unread = (left, until)
        return until < now

    def _leave(self) -> None:
        """The peer knows that no new stream is taken."""
        if self._final == MAX_WINDOW and not self._deaf:
            self._final = self._last
            self._write(frames.go_away(self._last, frames.NO_ERROR))
            if not self._streams:
                self._hang_up()

    def _fail(self, fault: PeerError) -> None:
        """Say what is wrong and hear no more."""
        self._write(frames.go_away(self._last, fault.code, str(fault)))
        self._drop_all()
        self._hang_up()

    def _drop_all(self) -> None:
        self._deaf = True
        self._rest = b""
        for stream in list(self._streams.values()):
            self._gone(stream)
            self._forget(stream)

    def _hang_up(self) -> None:
        """Close once the peer has read the rest: at once would reset the connection under it."""
        self._deaf = True
        self._rest = b""
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(LINGER_SECONDS, self._transport.close)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deaf:
            return
        self._heard = self._loop.time()
        self._asked = False
        share = self._share
        if self._halted:
            self._rest += data
            self._transport.pause_reading()
        elif share.spent >= share.most and self._shares.over(share):
            self._rest += data
            self._halt()
        else:
            share.spent += 1 + (len(data) >> BYTES_BITS)
            self._process(self._rest + data if self._rest else data)

    def _process(self, data: bytes) -> None:
        try:
            at = 0 if self._greeted else self._greet(data)
            at = self._read(data, at) if self._greeted else 0
        except PeerError as fault:
            self._fail(fault)
            return
        if self._deaf:
            return
        self._rest = data[at:]
        if not self._rest and self._block is None:
            if self._settled:
                self._overdue = NEVER
        elif self._overdue == NEVER or (at and self._settled and self._block is None):
            # What is not whole now has only just begun.
            self._overdue = self._heard + self._settings.receive_timeout
        if self._whole():
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Parse what the turn before had no time for."""
        share = self._share
        if self._deaf or self._halted:
            return
        if share.spent >= share.most and self._shares.over(share):
            self._halt()
        else:
            share.spent += 1
            self._process_rest()

    def _halt(self) -> None:
        """Let what has come wait until the tenant's share comes round."""
        self._halted = self._loop.time()
        self._shares.hold(self._share, self)

    def read_on(self) -> None:
        """See shares.Reader."""
        self._excuse(self._loop.time())
        self._halted = 0.0
        if not self._deaf:
            self._share.spent += 1
            self._process_rest()

    def _excuse(self, now: float) -> None:
        """A peer that we keep waiting is not a slow one."""
        if self._halted:
            passed, self._halted = now - self._halted, now
            self._heard += passed
            self._overdue += passed
            for stream in self._streams.values():
                stream.excuse(passed)

    def _process_rest(self) -> None:
        self._process(self._rest)
        if not self._deaf and not self._paused and not self._whole():
            self._transport.resume_reading()

    def _whole(self) -> bool:
        """Whether a whole frame waits to be parsed."""
        rest = self._rest
        return len(rest) >= HEAD_BYTES and len(rest) >= HEAD_BYTES + int.from_bytes(rest[:3], "big")

    def _greet(self, data: bytes) -> int:
        preface = frames.PREFACE
        if data[: len(preface)] == preface:
            self._greeted = True
            limits = {
                frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                frames.MAX_HEADER_LIST_SIZE: self._settings.max_headers,
            }
            widened = frames.window_update(0, SHARED_WINDOW - WINDOW)
            self._write(frames.settings(limits) + widened)
            return len(preface)
        if data != preface[: len(data)]:
            self._refuse_stranger(data)
        return 0

    def _heard_back(self, payload: bytes) -> None:
        # gRPC's clients acknowledge a ping ahead of streams they had begun before they read it:
        # those have come once they acknowledge another one.
        if payload == _LEAVING:
            self._write(frames.frame(PING, 0, 0, _LEAVING_NOW))
        elif payload == _LEAVING_NOW:
            self._leave()

    def _emptied(self) -> None:
        """The last stream has ended."""
        self._quiet = self._loop.time()
        if self._leaving and (self._final != MAX_WINDOW or self._deaf):
            self._hang_up()

    @abstractmethod
    def _answerable(self, stream: Any) -> bool:
        """Whether a stream has an answer coming, though its peer will say no more."""

    @abstractmethod
    def _refuse_stranger(self, data: bytes) -> None:
        """The peer does not speak HTTP/2."""
