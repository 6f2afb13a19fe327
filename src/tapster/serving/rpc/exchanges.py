"""A gRPC call as a stream of HTTP/2: messages cut out of its data.

A message is a byte (1: compressed), its length as 32 bits, and so many bytes.
Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md), "Length-Prefixed-Message".
"""

import math
import time
from typing import Any, Final, Protocol

from tapster.contract.errors import TapsterError
from tapster.serving.gate import Pass
from tapster.serving.rest.service import Service
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.frames import WINDOW
from tapster.serving.rpc.heads import Head
from tapster.serving.rpc.methods import Method
from tapster.serving.rpc.streams import Stream

PREFIX: Final = 5
NEVER: Final = math.inf


class Session(Protocol):
    """What takes the messages of a call that may have many."""

    @property
    def full(self) -> bool:
        """Whether messages must wait until some are answered."""
        ...

    @property
    def busy(self) -> bool:
        """Whether some message is not answered yet."""
        ...

    def take(self, flag: int, data: bytes) -> None:
        """Take one message; the flag says whether it is compressed. Raises TapsterError."""
        ...

    def end(self) -> None:
        """The caller will send no more."""
        ...

    def advance(self) -> None:
        """Send what can be sent."""
        ...

    def tick(self) -> None:
        """Look around; called a few times a second."""
        ...

    def gone(self) -> None:
        """The caller is gone."""
        ...


class Exchange(Stream):
    """A call. `deadline` is for what is arriving, `expires` for the whole call (loop's time).

    `grant` is how far the caller was let go beyond the usual window, for long messages: so much
    memory is held, `coming` of it for the message under way. `asked` is what it waits for.
    """

    __slots__ = (
        "asked",
        "begun",
        "buffer",
        "call",
        "coming",
        "deadline",
        "expires",
        "generation",
        "grant",
        "head",
        "holder",
        "message",
        "method",
        "need",
        "owner",
        "session",
    )

    holder: Pass
    method: Method

    def __init__(self, owner: "Carrier", number: int, head: Head, ended: bool) -> None:
        # As Stream has it, without a call for each.
        self.id = number
        self.ended = ended
        self.room = WINDOW
        self.credit = 0
        self.out = None
        self.tail = b""
        self.owed = 0
        self.due = 0.0
        self.owner = owner
        self.head = head
        self.begun = False  # the answer's headers have been sent
        self.buffer: bytearray | None = None
        self.need = 0
        self.grant = 0
        self.coming = 0
        self.asked = 0
        self.generation = -1  # of keys, when the caller's was last looked at
        self.deadline = NEVER
        self.expires = time.monotonic() + head.timeout if head.timeout else NEVER
        self.message: tuple[int, bytes] | None = None
        self.call: Any = None
        self.session: Session | None = None

    def excuse(self, passed: float) -> None:
        """See Stream."""
        super().excuse(passed)
        self.deadline += passed

    def granted(self) -> None:
        """See Waiter."""
        self.owner.widened(self)

    def denied(self) -> None:
        """See Waiter."""
        self.owner.denied(self)

    def cut(self, limit: int) -> tuple[int, bytes] | None:
        """The next whole message and its flag; None while there is none.

        Raises TapsterError: too_large for one beyond `limit`, internal for what is no message.
        """
        buffer = self.buffer
        if not buffer:
            return None
        if not self.need:
            if len(buffer) < PREFIX:
                return None
            size = int.from_bytes(buffer[1:PREFIX], "big")
            if buffer[0] > 1:
                raise TapsterError("internal", "a message begins with an unknown flag")
            if size > limit:
                raise TapsterError(
                    "too_large",
                    f"the message is larger than {limit} bytes",
                    hint="send fewer rows at once",
                )
            self.need = size + PREFIX
        if len(buffer) < self.need:
            return None
        with memoryview(buffer) as view:
            found = buffer[0], bytes(view[PREFIX : self.need])
        del buffer[: self.need]
        self.need = 0
        return found

    def claim(self) -> int:
        """The memory that is held for the message that has just been cut out."""
        size, self.coming = self.coming, 0
        return size

    @property
    def lacking(self) -> int:
        """Bytes of the message under way, or at first of its prefix, that the caller may not send
        yet."""
        have = len(self.buffer) if self.buffer else 0
        return max(0, (self.need or PREFIX) - have - self.room)

    @property
    def used(self) -> int:
        """How far the window has shrunk below what a caller is usually given."""
        return WINDOW - self.room


class Carrier(Protocol):
    """The connection that a session came by."""

    service: Service

    def send(self, exchange: Exchange, body: bytes) -> None:
        """Send a message."""
        ...

    def finish(self, exchange: Exchange) -> None:
        """End the call well."""
        ...

    def resume(self, exchange: Exchange) -> None:
        """Take the messages that had to wait."""
        ...

    def still_admit(self, exchange: Exchange) -> None:
        """Look at the caller's key again. Raises TapsterError if it is no longer valid."""
        ...

    def infer(self, call: Call, flag: int, data: bytes) -> None:
        """Read a message and submit its call."""
        ...

    def release(self, exchange: Exchange, size: int) -> None:
        """A message is answered: give so much memory back that was held for it."""
        ...

    def owe(self, size: int) -> None:
        """So many bytes of answers more (or fewer) wait for their turn."""
        ...

    def widened(self, exchange: Exchange) -> None:
        """There is memory for the message that is under way."""
        ...

    def denied(self, exchange: Exchange) -> None:
        """There will be no memory for the message that is under way."""
        ...

    def inflated(self, exchange: Exchange, flag: int, data: bytes) -> bytes:
        """A short message, decompressed if its flag says so. Raises TapsterError."""
        ...

    def new_identity(self) -> bytes:
        """An identifier for a call that has none."""
        ...
