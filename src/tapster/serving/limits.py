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
from typing import Any, Final, Protocol

from tapster.contract.errors import TapsterError
from tapster.contract.plan import LimitGrant, Price, TenantGrant
from tapster.contract.usage import BUDGETED
from tapster.serving.gate import suspension
from tapster.serving.journal import Journal, Record
from tapster.serving.meters import SECOND, Clock, Gauge, LimitError, Purse, Rate
from tapster.serving.slots import LIMITED, Region
from tapster.serving.tills import Hold, Need, Till, tariff
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
    """The limits that hold for an account. `tokens` counts those of a request, where any are;
    `till` is what its requests reserve from, once one has."""

    __slots__ = ("budgets", "gauges", "rates", "till", "timed", "tokens")

    def __init__(
        self,
        budgets: tuple[LimitGrant, ...],
        gauges: tuple[Gauge, ...],
        rates: tuple[Rate, ...],
        price: Price,
        tokens: Count | None = None,
    ) -> None:
        self.budgets = budgets
        self.gauges = gauges
        self.rates = rates
        self.tokens = tokens
        self.till: Till | None = None
        metrics = {limit.metric for limit in budgets}
        # Whether what a request computes counts, so that it must be bounded before.
        self.timed = "compute" in metrics or bool("money" in metrics and price.compute)


class Limited(Protocol):
    """An account with limits."""

    meters: Meters | None
    price: Price

    def opened(self) -> Record:
        """Where it is counted now. Raises TapsterError(unavailable)."""
        ...

    def restand(self, standing: TenantGrant, limiter: "Limiter") -> None:
        """Take over the limits that hold now."""
        ...


class _Waiting:
    """A request whose turn has not come, and the units that it waits for."""

    __slots__ = ("account", "need", "runs", "work")

    def __init__(self, work: Work, runs: Runs, account: Limited, need: Need) -> None:
        self.work = work
        self.runs = runs
        self.account = account
        self.need = need
        for purse, units in need.units:
            purse.waiting += units

    def over(self) -> None:
        """It waits no longer."""
        for purse, units in self.need.units:
            purse.waiting -= units


class Limiter:
    """The limits of one worker. All methods run on its event loop.

    `alive` says whether requests may still be sent to a target, `standing` how a tenant stands.
    """

    def __init__(
        self,
        wallet: Wallet,
        journal: Journal,
        region: Region,
        worker: int,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.dropped: deque[tuple[Till, Need]] = deque()
        self.alive: Callable[[Runs], bool] = lambda runs: True
        self.standing: Callable[[str], TenantGrant] = TenantGrant
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
        budgets = tuple(each for each in chosen if each.metric in BUDGETED)
        gauges = tuple(self._gauge(each) for each in chosen if each.metric == "concurrency")
        rates = tuple(self._rate(each) for each in chosen if each.metric == "rate")
        if not (budgets or gauges or rates or tokens):
            return None
        return Meters(budgets, gauges, rates, price, tokens)

    def submit(self, work: Work, runs: Runs) -> None:
        """Run a request once it may. Raises what the target raises, and LimitError."""
        account: Any = work.account
        meters: Meters | None = account.meters
        if meters is None:
            runs.submit(work)
            return
        tokens = meters.tokens(work.inputs) if meters.tokens is not None else 0
        try:
            hold = self.reserve(account, work.rows, runs, tokens)
        except LimitError:
            self._region.count(work.place, LIMITED)
            raise
        if hold is not None:
            if tokens:
                hold.place = work.place
            work.account = hold
            runs.submit(work)
        else:
            self._wait(work, runs, account)

    def reserve(self, account: Limited, rows: int, runs: Runs, tokens: int = 0) -> Hold | None:
        """A reservation for so many rows and tokens; None when it must be waited for.

        Raises LimitError, and TapsterError(unavailable) when nothing can be counted.
        """
        if self.dropped:
            self.sweep()
        meters = account.meters
        assert meters is not None
        till = meters.till
        if till is None or till.segment.rolled:
            till = meters.till = self._opened(account, meters)
        bound = self._bound(runs, rows) if meters.timed else 0
        need = till.need
        if need.rows != rows or need.bound != bound or need.tokens != tokens:
            need = till.needed(rows, tokens, bound)
        try:
            hold = till.reserve(need)
        except OSError as error:
            till.tidy()
            raise _unasked("the server has no room on its disk to count this") from error
        except LimitError:
            till.tidy()
            raise
        if hold is None:
            till.tidy()
        return hold

    def _bound(self, runs: Runs, rows: int) -> int:
        """Nanoseconds of model time that a request may take."""
        return max(LEAST_BOUND, int(CAUTION * SECOND * runs.expected(rows)))

    def _opened(self, account: Limited, meters: Meters) -> Till:
        """What an account's requests reserve from now. Raises TapsterError(unavailable)."""
        record = account.opened()
        day = record.segment.day
        budgets = tuple(
            (self._purse(limit, day), tariff(limit, account.price)) for limit in meters.budgets
        )
        return Till(
            record, account.price, budgets, meters.gauges, meters.rates, self._region, self.dropped
        )

    def _purse(self, limit: LimitGrant, day: int) -> Purse:
        """What is here of a budget on a day."""
        purse = self._purses.get(limit.id)
        if purse is None or purse.day != day:
            if purse is not None:
                purse.yield_all()
            purse = Purse(limit, day, self._wallet, self._worker, self._clock)
            self._purses[limit.id] = purse
        purse.limit = limit
        return purse

    def sweep(self) -> None:
        """Take back what forgotten requests had reserved."""
        while self.dropped:
            till, need = self.dropped.popleft()
            till.give_back(need)

    def beat(self) -> None:
        """Called a few times a second."""
        self.sweep()
        for limit, purse in list(self._purses.items()):
            purse.beat()
            if purse.day < self._wallet.first_open:  # nobody spends from it any more
                del self._purses[limit]
        for gauge in self._gauges.values():
            gauge.beat()

    def _gauge(self, limit: LimitGrant) -> Gauge:
        gauge = self._gauges.get(limit.id)
        if gauge is None:
            gauge = self._gauges[limit.id] = Gauge(limit, self._wallet, self._worker)
        if gauge.limit != limit:
            gauge.limit = limit
            gauge.beat()
        return gauge

    def _rate(self, limit: LimitGrant) -> Rate:
        rate = self._rates.get(limit.id)
        if rate is None or rate.limit != limit:
            rate = self._rates[limit.id] = Rate(limit, self._wallet, self._clock)
        return rate

    # -- those that wait

    def _wait(self, work: Work, runs: Runs, account: Limited) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._region.count(work.place, LIMITED)
            raise _unasked("too many requests wait for their budget")
        assert account.meters is not None
        assert account.meters.till is not None
        self._waiting.append(_Waiting(work, runs, account, account.meters.till.need))
        self._wind()

    def _wind(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Let those go on who may now, the first come first; the others of their limits wait."""
        self._timer = None
        waiting, self._waiting = self._waiting, deque()
        stuck: set[Meters | None] = set()
        for each in waiting:
            if each.work.done or self._resume(each, stuck):
                each.over()
            else:
                self._waiting.append(each)
        self._wind()

    def _resume(self, each: _Waiting, stuck: set[Meters | None]) -> bool:
        """Whether a request need wait no longer: it runs, or was refused."""
        work, account = each.work, each.account
        try:
            if not self.alive(each.runs):
                raise TapsterError("unavailable", "the endpoint has changed", hint="try again")
            if account.meters not in stuck:  # what it waits for may be a limit no more
                standing = self.standing(work.tenant)
                if standing.suspended:
                    raise suspension(work.tenant)
                account.restand(standing, self)
            meters, hold = account.meters, None
            if meters is not None:
                if meters not in stuck:
                    hold = self.reserve(account, work.rows, each.runs, each.need.tokens)
                if hold is None:
                    stuck.add(meters)
                    self._wait_on(each)
                    return False
                hold.place = work.place
                work.account = hold
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
