"""Heads of requests that were examined before: the same bytes are not parsed again.

A client's requests on a connection differ in their bodies only, and a head that was let through
says the same every time, for as long as the plan in force stays the same.
"""

from typing import Final

from tapster.serving.bills import Bill
from tapster.serving.engine import Endpoint, Target
from tapster.serving.gate import Pass
from tapster.serving.rest.forms import Form
from tapster.serving.rest.wires import Wire

MAX_KEPT: Final = 4096
MAX_HEAD: Final = 1024
_END: Final = b"\r\n\r\n"


class Seen:
    """What a head was found to say: where it goes, who sent it, how long its body is.

    `target` is None where each request is to be drawn a version of its own, at whose expense only
    then is known; `asked` are the version and the label in the path.
    """

    account: Bill

    __slots__ = (
        "account",
        "asked",
        "endpoint",
        "form",
        "head",
        "holder",
        "length",
        "target",
        "timeout",
        "wire",
    )

    def __init__(
        self, wire: Wire, endpoint: Endpoint, holder: Pass, *, target: Target | None, form: Form
    ) -> None:
        self.wire = wire
        self.form = form
        self.endpoint = endpoint
        self.target = target
        self.holder = holder
        self.asked = ("", "")
        self.timeout = 0.0  # seconds
        self.length = 0
        self.head = 0  # bytes of the head itself, once learned


class SeenHeads:
    """Heads by their exact bytes, of one state of the plan, within a bound."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Seen] = {}
        self._generation = -1

    def find(self, data: bytes, generation: int, guess: int) -> Seen | None:
        """What the head of `data` says, if `data` is one whole request of a kind that was seen
        before. `guess` is how long the head may well be: looking for its end takes longer."""
        seen = self._kept.get(data[:guess])
        if seen is None:
            seen = self._kept.get(data[: data.find(_END, 0, MAX_HEAD) + 4])
        if seen is None or len(data) != seen.head + seen.length or generation != self._generation:
            return None
        return seen

    def forget(self, generation: int) -> None:
        """Keep nothing of what is gone from the plan."""
        if generation != self._generation:
            self._kept.clear()

    def learn(self, data: bytes, seen: Seen, generation: int) -> None:
        """Keep the head of `data`, which the parser took for one whole request saying `seen`."""
        end = data.find(_END, 0, MAX_HEAD) + 4
        if end < 4 or seen.length < 1 or len(data) - end != seen.length:
            return
        if generation != self._generation or len(self._kept) >= MAX_KEPT:
            self._kept.clear()
            self._generation = generation
        seen.head = end
        self._kept[data[:end]] = seen
