"""Who may go on: requests reserve what they may use before they run, and settle after.

A reservation (`Hold`) is counted by, in place of the account that it is of: when its request has
been answered well, what that took is spent and the rest is free again; when it failed, or nobody
waits for it any more, all of it is. A request whose budget lies empty waits for the control plane
to grant more, until its deadline.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol, cast

from tapster.contract.errors import TapsterError
from tapster.contract.plan import LimitGrant, Price
from tapster.contract.usage import BUDGETED
from tapster.serving.journal import Journal, Record
from tapster.serving.meters import SECOND, Clock, Gauge, LimitError, Purse, Rate
from tapster.serving.slots import LIMITED, TOKENS, Region
from tapster.serving.tokens import Count
from tapster.serving.wallet import Wallet
from tapster.serving.work import Work

# Requests that wait for a budget are looked at so often (seconds).
TICK: Final = 0.005
# For how long the control plane cannot be asked before they are refused.
PATIENCE: Final = 2.0
MOST_WAITING: Final = 4096
# A request may take so many times the time that it is expected to.
CAUTION: Final = 4
LEAST_BOUND: Final = 1_000_000


class Runs(Protocol):
    """Where a request goes that may."""

    def submit(self, work: Work) -> None:
        """Queue it. Raises TapsterError."""
        ...

    def expected(self, rows: int) -> float:
        """Seconds of model time that so many rows should take."""
        ...


class Meters:
    """The limits that hold for an account. `tokens` counts those of a request, where any are."""

    __slots__ = ("budgets", "gauges", "limits", "rates", "timed", "tokens")

    def __init__(
        self,
        limits: tuple[LimitGrant, ...],
        gauges: tuple[Gauge, ...],
        rates: tuple[Rate, ...],
        price: Price,
        tokens: Count | None = None,
    ) -> None:
        self.limits = limits
        self.tokens = tokens
        self.budgets = tuple(limit for limit in limits if limit.metric in BUDGETED)
        self.gauges = gauges
        self.rates = rates
        metrics = {limit.metric for limit in self.budgets}
        # Whether what a request computes counts, so that it must be bounded before.
        self.timed = "compute" in metrics or bool("money" in metrics and price.compute)


class Limited(Protocol):
    """An account with limits."""

    meters: Meters | None
    price: Price

    def opened(self) -> Record:
        """Where it is counted now. Raises TapsterError(unavailable)."""
        ...


def units(metric: str, rows: int, tokens: int, compute: int, price: Price) -> int:
    """What a request takes of a budget; `compute` in nanoseconds."""
    if metric == "requests":
        return 1
    if metric == "rows":
        return rows
    if metric == "tokens":
        return tokens
    if metric == "compute":
        return compute
    if metric == "money":
        counted = price.request + price.row * rows + price.token * tokens
        return counted + -(-price.compute * compute // SECOND)
    return 0


class Hold:
    """What one request has reserved. It ends exactly once, if only by being forgotten.

    `tokens` are those that it brings, which is what is reserved. Whoever lets a model write more
    reserves the most that it may write as well, and says here, before the request is served, how
    many there were.
    """

    meters = None  # has been asked

    __slots__ = (
        "_bound", "_gauges", "_limiter", "_open", "_price", "_purses", "_record", "place", "tokens",
    )  # fmt: skip

    def __init__(
        self, limiter: "Limiter", record: Record, price: Price, bound: int, tokens: int = 0
    ) -> None:
        self.tokens = tokens
        self.place = 0  # where it was sent, once it was
        self._limiter = limiter
        self._record = record
        self._price = price
        self._bound = bound
        self._open = True
        self._purses: list[tuple[Purse, int]] = []
        self._gauges: list[Gauge] = []
        record.segment.holds += 1

    def spend(self, purse: Purse, need: int) -> bool:
        """Reserve units of a budget; see `meters`."""
        if not purse.take(need):
            return False
        self._purses.append((purse, need))
        return True

    def run(self, gauge: Gauge) -> bool:
        """Be one of those that run at once; see `meters`."""
        if not gauge.take():
            return False
        self._gauges.append(gauge)
        return True

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """See Bill. No more is counted than was reserved."""
        if self._bound:
            compute = min(compute, self._bound)
        price, tokens = self._price, self.tokens
        charged = units("money", rows, tokens, compute, price)
        self._record.served(requests, rows, compute, cached, charged, tokens=tokens)
        if tokens and self.place:
            self._limiter.read(self.place, tokens)
        if self._open:
            self._end(
                [
                    (purse, max(need - units(purse.limit.metric, rows, tokens, compute, price), 0))
                    for purse, need in self._purses
                ]
            )

    def failed(self) -> None:
        """See Bill."""
        self._record.failed()
        self.release()

    def release(self) -> None:
        """Give back all that is reserved, if anything still is."""
        if self._open:
            self._end(self._purses)

    def _end(self, back: list[tuple[Purse, int]]) -> None:
        self._open = False
        self._record.segment.holds -= 1
        for purse, amount in back:
            purse.give(amount)
        for gauge in self._gauges:
            gauge.give()

    def __del__(self) -> None:
        # In any thread: whoever dropped the request last. The event loop does the rest.
        if self._open:
            self._open = False
            self._limiter.dropped.append((self._record, self._purses, self._gauges))


class _Waiting:
    """A request whose turn has not come, and the units that it waits for."""

    __slots__ = ("_needs", "account", "runs", "tokens", "work")

    def __init__(
        self, work: Work, runs: Runs, account: Limited, tokens: int, needs: list[tuple[Purse, int]]
    ) -> None:
        self.work = work
        self.tokens = tokens
        self.runs = runs
        self.account = account
        self._needs = needs
        for purse, need in needs:
            purse.waiting += need

    def over(self) -> None:
        """It waits no longer."""
        for purse, need in self._needs:
            purse.waiting -= need


class Limiter:
    """The limits of one worker. All methods run on its event loop.

    `alive` says whether requests may still be sent to a target.
    """

    def __init__(
        self,
        wallet: Wallet,
        journal: Journal,
        region: Region,
        worker: int,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.dropped: deque[tuple[Record, list[tuple[Purse, int]], list[Gauge]]] = deque()
        self.alive: Callable[[Runs], bool] = lambda runs: True
        self._wallet = wallet
        self._journal = journal
        self._region = region
        self._worker = worker
        self._clock = clock
        self._purses: dict[str, Purse] = {}
        self._gauges: dict[str, Gauge] = {}
        self._rates: dict[str, Rate] = {}
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def meters(
        self, limits: Iterable[LimitGrant], price: Price, tokens: Count | None = None
    ) -> Meters | None:
        """What holds by these limits; None if there are none that the data plane holds to, and no
        `tokens` to be counted."""
        chosen = tuple(sorted(limits, key=lambda limit: limit.id))
        chosen = tuple(each for each in chosen if each.period or each.metric not in BUDGETED)
        gauges = tuple(self._gauge(each) for each in chosen if each.metric == "concurrency")
        rates = tuple(self._rate(each) for each in chosen if each.metric == "rate")
        meters = Meters(chosen, gauges, rates, price, tokens)
        return meters if meters.budgets or gauges or rates or tokens else None

    def read(self, place: int, tokens: int) -> None:
        """Count the tokens of a request that was answered, where it was sent."""
        self._region.count(place, TOKENS, tokens)

    def submit(self, work: Work, runs: Runs) -> None:
        """Run a request once it may. Raises what the target raises, and LimitError."""
        account = cast(Limited, work.account)
        if account.meters is None:
            runs.submit(work)
            return
        tokens = account.meters.tokens(work.inputs) if account.meters.tokens is not None else 0
        try:
            hold = self.reserve(account, work.rows, runs, tokens)
        except LimitError:
            self._region.count(work.place, LIMITED)
            raise
        if hold is not None:
            self._let(work, hold, runs)
        elif len(self._waiting) >= MOST_WAITING:
            self._region.count(work.place, LIMITED)
            raise _unasked("too many requests wait for their budget")
        else:
            bound = self._bound(account, work.rows, runs)
            needs = self._needs(account, work.rows, tokens, bound)
            self._waiting.append(_Waiting(work, runs, account, tokens, needs))
            self._wind()

    def _let(self, work: Work, hold: Hold, runs: Runs) -> None:
        """Let a request go on with what is reserved for it. Raises what the target raises."""
        hold.place = work.place
        work.account = hold
        runs.submit(work)

    def reserve(self, account: Limited, rows: int, runs: Runs, tokens: int = 0) -> Hold | None:
        """A reservation for so many rows and tokens; None when it must be waited for.

        Raises LimitError, and TapsterError(unavailable) when nothing can be counted.
        """
        if self.dropped:
            self.sweep()
        meters = account.meters
        assert meters is not None
        bound = self._bound(account, rows, runs) if meters.timed else 0
        hold = Hold(self, account.opened(), account.price, bound, tokens)
        try:
            if self._reserve(hold, meters, self._needs(account, rows, tokens, bound)):
                return hold
        except OSError as error:
            hold.release()
            raise _unasked("the server has no room on its disk to count this") from error
        except BaseException:
            hold.release()
            raise
        hold.release()
        return None

    def _bound(self, account: Limited, rows: int, runs: Runs) -> int:
        """Nanoseconds of model time that a request may take; 0 if nobody asks."""
        if account.meters is None or not account.meters.timed:
            return 0
        return max(LEAST_BOUND, round(CAUTION * SECOND * runs.expected(rows)))

    def _needs(
        self, account: Limited, rows: int, tokens: int, bound: int
    ) -> list[tuple[Purse, int]]:
        """What a request takes at most of each budget."""
        budgets = account.meters.budgets if account.meters is not None else ()
        price = account.price
        needs = [(limit, units(limit.metric, rows, tokens, bound, price)) for limit in budgets]
        return [(self.purse(limit), need) for limit, need in needs if need]

    def _reserve(self, hold: Hold, meters: Meters, needs: list[tuple[Purse, int]]) -> bool:
        for purse, need in needs:
            if not hold.spend(purse, need):
                return False
        for gauge in meters.gauges:
            if not hold.run(gauge):
                return False
        passed: list[Rate] = []
        try:
            for rate in meters.rates:
                if not rate.take():
                    break
                passed.append(rate)
        except LimitError:
            for rate in passed:
                rate.give()
            raise
        if len(passed) < len(meters.rates):
            for rate in passed:
                rate.give()
            return False
        return True

    def purse(self, limit: LimitGrant) -> Purse:
        """What is here of a budget today."""
        purse = self._purses.get(limit.id)
        if purse is None or purse.day != self._journal.day:
            if purse is not None:
                purse.yield_all()
            purse = Purse(limit, self._journal.day, self._wallet, self._worker, self._clock)
            self._purses[limit.id] = purse
        purse.limit = limit
        return purse

    def sweep(self) -> None:
        """Take back what forgotten requests had reserved."""
        while self.dropped:
            record, purses, gauges = self.dropped.popleft()
            record.segment.holds -= 1
            for purse, need in purses:
                purse.give(need)
            for gauge in gauges:
                gauge.give()

    def beat(self) -> None:
        """Called a few times a second."""
        self.sweep()
        for purse in self._purses.values():
            purse.beat()

    def _gauge(self, limit: LimitGrant) -> Gauge:
        gauge = self._gauges.get(limit.id)
        if gauge is None:
            gauge = self._gauges[limit.id] = Gauge(limit, self._wallet, self._worker)
        gauge.limit = limit
        return gauge

    def _rate(self, limit: LimitGrant) -> Rate:
        rate = self._rates.get(limit.id)
        if rate is None or rate.limit != limit:
            rate = self._rates[limit.id] = Rate(limit, self._wallet, self._clock)
        return rate

    # -- those that wait

    def _wind(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Let those go on who may now, the first come first; the others of their limits wait."""
        self._timer = None
        waiting, self._waiting = self._waiting, deque()
        stuck: set[Meters] = set()
        for each in waiting:
            if each.work.done or self._resume(each, stuck):
                each.over()
            else:
                self._waiting.append(each)
        self._wind()

    def _resume(self, each: _Waiting, stuck: set[Meters]) -> bool:
        """Whether a request need wait no longer: it runs, or was refused."""
        work, meters = each.work, each.account.meters
        try:
            if not self.alive(each.runs):
                raise TapsterError("unavailable", "the endpoint has changed", hint="try again")
            hold = None
            if meters is not None:
                if meters not in stuck:
                    hold = self.reserve(each.account, work.rows, each.runs, each.tokens)
                if hold is None:
                    stuck.add(meters)
                    self._wait_on(each)
                    return False
                self._let(work, hold, each.runs)
            else:
                each.runs.submit(work)
        except Exception as error:
            if isinstance(error, LimitError):
                self._region.count(work.place, LIMITED)
            work.fail(error)
        return True

    def _wait_on(self, each: _Waiting) -> None:
        """Raises TapsterError(unavailable) when a request has waited for long enough."""
        now = time.monotonic()
        if now >= each.work.deadline:
            raise _unasked("the budget could not be refilled in time")
        since = self._wallet.unreachable / 1e9
        if since and now - since >= PATIENCE:
            raise _unasked("the budget cannot be refilled: nobody can be asked for more")


def _unasked(problem: str) -> TapsterError:
    return TapsterError("unavailable", problem, hint="try again in a second", retry_after=1.0)
