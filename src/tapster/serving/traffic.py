"""Which version answers a request: drawn by weight, or by the caller's own key."""

import hashlib
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_SCALE: Final = 1.0 / 2**64


class Split(Generic[T]):
    """A weighted choice. Weights need not sum to one; the lightest has the lowest numbers.

    A sticky key is hashed to a number in [0, 1). As a canary's weight grows its range grows with
    it, so a caller who has been given the canary keeps it.
    """

    def __init__(self, choices: Sequence[T], weights: Sequence[float], salt: str) -> None:
        pairs = sorted(zip(weights, range(len(choices)), strict=True))
        self._choices = [choices[index] for _, index in pairs]
        total = sum(weights)
        self._bounds = [bound / total for bound in accumulate(weight for weight, _ in pairs)][:-1]
        self._salt = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        self._draw = random.random

    def choose(self, sticky: bytes = b"") -> T:
        """One of the choices: for no key at random, for a key always the same."""
        if not sticky:
            return self._choices[bisect_right(self._bounds, self._draw())]
        digest = hashlib.blake2b(sticky, digest_size=8, key=self._salt).digest()
        return self._choices[bisect_right(self._bounds, int.from_bytes(digest, "big") * _SCALE)]
