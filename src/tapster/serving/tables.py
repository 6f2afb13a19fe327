"""The counters of all places at once, each surely those of the label that it is said to have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapster.serving import slots as layout
from tapster.serving.exposition import labels
from tapster.serving.slots import Slots


@dataclass(frozen=True)
class Counted:
    """The counters of all places, which of them are somebody's, and by place the labels of those,
    as they are spelled; `inner` are of models that callers do not address."""

    table: Any
    known: Any
    names: dict[int, str]
    inner: frozenset[int]


class Totals:
    """Reads the counters of all workers; keeps the labels from one time to the next."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        # Labels as they are spelled, and whether they are inner, by place and its number.
        self._spelled: dict[tuple[int, int], tuple[str, bool]] = {}

    def read(self, regions: Sequence[int]) -> Counted:
        """The sums over these regions; `CHANGED` is the latest. In a thread."""
        numbers, table = read(self._slots, regions, _summed)
        spelled: dict[tuple[int, int], tuple[str, bool]] = {}
        for place in (0, *np.flatnonzero(numbers).tolist()):
            key = (place, int(numbers[place]))
            found = self._spelled.get(key) or _spelled(*self._slots.name(place))
            if self._slots.labels.number(place) == key[1]:  # else the label may be another's
                spelled[key] = found
        self._spelled = spelled
        known = np.zeros(len(numbers), bool)
        known[[place for place, _ in spelled]] = True
        return Counted(
            table,
            known,
            {place: names for (place, _), (names, _) in spelled.items()},
            frozenset(place for (place, _), (_, inner) in spelled.items() if inner),
        )


def read(slots: Slots, regions: Sequence[int], take: Callable[[list[Any]], Any]) -> tuple[Any, Any]:
    """(numbers, what `take` makes of the counters in these regions), by place.

    Of each region `take` is given a view, [places, words]. A number is that by which the place was
    given all the while (see `labels`), else 0: then its counters are nobody's. Place 0 has none.
    """
    before = slots.labels.numbers()
    count = int(np.flatnonzero(before)[-1]) + 1 if before.any() else 1
    size = count * layout.PLACE_WORDS
    words = np.frombuffer(slots.words, np.uint64)
    starts = [region + layout.WORKER_WORDS for region in regions]
    found = take([words[start : start + size].reshape(count, -1) for start in starts])
    return np.where(before == slots.labels.numbers(), before, 0)[:count], found


def _summed(views: list[Any]) -> Any:
    total = np.sum(views, axis=0)
    total[:, layout.CHANGED] = np.max([each[:, layout.CHANGED] for each in views], axis=0)
    return total


def _spelled(tenant: str, endpoint: str, which: str) -> tuple[str, bool]:
    inner, _, version = which.rpartition(":")
    names = {"tenant": tenant, "endpoint": endpoint, "version": version}
    if inner:  # shadow:3, member:A:3
        names["role"], _, names["model"] = inner.partition(":")
    return labels(**names), bool(inner)
