"""Inference requests over gRPC: Work for a batcher, and what their wire needs for the answer."""

import logging
import time
from typing import Any, Protocol

from tapster.contract.errors import TapsterError
from tapster.serving.batcher import Answer, Inputs
from tapster.serving.bills import Bill
from tapster.serving.engine import Target
from tapster.serving.rest.calls import STATUS, crowded, unexpected
from tapster.serving.slots import Region

log = logging.getLogger(__name__)


class Line(Protocol):
    """Where a call came from."""

    def succeeded(self, call: "Call", body: bytes) -> None:
        """Send a call's answer when its turn comes."""
        ...

    def failed(self, call: "Call", error: TapsterError) -> None:
        """Send a call's error when its turn comes."""
        ...

    def new_identity(self) -> bytes:
        """An identifier for a call that has none."""
        ...


class Wire(Protocol):
    """One way to spell inference in protobuf."""

    def parse(self, data: bytes) -> Any:
        """A message. Raises google.protobuf.message.DecodeError."""
        ...

    def wanted(self, call: "Call", message: Any) -> tuple[str, str, str]:
        """The endpoint, version and label that a message names; empty when it does not.

        Sets what the answer carries over, an error's too. Raises TapsterError(invalid).
        """
        ...

    def slow(self, message: Any) -> bool:
        """Whether reading takes long for the size of a message."""
        ...

    def read(self, call: "Call", message: Any) -> None:
        """Set the call's inputs and rows. Raises TapsterError(invalid)."""
        ...

    def write(self, call: "Call", answer: Answer, first: int) -> bytes:
        """The answer from rows `first` and following, as a message. Raises TapsterError."""
        ...


class Call:
    """A request of its own, or one message of a stream.

    `chosen` are the outputs that are wanted, by index; None is all. `tag` is what the answer
    carries over from the request. `response` is where a stream keeps the answer until its turn.
    `held` is the memory that is held for it. `identity` is the caller's own identifier, b"" for
    none.
    """

    __slots__ = (
        "_line",
        "_region",
        "account",
        "began",
        "chosen",
        "deadline",
        "done",
        "exchange",
        "held",
        "identity",
        "inputs",
        "place",
        "response",
        "rows",
        "tag",
        "target",
        "tenant",
        "wire",
    )

    target: Target
    account: Bill

    def __init__(self, line: Line, wire: Wire, region: Region, exchange: Any) -> None:
        self._line = line
        self._region = region
        self.wire = wire
        self.exchange = exchange
        self.held = 0
        self.began = time.monotonic_ns()
        self.deadline = 0.0
        self.done = False
        self.identity: bytes = exchange.head.identity
        self.inputs: Inputs = b""
        self.rows = 0
        self.tag = b""
        self.response: bytes | None = None
        self.chosen: tuple[int, ...] | None = None
        self.tenant: str = exchange.holder.tenant
        self.place = region.nowhere
        self.account = region.nobody

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work."""
        return self.wire.write(self, answer, first)

    def withhold(self, size: int) -> TapsterError | None:
        """See Work."""
        return crowded("answers") if self.exchange.owner.service.memory.unread else None

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self.done = True
        self._line.succeeded(self, body)

    def fail(self, error: BaseException) -> None:
        """See Work."""
        known = explained(error)
        status, now = STATUS[known.code], time.monotonic_ns()
        self._region.answered(self, status, now)
        self.done = True
        if self._region.watch is not None:
            self._region.watch.failed(self, status, known, now - self.began)
        self._line.failed(self, known)

    def identify(self) -> str:
        """The request's identifier: the caller's, else one of ours."""
        self.identity = self.identity or self._line.new_identity()
        return self.identity.decode()


def explained(error: BaseException) -> TapsterError:
    """An error as a caller may know it."""
    from google.protobuf.message import DecodeError

    if isinstance(error, TapsterError):
        return error
    if isinstance(error, DecodeError):
        return TapsterError("internal", "the message is not protobuf of the type that is due")
    return unexpected(error)


def reported(error: BaseException) -> TapsterError:
    """As `explained`, of a request that nobody else watches: what is unexpected goes to the log."""
    known = explained(error)
    if known.__cause__ is not None:
        log.error("a request failed", exc_info=known.__cause__)
    return known
