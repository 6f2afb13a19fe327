"""Which version answers a request: drawn by weight, or by the caller's own key."""

import hashlib
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Generic, TypeVar

from tapster.contract.errors import HTTP_STATUS, TapsterError
from tapster.serving.batcher import Work
from tapster.serving.bills import Watched
from tapster.serving.model import Model
from tapster.serving.places import Hold
from tapster.serving.slots import Region

T = TypeVar("T")
_SCALE: Final = 1.0 / 2**64


@dataclass(frozen=True)
class Inner:
    """A model that callers do not address: a member of an ensemble, or a shadow.

    What it does is counted at `place`, `submit` runs a request by it.
    """

    name: str
    model: Model
    weight: float
    hold: Hold
    submit: Callable[[Work], None]

    @property
    def place(self) -> int:
        """Where its counters lie."""
        return self.hold.place


def count_failure(region: Region, request: Watched, error: BaseException) -> None:
    """Count the error that a request to an inner model got."""
    code = error.code if isinstance(error, TapsterError) else "internal"
    now = time.monotonic_ns()
    region.answered(request, HTTP_STATUS[code], now)
    if region.watch is not None and isinstance(error, Exception):
        region.watch.failed(request, HTTP_STATUS[code], error, now - request.began)


class Split(Generic[T]):
    """A weighted choice. Weights are above 0 and need not sum to one.

    A sticky key's choice is that of weighted rendezvous hashing (Schindelhauer and Schomaker,
    2005): every choice draws an exponential variate of its rate from the key and its own name,
    and the smallest wins. When one choice's share grows and the others keep their proportions,
    keys move to it and nowhere else; when it shrinks, they go back where they were.
    """

    def __init__(
        self, choices: Sequence[T], weights: Sequence[float], names: Sequence[str], salt: str
    ) -> None:
        self._choices = list(choices)
        total = sum(weights)
        self._bounds = [bound / total for bound in accumulate(weights)][:-1]
        self._rates = [
            (weight, hashlib.blake2b(f"{salt}\0{name}".encode(), digest_size=16).digest())
            for weight, name in zip(weights, names, strict=True)
        ]
        self._draw = random.random

    def choose(self, sticky: bytes = b"") -> T:
        """One of the choices: for no key at random, for a key always the same."""
        if not sticky:
            return self._choices[bisect_right(self._bounds, self._draw())]
        times = [_exponential(sticky, key) / weight for weight, key in self._rates]
        return self._choices[times.index(min(times))]


def _exponential(sticky: bytes, key: bytes) -> float:
    """A variate of rate 1, the same for the same bytes."""
    digest = hashlib.blake2b(sticky, digest_size=8, key=key).digest()
    return -math.log((int.from_bytes(digest, "big") + 0.5) * _SCALE)
