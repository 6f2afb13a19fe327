"""Inference as a stream of requests, each answered in its turn."""

from collections import deque
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.serving.rpc import open_inference
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.encoding import delimited, text
from tapster.serving.rpc.exchanges import Carrier, Exchange
from tapster.serving.rpc.statuses import text_of
from tapster.serving.work import LARGE_ANSWER

MAX_LINE: Final = 64
_ERROR, _RESPONSE = 1, 2


class Inferences:
    """`ModelStreamInfer`: each message is a request with an answer, or an error, of its own.

    So many may be under way at once; then the caller has to wait, and no more is read from it.
    """

    def __init__(self, carrier: Carrier, exchange: Exchange) -> None:
        self._carrier = carrier
        self._exchange = exchange
        self._line: deque[Call] = deque()
        self._ended = False
        self._advancing = False

    @property
    def full(self) -> bool:
        """See Session."""
        return len(self._line) >= MAX_LINE

    @property
    def busy(self) -> bool:
        """See Session."""
        return bool(self._line)

    def take(self, flag: int, data: bytes) -> None:
        """See Session."""
        self._carrier.still_admit(self._exchange)
        call = Call(self, open_inference, self._carrier.service.region, self._exchange)
        call.held = self._exchange.claim()
        self._line.append(call)
        self._carrier.infer(call, flag, data)

    def end(self) -> None:
        """See Session."""
        self._ended = True
        self.advance()

    def advance(self) -> None:
        """See Session."""
        if self._advancing:
            return
        self._advancing = True
        line, exchange = self._line, self._exchange
        was_full = self.full
        while line and line[0].response is not None and exchange.out is None:
            call = line.popleft()
            self._owe(call, -1)
            self._carrier.send(exchange, call.response or b"")
            if call.held:
                self._carrier.release(exchange, call.held)
        self._advancing = False
        if self._ended and not line:
            self._carrier.finish(exchange)
        elif was_full and not self.full:
            self._carrier.resume(exchange)

    def tick(self) -> None:
        """See Session."""

    def gone(self) -> None:
        """See Session."""
        for call in self._line:
            call.done = True
            self._owe(call, -1)
        self._line.clear()

    def succeeded(self, call: Call, body: bytes) -> None:
        """See Line."""
        self._answered(call, delimited(_RESPONSE, body))

    def failed(self, call: Call, error: TapsterError) -> None:
        """See Line."""
        response = delimited(_RESPONSE, call.tag) if call.tag else b""
        self._answered(call, text(_ERROR, text_of(error)) + response)

    def _answered(self, call: Call, response: bytes) -> None:
        call.response = response
        self._owe(call, 1)
        self.advance()

    def _owe(self, call: Call, times: int) -> None:
        """Account for a large answer while it waits in line."""
        size = len(call.response or b"")
        if size > LARGE_ANSWER:
            self._carrier.owe(times * size)

    def new_identity(self) -> bytes:
        """See Line."""
        return self._carrier.new_identity()
