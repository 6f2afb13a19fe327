"""Workers who spend and a control plane that grants, in one process and on one clock."""

import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tapster.contract.plan import LimitGrant, Price, TenantGrant
from tapster.contract.usage import Grant, GrantAnswer, GrantRequest, UsageReceipt, UsageReport
from tapster.serving.accounts import Account
from tapster.serving.journal import Journal, Label, spelled, today
from tapster.serving.limits import Limiter
from tapster.serving.meters import LimitError
from tapster.serving.slots import Region
from tapster.serving.tills import Hold
from tapster.serving.wallet import Wallet

DAILY, MONTHLY = 40, 150
LIMITS = (
    LimitGrant("lim_day", "requests", DAILY, "day", key="key_day"),
    LimitGrant("lim_month", "rows", MONTHLY, "month", key="key_month"),
)
AMOUNTS = {"lim_day": DAILY, "lim_month": MONTHLY}


class Clock:
    """The wall clock, which may jump."""

    def __init__(self) -> None:
        self.day = today()


class Runs:
    """A model that takes no time."""

    def expected(self, rows: int) -> float:
        return 0.0

    def submit(self, work: object) -> None:
        raise AssertionError


class Worker:
    """A worker's limits and journal, without its server."""

    def __init__(self, home: Path, index: int, clock: Clock) -> None:
        self.wallet = Wallet(home)
        with self.wallet.lock:
            self.wallet.reclaim(index)
        self.journal = Journal(
            home / "run",
            index,
            self.wallet.lock,
            lambda: self.wallet.first_open,
            lambda: clock.day,
        )
        self.limiter = Limiter(self.wallet, self.journal, cast(Region, None), index)
        self.accounts = {key: self._account(key) for key in ("key_day", "key_month")}
        self.holds: list[tuple[Hold, str, int]] = []

    def _account(self, key: str) -> Account:
        account = Account(self.journal, Label("acme", key, "acme", "ep", "sum", "made", "1"))
        standing = TenantGrant("acme", limits=tuple(each for each in LIMITS if each.key == key))
        holder = SimpleNamespace(standing=standing, tenant="acme", key=key)
        account.agree(cast(Any, holder), (Price(),), self.limiter)
        return account

    def reserve(self, key: str, rows: int) -> bool:
        try:
            hold = self.limiter.reserve(self.accounts[key], rows, Runs())
        except LimitError:
            return False
        if hold is not None:
            self.holds.append((hold, key, rows))
        return hold is not None

    def beat(self) -> None:
        if self.journal.due():
            assert self.journal.roll()
        self.limiter.beat()

    def kill(self) -> None:
        """As `kill -9`: the kernel lets go of its locks, and nothing else happens."""
        for hold, _, _ in self.holds:
            hold.open = False
        self.journal.close()


class Control:
    """The control plane's side of the contract."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.given: dict[tuple[str, str], int] = defaultdict(int)
        self.counts: dict[tuple[str, int], Any] = {}
        self.days: dict[str, str] = {}
        self.sealed: set[str] = set()

    def grant(self, request: GrantRequest) -> GrantAnswer:
        found = []
        for ask in request.asks:
            amount = AMOUNTS[ask.limit]
            if ask.limit == "lim_day":
                left = amount - self.given[ask.limit, ask.day]
            else:
                left = amount - sum(n for (limit, _), n in self.given.items() if limit == ask.limit)
            more = min(max(ask.total - self.given[ask.limit, ask.day], 0), left)
            self.given[ask.limit, ask.day] += more
            total = self.given[ask.limit, ask.day]
            resets = time.time() + 1e6
            found.append(Grant(ask.limit, ask.day, total, total < ask.total, resets, left - more))
        return GrantAnswer(tuple(found))

    def take(self, report: UsageReport) -> UsageReceipt:
        for segment in report.segments:
            self.days[segment.id] = segment.day
            for count in segment.counts:
                self.counts[segment.id, count.record] = count
            if segment.sealed:
                self.sealed.add(segment.id)
        self._free(report.open_days)
        return UsageReceipt(tuple(each.id for each in report.segments if each.sealed))

    def used(self, limit: str, day: str = "") -> int:
        field, key = ("requests", "key_day") if limit == "lim_day" else ("rows", "key_month")
        return sum(
            getattr(count, field)
            for count in self.counts.values()
            if count.line.key == key and (not day or count.line.day == day)
        )

    def _free(self, open_days: tuple[str, ...]) -> None:
        """Of a day that is complete, what was not used is free again."""
        for (limit, day), total in self.given.items():
            over = day not in open_days and day < spelled(self._clock.day)
            whole = all(each in self.sealed for each, of in self.days.items() if of == day)
            if over and whole:
                used = self.used(limit, day)
                assert used <= total
                self.given[limit, day] = used
