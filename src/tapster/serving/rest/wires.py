"""What a wire is: how it reads a call, writes an answer and refuses."""

from typing import Protocol

from tapster.contract.errors import TapsterError
from tapster.serving.batcher import Answer, Inputs
from tapster.serving.engine import Target
from tapster.serving.rest.forms import Form


class Request(Protocol):
    """The part of a call that a wire fills in when it reads, and looks at when it writes.

    `chosen`: the outputs that are wanted, by index, and whether as bytes; None is all, in JSON.
    `lines`: the headers that tell of the answer's body; b"" is JSON.
    """

    target: Target
    form: Form
    began: int
    deadline: float
    inputs: Inputs
    rows: int
    tag: bytes
    chosen: tuple[tuple[int, bool], ...] | None
    by_row: bool
    lines: bytes


class Wire(Protocol):
    """One way to spell inference."""

    def read(self, call: Request, body: bytes | bytearray) -> None:
        """Set the call's inputs and rows from its body. Raises TapsterError(invalid)."""
        ...

    def write(self, call: Request, answer: Answer, first: int) -> bytes:
        """The body of the answer from rows `first` and following. Raises TapsterError."""
        ...

    def refuse(self, error: TapsterError) -> bytes:
        """The body of an error."""
        ...
