"""Messages of gRPC, gathered from the data of streams, within bounds.

A caller may send as much as HTTP/2's initial window at once. Of a longer message it may send the
rest as soon as the worker has memory for all of it, which is held until the call is answered.
"""

from abc import abstractmethod
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.core.settings import Settings
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.calls import crowded
from tapster.serving.rest.memory import Memory
from tapster.serving.rpc import frames
from tapster.serving.rpc.calls import reported
from tapster.serving.rpc.connection import NEVER, Connection
from tapster.serving.rpc.exchanges import PREFIX, Exchange
from tapster.serving.rpc.frames import WINDOW
from tapster.serving.shares import Shares

# Bytes of a message that carries no tensors: it is parsed on the event loop, for strangers too.
SMALL_MESSAGE: Final = 1 << 15


class Gathering(Connection):
    """A connection whose streams carry messages; what they ask for is the subclass's business."""

    def __init__(
        self, settings: Settings, memory: Memory, connections: set[Any], shares: Shares
    ) -> None:
        super().__init__(settings, connections, shares)
        self._memory = memory
        self._limit = settings.max_body

    def _take(self, stream: Exchange, data: bytes) -> None:
        if stream.tail:  # how it ends is settled, and has yet to be sent
            return
        if stream.buffer is None:
            if stream.ended and stream.session is None:
                size = len(data) - PREFIX
                if 0 <= size <= self._most(stream) and size == int.from_bytes(data[:PREFIX], "big"):
                    stream.deadline = NEVER
                    self._run(stream, 0, data[PREFIX:])
                    return
            stream.buffer = bytearray()
        stream.buffer += data
        self._cut(stream)

    def _most(self, exchange: Exchange) -> int:
        """Bytes that a message of a call may have."""
        return self._limit if exchange.method.large else min(self._limit, SMALL_MESSAGE)

    def _cut(self, exchange: Exchange) -> None:
        """Take whole messages out of what has come, and see to it that the rest can come."""
        try:
            if self._take_messages(exchange):
                self._take_rest(exchange)
        except Exception as error:
            if exchange.id in self._streams:
                self.refuse(exchange, reported(error))

    def _take_messages(self, exchange: Exchange) -> bool:
        """Whether the exchange goes on and all of its whole messages are taken."""
        while True:
            session = exchange.session
            if session is not None and session.full:
                return False
            found = exchange.cut(self._most(exchange))
            if found is None:
                return True
            if session is None:
                if exchange.message is not None:
                    raise invalid("this method takes one message")
                exchange.message = found
                continue
            exchange.deadline = NEVER
            session.take(*found)
            if exchange.id not in self._streams:
                return False
            if exchange.coming:  # it is answered already
                self.release(exchange, exchange.claim())

    def _take_rest(self, exchange: Exchange) -> None:
        session = exchange.session
        if exchange.ended:
            exchange.deadline = NEVER
            if exchange.buffer:
                raise TapsterError("internal", "the last message is cut short")
            if session is not None:
                session.end()
            elif exchange.message is None:
                raise TapsterError("internal", "there is no message")
            else:
                self._run(exchange, *exchange.message)
        elif exchange.buffer:
            if exchange.deadline == NEVER:
                exchange.deadline = self._heard + self._settings.receive_timeout
            self._widen(exchange)
        elif session is not None and exchange.used > WINDOW // 2:
            self._write(frames.window_update(exchange.id, exchange.used))
            exchange.room = WINDOW

    def _widen(self, exchange: Exchange) -> None:
        """Let the caller send all of a long message, once there is memory for it."""
        lacking = exchange.lacking
        if not lacking or exchange.asked:
            return
        exchange.asked = lacking
        if self._memory.take(lacking):
            self.widened(exchange)
        elif not self._memory.wait(exchange, lacking, self._share.tenant):
            exchange.asked = 0
            raise crowded("messages")

    def widened(self, exchange: Exchange) -> None:
        """See Carrier."""
        size, exchange.asked = exchange.asked, 0
        exchange.grant += size
        exchange.coming += size
        exchange.room += size
        exchange.deadline = self._loop.time() + self._settings.receive_timeout
        self._write(frames.window_update(exchange.id, size))

    def denied(self, exchange: Exchange) -> None:
        """See Carrier."""
        exchange.asked = 0
        self.refuse(exchange, crowded("messages"))

    def release(self, exchange: Exchange, size: int) -> None:
        """See Carrier."""
        exchange.grant -= size
        self._memory.give(size)

    def _freed(self, stream: Exchange) -> None:
        if stream.asked:
            stream.asked = 0
            self._memory.forget(stream)
        if stream.grant:
            self.release(stream, stream.grant)
        # These refer to the stream in turn: it is to go at once, not when garbage is collected.
        stream.call = stream.session = None
        if not self._streams:
            self._emptied()

    def _hold(self, size: int) -> None:
        self._memory.owe(size)

    def owe(self, size: int) -> None:
        """See Carrier."""
        self._memory.owe(size)

    @abstractmethod
    def _run(self, exchange: Exchange, flag: int, data: bytes) -> None:
        """Answer the only message of a call; the flag says whether it is compressed."""

    @abstractmethod
    def refuse(self, exchange: Exchange, error: TapsterError) -> None:
        """End a call with an error."""
