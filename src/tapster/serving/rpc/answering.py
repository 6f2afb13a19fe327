"""Answers of gRPC calls: messages, and the status that ends a call, in trailers.

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md), "Responses".
"""

from typing import Any

from tapster.contract.errors import TapsterError
from tapster.serving.rest.service import Service
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.exchanges import Exchange
from tapster.serving.rpc.gathering import Gathering
from tapster.serving.rpc.statuses import BEGIN, OK, named, refusal
from tapster.serving.slots import REFUSED


class Answering(Gathering):
    """A connection that answers calls; what a call asks for is the subclass's business."""

    def __init__(self, service: Service, connections: set[Any]) -> None:
        super().__init__(service.settings, service.memory, connections, service.shares)
        self.service = service
        self._region = service.region
        self.new_identity = service.heads.identify

    def succeeded(self, call: Call, body: bytes) -> None:
        """See Line."""
        exchange: Exchange = call.exchange
        if exchange.id in self._streams:
            self._send_all(exchange, body, call.identity or self.new_identity())

    def failed(self, call: Call, error: TapsterError) -> None:
        """See Line."""
        exchange: Exchange = call.exchange
        if exchange.id in self._streams:
            identity = call.identity or self.new_identity()
            self._answer(exchange, BEGIN + refusal(error, identity), b"", b"")

    def send(self, exchange: Exchange, body: bytes) -> None:
        """Send one of several messages."""
        if exchange.id not in self._streams:
            return
        begin = b"" if exchange.begun else BEGIN
        exchange.begun = True
        self._answer(exchange, begin, b"\0%b%b" % (len(body).to_bytes(4, "big"), body), b"")

    def finish(self, exchange: Exchange) -> None:
        """All messages are sent, and all is well."""
        if exchange.id not in self._streams:
            return
        tail = OK + named(self._identity(exchange))
        begin, tail = (b"", tail) if exchange.begun else (BEGIN + tail, b"")
        self._answer(exchange, begin, b"", tail)

    def refuse(self, exchange: Exchange, error: TapsterError) -> None:
        """End a call that has reached no endpoint with an error, unless its end is settled."""
        if exchange.tail:
            return
        if error.code in {"unauthenticated", "forbidden"}:
            self._region.add(REFUSED)
        else:
            self._region.refused()
        tail = refusal(error, self._identity(exchange))
        if exchange.session is not None:
            exchange.session.gone()
        begin, tail = (b"", tail) if exchange.begun else (BEGIN + tail, b"")
        self._answer(exchange, begin, b"", tail)

    def _send_all(self, exchange: Exchange, body: bytes, identity: bytes) -> None:
        data = b"\0%b%b" % (len(body).to_bytes(4, "big"), body)
        self._answer(exchange, BEGIN, data, OK + named(identity))

    def _identity(self, exchange: Exchange) -> bytes:
        return exchange.head.identity or self.new_identity()
