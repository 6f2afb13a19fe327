"""What a machine may spend, whatever happens: workers that die, clocks that jump, answers that are
lost, questions asked twice.
"""

import gc
import os
import random
import tempfile
import time
from bisect import bisect_left
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tapster.contract.plan import LimitGrant
from tapster.contract.usage import LARGEST, Grant, GrantRequest
from tapster.serving import collecting
from tapster.serving.collecting import Collector
from tapster.serving.extents import FIRST
from tapster.serving.granting import Granting
from tapster.serving.journal import spelled, today
from tapster.serving.meters import CHUNK, SECOND, LimitError, Purse, Rate
from tapster.serving.wallet import ANSWERED, ASKED, GRANTED, WANTED, Wallet
from tests.faults.soak import scaled
from tests.serving.spending import AMOUNTS, DAILY, MONTHLY, Clock, Control, Worker


class Machine(RuleBasedStateMachine):
    """Three workers, an agent and a control plane."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name)
        (self.home / "run").mkdir()
        self.clock = Clock()
        self.control = Control(self.clock)
        self.workers: dict[int, Worker] = {
            index: Worker(self.home, index, self.clock) for index in range(3)
        }
        self.served: dict[tuple[str, int], int] = defaultdict(int)
        self.become_agent()

    def become_agent(self) -> None:
        self.collector = Collector(self.home)
        self.granting = Granting(Wallet(self.home), "machine", self.answer)
        self.lost = False

    def answer(self, body: bytes) -> tuple[int, bytes]:
        request = msgspec.json.decode(body, type=GrantRequest)
        self.control.grant(request)  # as if asked twice: grants are totals
        found = self.control.grant(request)
        if self.lost:
            raise ConnectionResetError
        return 200, msgspec.json.encode(found)

    @rule(
        index=st.integers(0, 2),
        key=st.sampled_from(["key_day", "key_month"]),
        rows=st.sampled_from([1, 1, 2, 3, 7, 20]),
    )
    def request(self, index: int, key: str, rows: int) -> None:
        worker = self.workers.get(index)
        if worker is not None:
            worker.reserve(key, rows)

    @rule(
        index=st.integers(0, 2),
        how=st.sampled_from(["served", "served", "served", "failed", "gone", "released"]),
        which=st.integers(0, 1000),
    )
    def end(self, index: int, how: str, which: int) -> None:
        worker = self.workers.get(index)
        if worker is None or not worker.holds:
            return
        hold, key, rows = worker.holds.pop(which % len(worker.holds))
        if how == "served":
            day = hold.till.segment.day
            hold.served(1, rows, 0)
            hold.release()
            self.count(key, rows, day)
        elif how == "failed":
            hold.failed()
            hold.release()
        elif how == "released":
            hold.release()
            hold.release()

    def count(self, key: str, rows: int, day: int) -> None:
        limit, units = ("lim_day", 1) if key == "key_day" else ("lim_month", rows)
        self.served[limit, day] += units

    @rule(index=st.integers(0, 2))
    def kill(self, index: int) -> None:
        worker = self.workers.pop(index, None)
        if worker is not None:
            worker.kill()

    @rule(index=st.integers(0, 2))
    def start(self, index: int) -> None:
        if index not in self.workers:
            self.workers[index] = Worker(self.home, index, self.clock)

    @rule(lost=st.booleans())
    def exchange(self, lost: bool) -> None:
        self.lost = lost
        self.granting._due = 0.0
        self.granting._seen = -1
        self.granting.turn()

    @rule(lost=st.booleans(), twice=st.booleans())
    def report(self, lost: bool, twice: bool) -> None:
        for known in self.collector._known.values():
            known.due = 0.0
        report = self.collector.report()
        receipt = self.control.take(report)
        if twice:
            receipt = self.control.take(report)
        if not lost:
            self.collector.acknowledge(report, receipt)

    @rule()
    def another_agent(self) -> None:
        self.become_agent()

    @rule(by=st.sampled_from([-1, 1]))
    def jump(self, by: int) -> None:
        start = today()
        self.clock.day = min(max(self.clock.day + by, start - 1), start + 1)
        self.beat()

    @rule()
    def beat(self) -> None:
        for worker in self.workers.values():
            worker.beat()

    @rule()
    @precondition(lambda self: self.workers)
    def settle(self) -> None:
        for worker in self.workers.values():
            worker.journal.settle(time.monotonic() + 1000)

    @invariant()
    def nothing_is_overspent(self) -> None:
        assert sum(n for (limit, _), n in self.served.items() if limit == "lim_month") <= MONTHLY
        assert all(n <= DAILY for (limit, _), n in self.served.items() if limit == "lim_day")

    @invariant()
    def what_is_drawn_was_granted(self) -> None:
        wallet = Wallet(self.home)
        for day in wallet.days():
            table = wallet.open(day)
            assert table is not None
            for name, entry in table.all().items():
                assert entry.drawn() <= entry[GRANTED], name
                assert entry[GRANTED] <= max(
                    self.control.given[name, spelled(day)], DAILY + MONTHLY
                )

    def teardown(self) -> None:
        try:
            self._nothing_is_lost()
        finally:
            for worker in self.workers.values():
                worker.kill()
            self.folder.cleanup()
            self.workers = {}
            gc.collect()  # files that are mapped are open until then

    def _nothing_is_lost(self) -> None:
        for index in range(3):
            self.kill(index)
            self.start(index)
        day = self.workers[0].journal.day
        # The wait for what has just been found spent is not this test's.
        idle = 0
        while idle < 8:
            progress = False
            for worker in self.workers.values():
                worker.beat()
                if worker.reserve("key_day", 1):
                    hold, _, _ = worker.holds.pop()
                    hold.served(1, 1, 0)
                    self.count("key_day", 1, day)
                    progress = True
            idle = 0 if progress else idle + 1
            self.exchange(lost=False)
        assert self.served["lim_day", day] == DAILY
        for index in range(3):
            self.kill(index)
        for _ in range(3):
            self.report(lost=False, twice=False)
        for limit in AMOUNTS:
            every = sum(n for (name, _), n in self.served.items() if name == limit)
            assert self.control.used(limit) == every


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "COMPLETE_SECONDS", -1.0)
    monkeypatch.setattr("tapster.serving.granting.SPENT_PAUSE", 0)
    monkeypatch.setattr("tapster.serving.meters.FRESH", 0)


def _hold(examples: int, steps: int) -> None:
    given = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=given)


def test_limits_and_grants_hold_whatever_happens() -> None:
    _hold(40, 40)


@pytest.mark.soak
def test_limits_and_grants_hold_whatever_happens_for_long() -> None:
    _hold(round(scaled(1000)), 80)


def test_a_wallet_that_is_lost_begins_with_what_was_spent(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    clock = Clock()
    worker, control = Worker(tmp_path, 0, clock), Control(clock)
    granting = Granting(Wallet(tmp_path), "machine", lambda body: (200, _granted(control, body)))
    for _ in range(3):
        assert not worker.reserve("key_day", 1)  # so few are left that none are asked for ahead
        granting.turn()
        assert worker.reserve("key_day", 1)
        worker.holds.pop()[0].served(1, 1, 0)
    worker.kill()
    for path in (tmp_path / "run" / "wallet").iterdir():
        path.unlink()
    successor = Worker(tmp_path, 0, clock)
    assert not successor.reserve("key_day", 1)
    entry = successor.wallet.book(clock.day).find("lim_day")
    assert entry is not None
    assert entry.column(0) == 3


def test_a_wallet_whose_maker_was_killed_is_begun_by_the_next(tmp_path: Path) -> None:
    """Between having room in its file and saying what it is, or before all was there again."""
    (tmp_path / "run" / "wallet").mkdir(parents=True)
    clock = Clock()
    (tmp_path / "run" / "wallet" / "held").write_bytes(bytes(FIRST))
    worker, control = Worker(tmp_path, 0, clock), Control(clock)
    granting = Granting(Wallet(tmp_path), "machine", lambda body: (200, _granted(control, body)))
    assert not worker.reserve("key_day", 1)
    granting.turn()
    assert worker.reserve("key_day", 1)
    worker.holds.pop()[0].served(1, 1, 0)
    worker.kill()
    (tmp_path / "run" / "wallet" / str(clock.day)).write_bytes(bytes(FIRST))
    successor = Worker(tmp_path, 0, clock)
    assert not successor.reserve("key_day", 1)
    entry = successor.wallet.book(clock.day).find("lim_day")
    assert entry is not None
    assert entry.column(0) == 1


def test_a_day_that_was_said_to_be_complete_never_comes_back(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    clock = Clock()
    worker, control, collector = Worker(tmp_path, 0, clock), Control(clock), Collector(tmp_path)
    granting = Granting(Wallet(tmp_path), "machine", lambda body: (200, _granted(control, body)))
    clock.day -= 1
    first = clock.day
    worker.beat()
    worker.journal.settle(time.monotonic() + 1000)
    assert not worker.reserve("key_month", 100)
    granting.turn()
    assert worker.reserve("key_month", 100)
    worker.holds.pop()[0].served(1, 100, 0)
    clock.day += 1
    worker.beat()
    worker.journal.settle(time.monotonic() + 1000)
    for _ in range(3):
        report = collector.report()
        collector.acknowledge(report, control.take(report))
    assert spelled(first) not in report.open_days
    assert control.used("lim_month", spelled(first)) == 100
    assert [
        each.name for each in (tmp_path / "run" / "wallet").iterdir() if each.name.isdecimal()
    ] == []
    clock.day -= 1
    worker.beat()
    assert worker.journal.day == first + 1
    assert Worker(tmp_path, 1, clock).journal.day == first + 1


def test_books_of_days_that_are_over_are_closed(tmp_path: Path) -> None:
    """Those of budgets that are asked for each day, and of one that nobody asks for any more."""
    (tmp_path / "run").mkdir()
    clock = Clock()
    worker, agent = Worker(tmp_path, 0, clock), Wallet(tmp_path)
    assert not worker.reserve("key_month", 1)
    for _ in range(8):
        assert not worker.reserve("key_day", 1)
        clock.day += 1
        worker.beat()
        worker.journal.settle(time.monotonic() + 1000)
        agent.complete(clock.day)
    assert not worker.reserve("key_day", 1)
    worker.accounts.pop("key_month")
    worker.beat()
    gc.collect()
    here = Path("/proc/self/fd")
    opened = [os.readlink(file) for file in here.iterdir() if file.is_symlink()]
    books = f"{tmp_path}/run/wallet/2"
    assert len([file for file in opened if file.startswith(books)]) == 2
    worker.kill()


def _granted(control: Control, body: bytes) -> bytes:
    request = msgspec.json.decode(body, type=GrantRequest)
    return msgspec.json.encode(control.grant(request))


def test_what_idles_in_one_worker_is_given_to_another(tmp_path: Path) -> None:
    wallets = [Wallet(tmp_path) for _ in range(2)]
    limit = LimitGrant("lim", "rows", 10_000, "day")
    one, two = (
        Purse(limit, 5, wallet, index, time.monotonic_ns) for index, wallet in enumerate(wallets)
    )
    assert not one.draw(5)
    wallets[0].answered(5, Grant("lim", spelled(5), 1000, False, time.time() + 60, 9000))
    assert one.draw(5)
    one.free -= 5
    held = one.free
    assert held > 0  # it keeps some, so that it need not ask the wallet for every request
    assert not two.draw(1000 - 5)
    one.beat()
    one.beat()
    assert one.free == 0
    assert two.draw(1000 - 5)


def test_however_much_is_waited_for_the_ask_is_one_that_is_answered(tmp_path: Path) -> None:
    """All that a machine wants is asked for in one go: what is refused there nobody gets."""
    wallet = Wallet(tmp_path)
    purse = Purse(
        LimitGrant("lim", "money", LARGEST, "month"), today(), wallet, 0, time.monotonic_ns
    )
    purse.waiting = 30 * LARGEST
    assert not purse.draw(LARGEST // 2)
    [(_, _, entry)] = wallet.wanted()
    assert LARGEST // 2 <= entry[WANTED] <= LARGEST


def test_what_no_budget_can_give_is_not_asked_for(tmp_path: Path) -> None:
    wallet = Wallet(tmp_path)
    purse = Purse(LimitGrant("lim", "rows", 100, "day"), today(), wallet, 0, time.monotonic_ns)
    with pytest.raises(LimitError, match="rows of the day"):
        purse.draw(101)
    assert not list(wallet.wanted())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_rate_holds_over_any_time(data: st.DataObject) -> None:
    """Also when the workers' clock, the machine's, begins anew."""
    amount = data.draw(st.sampled_from([500, 3_000, 100_000, 2_000_000]), "thousandths a second")
    burst = data.draw(st.sampled_from([0, 1, 5, 50]), "burst")
    seed = data.draw(st.integers(0, 2**32), "seed")
    draw = random.Random(seed)
    moments = [10 * SECOND]
    limit = LimitGrant("lim", "rate", amount, burst=burst)
    gap = 1000 * SECOND / amount
    passed: list[int] = []
    with tempfile.TemporaryDirectory() as folder:

        def fresh() -> Rate:
            return Rate(limit, Wallet(Path(folder)), lambda: moments[-1])

        rates = [fresh() for _ in range(3)]
        for _ in range(400):
            pause = draw.expovariate(1 / gap) * draw.choice([0, 0, 0.2, 1, 30])
            moments.append(moments[-1] + round(pause))
            if draw.random() < 0.02:  # a worker dies, and with it the tokens that it had
                rates[draw.randrange(3)] = fresh()
            with suppress(LimitError):
                rate = rates[draw.randrange(3)]
                if rate.tokens or rate.draw():
                    rate.tokens -= 1
                    passed.append(moments[-1])
    allowed = burst or max(1, amount // 1000)
    tolerance = 3 * max(1, CHUNK // max(1, round(gap)))
    for first in range(0, len(passed), 7):
        for span in (0, SECOND // 10, SECOND, 10 * SECOND):
            last = bisect_left(passed, passed[first] + span + 1)
            assert last - first <= allowed + span / gap + tolerance


def test_a_machine_that_began_anew_does_not_wait_for_its_former_clock(tmp_path: Path) -> None:
    now = 10**6 * SECOND
    limit = LimitGrant("lim", "rate", 1000, burst=1)
    assert Rate(limit, Wallet(tmp_path), lambda: now).draw()
    now = SECOND
    assert Rate(limit, Wallet(tmp_path), lambda: now).draw()


def test_a_machine_that_began_anew_asks_for_more(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    clock = Clock()
    worker, control = Worker(tmp_path, 0, clock), Control(clock)

    def agent() -> Granting:
        return Granting(Wallet(tmp_path), "machine", lambda body: (200, _granted(control, body)))

    granting = agent()
    assert not worker.reserve("key_day", 1)
    granting.turn()
    assert worker.reserve("key_day", 1)
    worker.holds.pop()[0].served(1, 1, 0)
    worker.kill()
    entry = Wallet(tmp_path).book(clock.day).find("lim_day")
    assert entry is not None
    for word in (ASKED, ANSWERED):  # by the clock of before, which had run for long
        entry[word] = time.monotonic_ns() + 10**6 * SECOND
    successor, granting = Worker(tmp_path, 0, clock), agent()
    assert not successor.reserve("key_day", 1), "all that was granted is spent"
    granting.turn()
    assert successor.reserve("key_day", 1)
