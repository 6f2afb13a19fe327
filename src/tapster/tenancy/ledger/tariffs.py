"""What growth costs under a graduated price: pure arithmetic over whole numbers.

Each rate has its own quantity in a month, and tiers that are above so much of it. What a quantity
costs is a function of that quantity alone; growth costs the difference of two values of it, rounded
down at each. So the sum over a month is the same however its reports were divided.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import msgspec

# What a rate is for: the counter that it multiplies, and how many of its units it is the price of.
RATES: Final[dict[str, tuple[str, int]]] = {
    "request": ("requests", 1),
    "row": ("rows", 1),
    "token": ("tokens", 1),
    "compute": ("compute", 10**9),
    "training": ("training", 10**9),
    "storage": ("storage", 1 << 30),
}
CALLS: Final = ("request", "row", "token", "compute")
HOUSE: Final = ("training", "storage")
COUNTERS: Final = (
    "requests", "errors", "rows", "tokens", "compute", "cached", "training", "storage",
)  # fmt: skip
# What all prices may come to for one payer in a month, in billionths: sums stay within 63 bits.
CEILING: Final = 10**18

Counts = dict[str, int]


class Tier(msgspec.Struct, frozen=True):
    """Rates (billionths of the currency a unit) for what is above `above` units in a month."""

    above: int
    rates: dict[str, int]


Tariff = tuple[Tier, ...]


class Piece(msgspec.Struct, frozen=True):
    """What fell into the tier above `above`: how much, and what it costs (billionths)."""

    above: int
    counts: Counts
    amount: int


def charge(tariff: Tariff, before: Mapping[str, int], grown: Mapping[str, int]) -> list[Piece]:
    """The pieces of growth by tier, when the month's quantities were `before`.

    Together they hold exactly `grown`. What has no rate lies in the lowest piece.
    """
    counts: dict[int, Counts] = {}
    amounts: dict[int, int] = {}
    rest = {name: number for name, number in grown.items() if number}
    for rate, (counter, unit) in RATES.items():
        number = grown.get(counter, 0)
        tiers = _tiers(tariff, rate)
        if not number or not tiers:
            continue
        rest.pop(counter)
        start = before.get(counter, 0)
        for (low, price), (high, _) in pairwise([*tiers, (-1, 0)]):
            first, last = start, start + number
            first = max(first, low * unit)
            last = last if high < 0 else min(last, high * unit)
            if first >= last:
                continue
            counts.setdefault(low, {})[counter] = last - first
            cost = price * (last - low * unit) // unit - price * (first - low * unit) // unit
            amounts[low] = amounts.get(low, 0) + cost
    if rest:
        lowest = counts.setdefault(min(counts, default=0), {})
        lowest.update(rest)
    return [Piece(above, counts[above], amounts.get(above, 0)) for above in sorted(counts)]


def dearest(tariff: Tariff) -> dict[str, int]:
    """Of each rate the highest of its tiers: what a unit costs at most."""
    found: dict[str, int] = {}
    for tier in tariff:
        for rate, price in tier.rates.items():
            found[rate] = max(found.get(rate, 0), price)
    return found


def _tiers(tariff: Tariff, rate: str) -> list[tuple[int, int]]:
    """(above, price) of a rate, from zero upwards; empty when nothing is asked for it."""
    found = [(tier.above, tier.rates[rate]) for tier in tariff if rate in tier.rates]
    return found if not found or found[0][0] == 0 else [(0, 0), *found]
