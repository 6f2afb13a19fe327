"""Requests of a connection: each holds its place in line until its answer may be sent."""

import time
from typing import Final, Protocol

from tapster.contract.errors import HTTP_STATUS, TapsterError
from tapster.serving.batcher import Answer, Inputs
from tapster.serving.bills import Bill
from tapster.serving.engine import Target
from tapster.serving.gate import Pass
from tapster.serving.meters import LimitError
from tapster.serving.rest.forms import PLAIN
from tapster.serving.rest.heads import JSON, Heads, quota
from tapster.serving.rest.wires import Wire
from tapster.serving.slots import Region
from tapster.serving.work import LARGE_ANSWER

# A caller can mend what the model could not process; clients of these wires expect a 400.
STATUS: Final = {**HTTP_STATUS, "unprocessable": 400}


class Line(Protocol):
    """The connection that a request came by."""

    def advance(self) -> None:
        """Send what can be sent: the answers of the oldest requests."""
        ...

    def takes(self, size: int) -> bool:
        """Whether there is memory for an answer of so many bytes."""
        ...

    def account(self) -> int:
        """Hold memory for what the client has not taken."""
        ...


class Turn:
    """A place in a connection's line, with the bytes to send once it is its turn."""

    __slots__ = ("keep_alive", "response")

    def __init__(self, keep_alive: bool, response: bytes | None = None) -> None:
        self.keep_alive = keep_alive
        self.response = response

    def abandon(self) -> None:
        """The caller is gone."""


class Call(Turn):
    """An inference request: Work for a batcher, and what its wire needs to write the answer."""

    __slots__ = (
        "_line",
        "_region",
        "account",
        "began",
        "by_row",
        "chosen",
        "deadline",
        "done",
        "heads",
        "identity",
        "inputs",
        "lines",
        "place",
        "rows",
        "tag",
        "target",
        "tenant",
        "wire",
    )

    target: Target
    account: Bill
    # No slots: of most calls they are these; `asked` are the version and the label in the path.
    form = PLAIN
    asked = ("", "")
    holder: Pass | None = None

    def __init__(
        self, line: Line, wire: Wire, region: Region, heads: Heads, keep_alive: bool
    ) -> None:
        self._line = line
        self.tenant = ""
        self._region = region
        self.keep_alive = keep_alive
        self.response = None
        self.heads = heads
        self.wire = wire
        self.began = time.monotonic_ns()
        self.place = region.nowhere
        self.account = region.nobody
        self.deadline = 0.0
        self.done = False
        self.inputs: Inputs = b""
        self.rows = 0
        self.tag = b""
        self.chosen: tuple[tuple[int, bool], ...] | None = None
        self.by_row = True
        self.identity = b""
        self.lines = b""

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work."""
        return self.wire.write(self, answer, first)

    def withhold(self, size: int) -> TapsterError | None:
        """See Work."""
        return None if self._line.takes(size) else crowded("answers")

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self.done = True
        if self.lines or self.identity or not self.keep_alive:
            self.response = self.heads.respond(
                200, body, self.keep_alive, self.identity, self.lines
            )
        else:
            self.response = self.heads.good(body)
        self._line.advance()
        if len(body) > LARGE_ANSWER:
            self._line.account()

    def fail(self, error: BaseException) -> None:
        """See Work."""
        if isinstance(error, RecursionError):
            error = TapsterError("invalid", "the body is nested too deeply")
        if not isinstance(error, TapsterError):
            error = unexpected(error)
        status, now = STATUS[error.code], time.monotonic_ns()
        self._region.answered(self, status, now)
        self.done = True
        self.identify()
        if self._region.watch is not None:
            self._region.watch.failed(self, status, error, now - self.began)
        body = self.wire.refuse(error)
        lines = JSON + quota(error) if isinstance(error, LimitError) else b""
        self.response = self.heads.respond(
            status, body, self.keep_alive, self.identity, lines, pause=error.retry_after
        )
        self._line.advance()

    def identify(self) -> str:
        """The request's identifier: the caller's, else one of ours."""
        self.identity = self.identity or self.heads.identify()
        return self.identity.decode()

    def abandon(self) -> None:
        """See Turn. Queued work of a caller who is gone is never run."""
        self.done = True


def unexpected(error: BaseException) -> TapsterError:
    """What a caller may know of an error that nobody foresaw; those who watch see its cause."""
    failure = TapsterError("internal", "the server failed on this request")
    failure.__cause__ = error
    return failure


def crowded(what: str) -> TapsterError:
    """What to say when there is no memory for more bodies or answers."""
    return TapsterError(
        "unavailable",
        f"the server holds as many {what} as it can",
        hint="try again in a second",
    )
