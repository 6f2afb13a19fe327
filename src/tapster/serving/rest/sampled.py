"""Traces of requests over HTTP: what each kind is called, and how some are drawn.

A request whose head was seen before is drawn by not being recognised: it takes the ordinary way,
where its trace begins. Where no traces are sent, none of this runs.
"""

from typing import Final

from tapster.serving.rest.seen import Seen, SeenHeads
from tapster.serving.tracing import Operation, Tracer, over_http

_OPERATIONS: Final[dict[str, Operation]] = {
    "v2.infer": over_http("POST", "/v2/models/{model}/infer"),
    "v1.predict": over_http("POST", "/v1/models/{model}:predict"),
    "plain.predict": over_http("POST", "/v1/endpoints/{endpoint}/predict"),
}
_OTHER: Final = over_http("POST", "other")


def operation(kind: str) -> Operation:
    """The operation that a kind of route is."""
    return _OPERATIONS.get(kind, _OTHER)


class SampledHeads(SeenHeads):
    """Heads seen before, some of which are not recognised."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self._left = tracer.gap()

    def find(self, data: bytes, generation: int, guess: int) -> Seen | None:
        """See SeenHeads."""
        self._left -= 1
        if not self._left:
            self._left = self._tracer.gap()
            self._tracer.chosen = True
            return None
        seen = SeenHeads.find(self, data, generation, guess)
        if seen is None:
            self._tracer.chosen = False
        return seen
