"""Bodies to calls: short ones at once, those that take long in threads of their own.

A call keeps its place in its connection's line meanwhile. What is compressed is decompressed
here, within the limit of a body.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from tapster.contract.errors import TapsterError
from tapster.serving.bills import Bill
from tapster.serving.desks import Desk
from tapster.serving.engine import Target
from tapster.serving.gate import Pass
from tapster.serving.rest import codings
from tapster.serving.rest.calls import Call, Line, crowded
from tapster.serving.rest.forms import Form
from tapster.serving.rest.heads import JSON, Heads
from tapster.serving.rest.memory import Memory
from tapster.serving.rest.wires import Wire
from tapster.serving.slots import UNAVAILABLE, Region

# Bytes of a body that is read on the event loop; compressed ones may also grow to no more.
AT_ONCE: Final = 128 * 1024
AT_ONCE_COMPRESSED: Final = 16 * 1024

Body = bytes | bytearray


class Reader:
    """The threads of one worker that read bodies and compress answers: one for JSON, which may take
    many times its size while it is read, and one (`desk`) for all else.

    `limit`: bytes of a body. `current`: where a call to a target, asked for by this version and
    label, goes now, as the plan may have changed while its body was read. `submit`: runs a call
    that has been read. `account`: at whose expense a call goes to its target. `weight`: a tenant's,
    whose turn at a thread it is.
    """

    def __init__(
        self,
        limit: int,
        current: Callable[[Target, tuple[str, str]], Target],
        submit: Callable[[Call], None],
        account: Callable[[Call], Bill],
        weight: Callable[[str], float],
    ) -> None:
        self._limit = limit
        self._current = current
        self._submit = submit
        self._account = account
        self._json = Desk("json", weight)
        self.desk = Desk("body", weight)

    def read(self, call: Call, body: Body) -> None:
        """Have a call's body read, then submit the call. Raises what its wire raises."""
        if self._read_at_once(call, body):
            self._submit(call)
            return
        if isinstance(call, FormedCall):
            call.hold(len(body))
        self._begin(call, body)

    def _begin(self, call: Call, body: Body) -> None:
        other = call.form.csv or call.form.header >= 0
        desk = self.desk if other else self._json
        reading = desk.run(call.tenant, self._read, call, body)
        reading.add_done_callback(partial(self._was_read, call, body))

    def _read_at_once(self, call: Call, body: Body) -> bool:
        coding = call.form.coding
        if len(body) > (AT_ONCE_COMPRESSED if coding else AT_ONCE):
            return False
        if coding:
            limit = min(self._limit, AT_ONCE)
            try:
                body = codings.inflate(coding, body, limit)
            except TapsterError as error:
                if error.code == "too_large" and limit < self._limit:
                    return False
                raise
        call.wire.read(call, body)
        return True

    def _read(self, call: Call, body: Body) -> int:
        """In a thread: read a body; how long it was once decompressed."""
        if call.done:
            return 0
        if call.deadline <= time.monotonic():
            raise TapsterError("deadline", "other bodies took too long to read before this one")
        if call.form.coding:
            body = codings.inflate(call.form.coding, body, self._limit)
        call.wire.read(call, body)
        return len(body)

    def _was_read(self, call: Call, body: Body, reading: "asyncio.Future[int]") -> None:
        if call.done or reading.cancelled():
            return
        try:
            size = reading.result()
            if isinstance(call, FormedCall):
                call.hold(size)
            before = call.target
            call.target = self._current(before, call.asked)
            call.place = call.target.place
            if call.target is not before:
                call.account = self._account(call)
            if call.target.model is before.model:
                self._submit(call)
            else:
                self._begin(call, body)
        except Exception as failure:
            call.fail(failure)

    def compress(self, call: "FormedCall", body: bytes) -> None:
        """Compress an answer in a thread, then give it to its call."""
        done = self.desk.run(call.tenant, codings.deflate, call.form.accepts, body)
        done.add_done_callback(lambda _: call.compressed(done.result()))


class Shared(Protocol):
    """What calls need of their worker."""

    region: Region
    heads: Heads
    reader: Reader
    memory: Memory


class FormedCall(Call):
    """A request whose body is long, or whose body or answer is not plain JSON.

    Its body is accounted for in the worker's memory until it is answered; `held` bytes are so
    already.
    """

    __slots__ = ("_gone", "_memory", "_reader", "asked", "form", "held", "holder")

    def __init__(  # noqa: PLR0917
        self, line: Line, wire: Wire, shared: Shared, keep_alive: bool, form: Form, held: int = 0
    ) -> None:
        super().__init__(line, wire, shared.region, shared.heads, keep_alive)
        self._reader = shared.reader
        self._memory = shared.memory
        self._gone = False
        self.asked = ("", "")
        self.holder: Pass | None = None
        self.form = form
        self.held = held

    def hold(self, size: int) -> None:
        """Account for a body of so many bytes. Raises TapsterError(unavailable)."""
        if size <= self.held:
            return
        if self._memory.full:
            self._region.count(self.place, UNAVAILABLE)
            raise crowded("bodies")
        self._memory.add(size - self.held)
        self.held = size

    def succeed(self, body: bytes) -> None:
        """See Work. An answer that is worth it leaves compressed, if its caller likes that."""
        if self.form.accepts and len(body) >= codings.WORTH:
            self.done = True
            self._let_go()
            self._reader.compress(self, body)
        else:
            super().succeed(body)
            self._let_go()

    def compressed(self, body: bytes) -> None:
        """Give an answer that has been compressed."""
        if self._gone:
            return
        coding = b"content-encoding: %b\r\nvary: accept-encoding\r\n" % self.form.accepts
        self.lines = (self.lines or JSON) + coding
        super().succeed(body)

    def fail(self, error: BaseException) -> None:
        """See Work."""
        super().fail(error)
        self._let_go()

    def abandon(self) -> None:
        """See Turn."""
        super().abandon()
        self._gone = True
        self._let_go()

    def _let_go(self) -> None:
        held, self.held = self.held, 0
        if held:
            self._memory.give(held)
