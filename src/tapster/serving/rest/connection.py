"""A connection: bytes in by slices, answers out in order, and a client who takes too long.

It keeps uvicorn's connection bookkeeping, flow control and request cycle, and adds what a server
on an open port needs: deadlines for headers and bodies, one order for pipelined answers, a budget
of parsing a turn, one of memory for all connections, and refusals that reach the client. While
tenants compete, one that is over its share is held back (see `shares`).
"""

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from tapster.serving.rest.calls import Turn
from tapster.serving.rest.holding import NEVER, Holding
from tapster.serving.rest.service import Service

# Bytes that are parsed in one go; of requests in line while others wait, fewer.
SLICE: Final = 64 * 1024
SMALL_SLICE: Final = 4 * 1024
LINGER_SECONDS: Final = 1.0
DAWDLING_SECONDS: Final = 0.5
# Bytes a second: whoever takes an answer more slowly is taken for one who does not read.
SLOWEST: Final = 8 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class StopError(Exception):
    """Parsing ends here; the refusal is already in line."""


class Visit(Turn):
    """A request for the ASGI application, started when its turn comes."""

    __slots__ = ("cycle", "started")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        super().__init__(cycle.keep_alive)
        self.cycle = cycle
        self.started = False

    def abandon(self) -> None:
        self.cycle.disconnected = True
        self.cycle.message_event.set()


class Connection(Holding, ABC):
    """What a connection does whatever is asked by it."""

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(service, config, server_state, app_state, _loop)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._rest: bytes | memoryview = b""
        self._feeding = False
        self._parsing = False  # there may be more requests in what is being parsed
        self._halted = 0.0  # since when what has come waits for its tenant's turn; 0 if it does not
        self._finishing = False  # close once every answer is given
        self._stalled = (0, NEVER)
        self._message = False  # a request has begun and is not whole yet
        self._in_body = False
        self._partial = 0
        self._wants_continue = False
        self._left = False  # the client has said that it sends no more

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return len(self._line)

    # -- the connection

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.connections.discard(self)
        for turn in self._line:
            turn.abandon()
        self._line.clear()
        self._deaf = True
        self._rest = b""
        self._release()
        self._memory.owe(-self._owed)
        self._owed = 0
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has said all it had to say still gets its answers."""
        if not (self._line or self._rest):
            return None
        self._finishing = True
        self._left = True
        return True

    def pause_writing(self) -> None:
        """The client does not read: neither do we."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol. A client that has taken so much is not stuck."""
        super().resume_writing()
        self.account()
        self._stalled = (0, NEVER)
        self._read_on()

    def shutdown(self) -> None:
        """Finish what was asked, take what is on its way, then close."""
        self._finishing = True
        for turn in self._line:
            turn.keep_alive = turn is not self._line[-1]
        if not self._line:
            self.loop.call_later(LINGER_SECONDS / 4, self._close_idle)

    def check(self, now: float) -> None:
        """Close a connection whose client has taken too long; called a few times a second."""
        if self._service.draining and not self._finishing:
            self.shutdown()  # it was accepted just as the others were told
        left = self.account()
        self._excuse(now)
        if self._left and self._line and left == 0:
            self._probe()
        if self._stuck(now, left):
            self._cut_off()
        elif self._patience < now:
            self._no_room()
        elif self._held and self._memory.wanted and self._dawdles(now):
            self._refuse_now(408, "invalid", "others wait for room, and the body comes too slowly")
        elif self.deadline < now:
            self.deadline = NEVER
            if self._message and not self._line:
                self._refuse_now(408, "invalid", "the request did not arrive in time")
            elif not self.transport.is_closing():
                self.transport.close()

    def _probe(self) -> None:
        """Find out whether a client that sends no more still listens: if it has gone, writing
        fails, and its requests need not be run. Every HTTP/1.1 client passes over a 100."""
        old = self.parser.get_http_version() == "1.0"
        if not (old or isinstance(self._line[0], Visit) or self.transport.is_closing()):
            self.transport.write(CONTINUE)

    def _cut_off(self) -> None:
        """Reset the connection; else the kernel would go on offering what was written."""
        line = self.transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stuck(self, now: float, left: int) -> bool:
        """Whether the client has taken next to nothing of the `left` bytes for too long.

        Asked of closing connections too: they close only once everything is written.
        """
        size, until = self._stalled
        latest = now + self._settings.receive_timeout
        if left == 0:
            until = NEVER
        elif until == NEVER:
            until = latest
        elif left < size:
            until = min(until + (size - left) / SLOWEST, latest)
        self._stalled = (left, until)
        return until < now

    def _dawdles(self, now: float) -> bool:
        """Whether less than half has come of what should have, by the time that it may take."""
        passed = now - self._since
        due = self._held * passed / self._settings.receive_timeout
        return passed > DAWDLING_SECONDS and self._partial < due / 2

    def _close_idle(self) -> None:
        if not (self._line or self._message or self._halted or self.transport.is_closing()):
            self.transport.close()

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deaf:
            return
        if self._rest or self._asked:
            self._rest = bytes(self._rest) + data
            self.flow.pause_reading()
        elif len(data) > self._slice():
            self._rest = memoryview(data)
            self._feed_slice()
        else:
            self._feed(data)
            if len(self._line) >= self._longest:
                self.flow.pause_reading()

    def _slice(self) -> int:
        """How many bytes are parsed in one go."""
        return SMALL_SLICE if self._share.tight and not self._in_body else SLICE

    def _feed_rest(self) -> None:
        """Parse one slice a turn of the loop, so that no client has the loop to itself."""
        self._feeding = False
        share = self._share
        if self._halted:
            return
        if self._rest and share.spent >= share.most and self._service.shares.over(share):
            self._halt()
        else:
            share.spent += 1
            self._feed_slice()

    def _feed_slice(self) -> None:
        if self._deaf or self.parser is None:
            self._rest = b""
            return
        size = self._slice()
        piece, self._rest = self._rest[:size], self._rest[size:]
        self._feed(piece)
        self.flow.pause_reading()
        self._read_on()

    def _overdraws(self, data: bytes) -> bool:
        """Whether what has come must wait until its tenant's share comes round; asked once the
        share is spent."""
        if self._rest or self._asked or self._deaf or not self._service.shares.over(self._share):
            return False
        self._rest = data
        self._halt()
        return True

    def _halt(self) -> None:
        self._halted = self.loop.time()
        self._service.shares.hold(self._share, self)

    def read_on(self) -> None:
        """See shares.Reader."""
        self._excuse(self.loop.time())
        self._halted = 0.0
        data, self._rest = self._rest, b""
        if self._deaf or self.parser is None:
            return
        if isinstance(data, memoryview):
            self._rest = data
            self._share.spent += 1
            self._feed_slice()
        else:
            self.data_received(data)
            self._read_on()

    def _excuse(self, now: float) -> None:
        """A client that we keep waiting is not a slow one."""
        if self._halted:
            passed, self._halted = now - self._halted, now
            self.deadline += passed
            self._since += passed

    def _read_on(self) -> None:
        """Go on reading, unless the client must first read or wait for its answers."""
        if (
            self.flow.write_paused
            or self._asked
            or self._halted
            or len(self._line) >= self._longest
        ):
            return
        if not self._rest:
            self.flow.resume_reading()
        elif not self._feeding:
            self._feeding = True
            self.loop.call_soon(self._feed_rest)

    def _feed(self, data: bytes | memoryview) -> None:
        self._partial += len(data)
        self._parsing = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, StopError) or self._deaf:
                return
            if isinstance(error.__context__, Exception):
                raise error.__context__ from None
            self._refuse_now(400, "invalid", f"this is not HTTP: {error}"[:200])
        else:
            self._parsing = False
            if self._finishing and not self._line:
                self._finish()
            if self._message and not self._in_body and self._partial > self._settings.max_headers:
                self._refuse_now(431, "invalid", "the headers are too large")
            elif self._message and self._in_body and not self._asked:
                self._reserve()
        finally:
            self._parsing = False

    # -- answers out

    def advance(self) -> None:
        """See Line."""
        line = self._line
        while line:
            turn = line[0]
            if turn.response is None:
                if isinstance(turn, Visit) and not turn.started:
                    turn.started = True
                    self._start_asgi_task(turn.cycle, self.app)
                return
            line.popleft()
            self.transport.write(turn.response)
            if not turn.keep_alive:
                self._end()
                return
        # Every request so far is answered.
        if self._finishing and self._finish():
            return
        wait = self._settings.receive_timeout if self._message else self._settings.keep_alive
        self.deadline = self.loop.time() + wait
        if self._wants_continue:
            self._wants_continue = False
            self.transport.write(CONTINUE)
        if self.flow.read_paused:
            self._read_on()

    def _finish(self) -> bool:
        """Close, if there is no request to come; whether it did."""
        if self._message or self._rest or self._parsing:
            return False
        self.transport.close()
        return True

    def on_response_complete(self) -> None:
        """The ASGI application has answered."""
        if self._line:
            self._line.popleft()
        if not self.transport.is_closing():
            self.advance()

    def _end(self) -> None:
        """The last answer of this connection has been written."""
        self._deaf = True
        self._rest = b""
        for turn in self._line:
            turn.abandon()
        self._line.clear()
        # Nothing may be written any more, thus nobody is told that it took too long.
        self.deadline = self._patience = NEVER
        self._release()
        if self._message and self.transport.can_write_eof():
            # Closing with unread input would reset the connection under the refusal.
            self.flow.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    # -- what a request is, is the subclass's business

    @abstractmethod
    def _without_upgrade(self, rest: bytes | memoryview) -> None:
        """Go on with a request that offered an upgrade as if it had not."""
