"""What requests reserve before they run, and what of it is free again after.

All units that a request takes of a budget are linear in its rows, its tokens and the nanoseconds
that it computes. So what requests of one kind take of each budget is worked out once, and those of
one account that were answered together are settled together.
"""

from collections import deque
from typing import Any, Final, NamedTuple

from tapster.contract.plan import LimitGrant, Price
from tapster.serving.journal import Record
from tapster.serving.meters import SECOND, Gauge, Purse, Rate
from tapster.serving.slots import TOKENS, Region


class Tariff(NamedTuple):
    """What is taken of a budget for a request, a row, a token, a second of compute."""

    request: int = 0
    row: int = 0
    token: int = 0
    second: int = 0

    def units(self, requests: int, rows: int, tokens: int, compute: int) -> int:
        """What so much takes; `compute` in nanoseconds."""
        counted = self.request * requests + self.row * rows + self.token * tokens
        return counted - (-self.second * compute // SECOND) if self.second else counted


_TARIFFS: Final = {
    "requests": Tariff(request=1),
    "rows": Tariff(row=1),
    "tokens": Tariff(token=1),
    "compute": Tariff(second=SECOND),
}


def tariff(limit: LimitGrant, price: Price) -> Tariff:
    """What is taken of a limit's budget."""
    return money(price) if limit.metric == "money" else _TARIFFS[limit.metric]


def money(price: Price) -> Tariff:
    """What is taken of a budget of money."""
    return Tariff(price.request, price.row, price.token, price.compute)


class Need:
    """What each request of a kind takes at most: units of budgets, `bound` nanoseconds."""

    __slots__ = ("bound", "rows", "tokens", "units")

    def __init__(
        self, rows: int, tokens: int, bound: int, units: tuple[tuple[Purse, int], ...]
    ) -> None:
        self.rows = rows
        self.tokens = tokens
        self.bound = bound
        self.units = units


class Till:
    """Where the requests of an account are counted, and what they reserve from, on one day."""

    __slots__ = (
        "_budgets", "_charge", "_gauges", "_rates", "_region", "dropped", "need", "record",
        "segment",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        record: Record,
        price: Price,
        budgets: tuple[tuple[Purse, Tariff], ...],
        gauges: tuple[Gauge, ...],
        rates: tuple[Rate, ...],
        region: Region,
        dropped: "deque[tuple[Till, Need]]",
    ) -> None:
        self.record = record
        self.segment = record.segment
        self._region = region
        self.dropped = dropped
        self.need = Need(-1, 0, 0, ())  # of the last request
        self._charge = money(price)
        self._budgets = budgets
        self._gauges = gauges
        self._rates = rates

    def needed(self, rows: int, tokens: int, bound: int) -> Need:
        """What a request takes at most."""
        found = [(purse, each.units(1, rows, tokens, bound)) for purse, each in self._budgets]
        self.need = Need(rows, tokens, bound, tuple(pair for pair in found if pair[1]))
        return self.need

    def reserve(self, need: Need) -> "Hold | None":
        """A reservation; None when it must be waited for. Raises LimitError, OSError."""
        for purse, units in need.units:
            if units > purse.free and not purse.draw(units):
                return None
        for gauge in self._gauges:
            if not gauge.spare and not gauge.draw():
                return None
        for rate in self._rates:
            if not rate.tokens and not rate.draw():
                return None
        for purse, units in need.units:
            purse.free -= units
        for gauge in self._gauges:
            gauge.take()
        for rate in self._rates:
            rate.tokens -= 1
        return Hold(self, need)

    def tidy(self) -> None:
        """Nothing was reserved: keep nothing that is scarce."""
        for purse, _ in self._budgets:
            if purse.scarce:
                purse.yield_all()
        for gauge in self._gauges:
            gauge.tidy()

    def served(
        self, holds: list[Any], requests: int, rows: int, compute: int, cached: int = 0
    ) -> None:
        """Count good answers and settle what was reserved for them, by their `Hold`; see Bill. No
        more is counted than was reserved."""
        tokens = bound = 0
        kinds: dict[Need, int] = {}
        for hold in holds:
            need = hold.need
            tokens += hold.tokens
            bound += need.bound
            if hold.open:
                hold.open = False
                kinds[need] = kinds.get(need, 0) + 1
        if bound < compute and bound:
            compute = bound
        charged = self._charge.units(requests, rows, tokens, compute)
        self.record.served(requests, rows, compute, cached, charged, tokens=tokens)
        if tokens and holds[0].place:
            self._region.count(holds[0].place, TOKENS, tokens)
        if kinds:
            for need, count in kinds.items():
                self._free(need, count)
            for purse, each in self._budgets:
                purse.free -= each.units(requests, rows, tokens, compute)
                if purse.scarce:
                    purse.yield_all()

    def give_back(self, need: Need) -> None:
        """A request has ended that takes nothing."""
        self._free(need, 1)
        for purse, _ in need.units:
            if purse.scarce:
                purse.yield_all()

    def _free(self, need: Need, count: int) -> None:
        self.segment.holds -= count
        for purse, units in need.units:
            purse.free += count * units
        for gauge in self._gauges:
            gauge.give(count)


class Hold:
    """What one request has reserved. It ends exactly once, if only by being forgotten.

    `tokens` are those that it brings, which is what is reserved. Whoever lets a model write more
    reserves the most that it may write as well, and says here, before the request is served, how
    many there were. `place` is where it was sent, if it brings any.
    """

    meters = None  # has been asked

    __slots__ = ("need", "open", "place", "till", "tokens")

    def __init__(self, till: Till, need: Need) -> None:
        self.till = till
        self.need = need
        self.tokens = need.tokens
        self.place = 0
        self.open = True
        till.segment.holds += 1

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """See Bill."""
        self.till.served([self], requests, rows, compute, cached)

    def failed(self) -> None:
        """See Bill."""
        self.till.record.failed()
        self.release()

    def release(self) -> None:
        """Give back all that is reserved, if anything still is."""
        if self.open:
            self.open = False
            self.till.give_back(self.need)

    def __del__(self) -> None:
        # In any thread: whoever dropped the request last. The event loop does the rest.
        if self.open:
            self.open = False
            self.till.dropped.append((self.till, self.need))
