"""What is reserved and settled without a server: concurrency between workers, and many requests at
once.
"""

import gc
import random
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.contract.plan import LimitGrant, Price
from tapster.contract.usage import Grant
from tapster.serving.bills import charge
from tapster.serving.journal import Journal, Label, spelled, today
from tapster.serving.meters import SPARE, Gauge, LimitError, Purse
from tapster.serving.tills import Hold, Till, tariff
from tapster.serving.wallet import Wallet

MOST = 10


def gauges(folder: Path, amount: int, workers: int) -> list[Gauge]:
    """The same limit in several workers."""
    limit = LimitGrant("lim", "concurrency", amount)
    return [Gauge(limit, Wallet(folder), worker) for worker in range(workers)]


def enter(gauge: Gauge) -> bool:
    """Whether one more may run."""
    if not gauge.spare and not gauge.draw():
        return False
    gauge.take()
    return True


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_no_more_run_at_once_than_may_and_none_is_refused_that_may(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draw = random.Random(seed)
    workers = gauges(tmp_path_factory.mktemp("home"), MOST, 3)
    running = [0, 0, 0]
    for _ in range(500):
        index = draw.randrange(3)
        gauge = workers[index]
        if draw.random() < 0.05:
            gauge.beat()
        elif running[index] and draw.random() < 0.45:
            count = draw.randint(1, running[index])
            gauge.give(count)
            running[index] -= count
        else:
            try:
                entered = enter(gauge)
            except LimitError:
                assert sum(running) == MOST
            else:
                # Others keep places for a moment; it is waited for.
                assert entered or any(each.spare for each in workers)
                running[index] += entered
        assert sum(running) <= MOST
    for gauge, count in zip(workers, running, strict=True):
        gauge.give(count)
        gauge.beat()
    assert [enter(workers[0]) for _ in range(MOST)] == [True] * MOST
    with pytest.raises(LimitError):
        enter(workers[1])


def test_what_is_kept_for_the_next_needs_no_lock_and_lasts_a_beat(tmp_path: Path) -> None:
    one, two = gauges(tmp_path, MOST, 2)
    assert all(enter(one) for _ in range(5))
    one.give(5)
    assert one.spare == 5
    assert two._wallet.lock.take()  # nobody else can draw anything now
    assert all(enter(one) for _ in range(5))
    assert not enter(one)
    two._wallet.lock.give()
    assert all(enter(two) for _ in range(5))
    one.give(5)
    assert not enter(two)
    one.beat()
    assert all(enter(two) for _ in range(5))
    entry = two._entry
    assert entry is not None
    assert entry.column(0) == 0
    assert entry.column(1) == MOST
    assert entry.drawn() < SPARE


class Request:
    """One that was answered."""

    def __init__(self, hold: Hold) -> None:
        self.account = hold
        self.rows = hold.need.rows


def test_many_that_are_settled_together_take_what_each_took(tmp_path: Path) -> None:
    wallet, day = Wallet(tmp_path), today()
    journal = Journal(tmp_path / "run", 0, wallet.lock)
    amount = 10**12
    limits = [LimitGrant(each, each, amount, "day") for each in ("rows", "compute", "money")]
    price = Price(request=7, row=3, compute=10**9)
    purses = [Purse(limit, day, wallet, 0, time.monotonic_ns) for limit in limits]
    for purse in purses:
        assert not purse.draw(1)
        wallet.answered(
            day, Grant(purse.limit.id, spelled(day), amount, False, time.time() + 60, 0)
        )
    budgets = tuple((purse, tariff(purse.limit, price)) for purse in purses)
    label = Label("acme", "key", "acme", "ep", "sum", "made", "1")
    till = Till(journal.record(label), price, budgets, (), (), cast(Any, None), cast(Any, None))
    holds = [till.reserve(till.needed(rows, 0, 1000 * rows)) for rows in (1, 2, 2, 5)]
    assert till.segment.holds == 4
    charge(cast(Any, [Request(hold) for hold in holds if hold]), 10, 400)
    assert till.segment.holds == 0
    record = till.record
    assert (record.requests, record.rows, record.compute) == (4, 10, 400)
    assert record.charged == 4 * 7 + 10 * 3 + 400
    spent = [_drawn(purse) - purse.free for purse in purses]
    assert spent == [10, 400, record.charged]
    # Nobody pays for more than was reserved.
    hold = till.reserve(till.needed(1, 0, 1000))
    assert hold is not None
    hold.served(1, 1, 5000)
    assert record.compute == 1400
    assert _drawn(purses[1]) - purses[1].free == 1400
    del holds, hold
    journal.close()
    gc.collect()


def test_without_a_budget_of_money_no_price_is_too_high_to_be_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    label = Label("acme", "key", "acme", "ep", "sum", "made", "1")
    price = Price(row=1000 * 10**9)
    till = Till(journal.record(label), price, (), (), (), cast(Any, None), cast(Any, None))
    for _ in range(3):
        hold = till.reserve(till.needed(16_000_000, 0, 0))
        assert hold is not None
        hold.served(1, 16_000_000, 0)
    assert (till.record.requests, till.record.rows) == (3, 48_000_000)
    journal.close()


def _drawn(purse: Purse) -> int:
    assert purse._entry is not None
    return purse._entry.column(0)
