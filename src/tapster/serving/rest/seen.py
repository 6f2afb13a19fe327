"""Heads of requests that were examined before: the same bytes are not parsed again.

A client's requests on a connection differ in their bodies only, and a head that was let through
says the same every time, for as long as the plan in force stays the same.
"""

from typing import Final

from tapster.serving.engine import Endpoint
from tapster.serving.rest.routes import Route
from tapster.serving.rest.wires import Wire

MAX_KEPT: Final = 4096
MAX_HEAD: Final = 1024
_END: Final = b"\r\n\r\n"


class Seen:
    """What a head was found to say: where it goes, where its sender is counted, its length."""

    __slots__ = ("endpoint", "length", "route", "series", "wire")

    def __init__(
        self, route: Route, wire: Wire, endpoint: Endpoint, series: int, length: int
    ) -> None:
        self.route = route
        self.wire = wire
        self.endpoint = endpoint
        self.series = series
        self.length = length


class SeenHeads:
    """Heads by their exact bytes, of one state of the plan, within a bound."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Seen] = {}
        self._generation = -1

    def find(self, data: bytes, generation: int) -> tuple[Seen, bytes] | None:
        """What the head of `data` says, and the body, if `data` is one whole request of a kind
        that was seen before."""
        end = data.find(_END, 0, MAX_HEAD) + 4
        seen = self._kept.get(data[:end])
        if seen is None or len(data) - end != seen.length or generation != self._generation:
            return None
        return seen, data[end:]

    def learn(self, data: bytes, seen: Seen, generation: int) -> None:
        """Keep the head of `data`, which the parser took for one whole request saying `seen`."""
        end = data.find(_END, 0, MAX_HEAD) + 4
        if end < 4 or seen.length < 1 or len(data) - end != seen.length:
            return
        if generation != self._generation or len(self._kept) >= MAX_KEPT:
            self._kept.clear()
            self._generation = generation
        self._kept[data[:end]] = seen
