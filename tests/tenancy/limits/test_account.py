"""The account as a property: whatever machines and clocks do, no period gives more than it has.

Machines spend from wallets as the data plane does: never more than was granted, counted by day,
reported as totals, now and then again or late. The ledger and the grants are the real ones.
"""

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from tapster.contract.usage import Count, Line, Segment, UsageReport
from tapster.core.db import Database
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.limits import account, grants, spans, store
from tests.tenancy.limits.conftest import Bench

# Days around the end of a month: the machines' and our own clocks wander among them.
DAYS = [f"2026-11-{day}" for day in (27, 28, 29, 30)] + ["2026-12-01", "2026-12-02", "2026-12-03"]
PERIODS = ("day", "month")


class Machine:
    """A machine: what it was granted by limit and day, and what it has used by day."""

    def __init__(self, name: str, day: int) -> None:
        self.name = name
        self.day = day
        self.latest = day
        self.granted: dict[tuple[str, int], int] = defaultdict(int)
        self.used: dict[int, int] = defaultdict(int)
        self.open: set[int] = {day}

    def report(self, sealing: int | None = None) -> UsageReport:
        """All that it has counted and not yet closed; the last of one day."""
        counted = self.open | ({sealing} if sealing is not None else set())
        segments = tuple(
            Segment(
                f"{self.name}-{DAYS[day]}",
                DAYS[day],
                day == sealing,
                (Count(0, _line(DAYS[day]), requests=self.used[day]),),
            )
            for day in sorted(counted)
        )
        return UsageReport(self.name, segments, tuple(DAYS[day] for day in sorted(self.open)))


def _line(day: str) -> Line:
    return Line(day, "acme", "key_1", "acme", "ep_1", "wine", "m", "1")


_template: list[Path] = []


def _empty(folder: Path) -> Database:
    """A copy of one migrated database: migrations take longer than an example."""
    if not _template:
        _template.append(Path(tempfile.mkdtemp()) / "template.db")
        made = Database(f"sqlite:///{_template[0]}")
        made.migrate()
        made.close()
    shutil.copy(_template[0], folder / "test.db")
    return Database(f"sqlite:///{folder / 'test.db'}")


class Accounts(RuleBasedStateMachine):
    """A daily and a monthly limit of requests that a tenant's machines all spend from."""

    machines = Bundle("machines")
    reports = Bundle("reports")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.db = _empty(self.folder)
        self.bench = Bench(self.db)
        self.clock, self._today = 2, spans.today
        spans.today = lambda at=None: DAYS[self.clock] if at is None else self._today(at)
        self.all: list[Machine] = []
        self.amounts: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.limits: dict[str, str] = {}

    def teardown(self) -> None:
        try:
            if self.limits:
                self.everything_is_found_again()
        finally:
            spans.today = self._today
            self.db.close()
            shutil.rmtree(self.folder)

    @initialize(day=st.integers(1, 60), month=st.integers(1, 150))
    def set_limits(self, day: int, month: int) -> None:
        for period, amount in zip(PERIODS, (day, month), strict=True):
            self.change(period, amount)

    @rule(target=machines)
    def start(self) -> Any:
        if len(self.all) >= 4:
            return multiple()
        self.all.append(Machine(f"m{len(self.all)}", self.clock))
        return self.all[-1]

    @rule(period=st.sampled_from(PERIODS), amount=st.integers(0, 200))
    def change(self, period: str, amount: int) -> None:
        """Lower or raise a limit: it keeps its account."""
        self.limits[period] = self.bench.limit("requests", amount, period)
        self.amounts[period] = amount
        self.most[period] = max(amount, self.most.get(period, 0))

    @rule(machine=machines, period=st.sampled_from(PERIODS), more=st.integers(0, 80))
    def ask(self, machine: Machine, period: str, more: int) -> None:
        self._ask(machine, period, machine.used[machine.day] + more)

    @rule(machine=machines, period=st.sampled_from(PERIODS), total=st.integers(0, 300))
    def ask_again(self, machine: Machine, period: str, total: int) -> None:
        """An old or odd request, as one that is sent twice."""
        self._ask(machine, period, total)

    @rule(machine=machines, wanted=st.integers(1, 80))
    def spend(self, machine: Machine, wanted: int) -> None:
        """Use what both limits leave."""
        used = machine.used[machine.day]
        least = min(machine.granted[period, machine.day] for period in PERIODS)
        machine.used[machine.day] = used + max(0, min(wanted, least - used))

    @rule(machine=machines)
    def report(self, machine: Machine) -> None:
        self._take(machine.report())

    @rule(target=reports, machine=machines)
    def delay(self, machine: Machine) -> UsageReport:
        """A report that is under way for long."""
        return machine.report()

    @rule(late=consumes(reports))
    def arrive(self, late: UsageReport) -> None:
        """Counts arrive late; which days are open is what it said then, so that is not believed."""
        name = late.machine
        now = next(machine for machine in self.all if machine.name == name)
        self._take(UsageReport(name, late.segments, now.report().open_days))

    @rule(machine=machines)
    def turn(self, machine: Machine) -> None:
        """The machine's day changes; what is under way is still counted on the day before."""
        if machine.latest + 1 < len(DAYS):
            machine.latest = machine.day = machine.latest + 1
            machine.open.add(machine.day)

    @rule(machine=machines)
    def close(self, machine: Machine) -> None:
        """All of the oldest day is counted: it is sealed, and its wallet is thrown away."""
        oldest = min(machine.open)
        if oldest < machine.latest:
            machine.open.discard(oldest)
            machine.day = max(machine.day, oldest + 1)
            for period in PERIODS:
                machine.granted.pop((period, oldest), None)
            self._take(machine.report(sealing=oldest))

    @rule(machine=machines)
    def linger(self, machine: Machine) -> None:
        """A machine's clock goes back: it counts on the oldest day that is still open."""
        machine.day = min(machine.open)

    @rule(clock=st.integers(0, len(DAYS) - 1))
    def jump(self, clock: int) -> None:
        """Our own clock shows another day."""
        self.clock = clock

    @invariant()
    def no_period_is_overspent(self) -> None:
        for period, limit in self.limits.items():
            used: dict[str, int] = defaultdict(int)
            held: dict[str, int] = defaultdict(int)
            for machine in self.all:
                for day, count in machine.used.items():
                    used[spans.span(period, DAYS[day]).first] += count
                    may = machine.granted.get((period, day), 0)
                    held[spans.span(period, DAYS[day]).first] += max(may, count)
            assert all(total <= self.most[period] for total in used.values()), (limit, used)
            assert all(total <= self.most[period] for total in held.values()), (limit, held)

    def everything_is_found_again(self) -> None:
        """Once machines have closed their days, all that was not used can be granted."""
        self.change("month", 500)
        self.clock = 3
        for machine in self.all:
            while machine.latest < len(DAYS) - 1:
                self.turn(machine)
            while min(machine.open) < machine.latest:
                self.close(machine)
        used = sum(m.used[day] for m in self.all for day in range(4))
        fresh = self.bench.ask_all("fresh", self.limits["month"], 1000, DAYS[3])
        assert fresh.total == 500 - used

    def _ask(self, machine: Machine, period: str, total: int) -> None:
        day, limit = machine.day, self.limits[period]
        before = machine.granted[period, day]
        answer = self.bench.ask(machine.name, limit, total, DAYS[day])
        if abs(day - self.clock) <= grants.DAYS_APART and day in machine.open:
            assert before <= answer.total <= max(before, total)
        machine.granted[period, day] = max(before, answer.total)
        if answer.total > before:
            self._within(period, limit, DAYS[day])

    def _within(self, period: str, limit: str, day: str) -> None:
        """Whatever gave something more left no more away than the limit is now."""
        with self.db.read() as tx:
            row = store.get(tx, limit)
            assert row is not None
            span = spans.span(period, day)
            books = store.granted(tx, "acme", limit, span.first, span.last)
            counted = store.counted(tx, row, span.first, span.last)
        usable = {place: held.usable for place, held in books.items()}
        assert account.held(usable, counted) <= self.amounts[period]

    def _take(self, report: UsageReport) -> None:
        with self.db.write() as tx:
            ledger.take(tx, report)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(
    max_examples=12,
    stateful_step_count=35,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
