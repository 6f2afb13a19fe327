"""Compressed messages: on the event loop if they are short and stay so, in a thread if not."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from tapster.contract.errors import TapsterError
from tapster.serving.rest import codings
from tapster.serving.rest.calls import crowded
from tapster.serving.rpc.answering import Answering
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.exchanges import Exchange

T = TypeVar("T")
# Bytes of a message that is parsed on the event loop, and that a compressed one may grow to there.
AT_ONCE: Final = 1 << 20


class Inflating(Answering):
    """What a connection does with messages that are more than they look."""

    async def _in_thread(self, call: Call, work: Callable[..., T], *arguments: Any) -> T:
        return await self.service.reader.desk.run(call.tenant, _wanted, call, work, *arguments)

    def _grown(self, call: Call, size: int) -> None:
        """A message has so many bytes more, once decompressed, which are held until it is answered.

        Raises TapsterError(unavailable) when there is no memory.
        """
        exchange = call.exchange
        if size <= 0 or call.done:
            return
        if self._memory.full:
            raise crowded("messages")
        self._memory.add(size)
        exchange.grant += size
        call.held += size

    def _inflated_at_once(self, exchange: Exchange, data: bytes) -> bytes | None:
        """A message decompressed, on the event loop; None if it grows too large for that."""
        try:
            return self._inflated(exchange, data, min(self._limit, AT_ONCE))
        except TapsterError as error:
            if error.code != "too_large" or self._limit <= AT_ONCE:
                raise
            return None

    def _inflated(self, exchange: Exchange, data: bytes, limit: int) -> bytes:
        coding = exchange.head.encoding
        if not coding:
            raise TapsterError("internal", "a compressed message came without grpc-encoding")
        return codings.inflate(coding, data, limit)

    def inflated(self, exchange: Exchange, flag: int, data: bytes) -> bytes:
        """A short message, decompressed if its flag says so. Raises TapsterError."""
        return self._inflated(exchange, data, AT_ONCE) if flag else data


def _wanted(call: Call, work: Callable[..., T], *arguments: Any) -> T:
    """In a thread: do something for a call, unless its caller is gone."""
    if call.done:
        raise TapsterError("cancelled", "the caller is gone")
    return work(*arguments)
