"""A request whose answer is remembered by somebody besides its caller."""

from typing import Any

from tapster.contract.errors import TapsterError
from tapster.serving.bills import Bill
from tapster.serving.work import Answer, Failure, Inputs, Work


class Noted:
    """A caller's request, and the answer it was given. It is otherwise the request itself."""

    __slots__ = ("_answer", "_first", "_work")

    deadline: float
    done: bool
    inputs: Inputs
    tenant: str
    place: int
    account: Bill
    rows: int
    began: int

    def __init__(self, work: Work) -> None:
        self._work = work
        self._answer: Answer | None = None
        self._first = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def identify(self) -> str:
        """See Work."""
        return self._work.identify()

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work."""
        self._answer, self._first = answer, first
        return self._work.render(answer, first)

    def withhold(self, size: int) -> TapsterError | None:
        """See Work."""
        return self._work.withhold(size)

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self._work.succeed(body)

    def fail(self, error: Failure) -> None:
        """See Work."""
        self._work.fail(error)
