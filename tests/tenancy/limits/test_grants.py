"""What machines are granted: within the amount, idempotent, shared, freed when unused."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.usage import Ask, GrantRequest
from tapster.tenancy.limits import grants, spans
from tests.tenancy.limits.conftest import Bench


def days_ago(count: int) -> str:
    """The day so many days before today."""
    return spans.before(spans.today(), count)


def test_an_answer_is_a_total_so_asking_twice_grants_once(bench: Bench) -> None:
    limit = bench.limit("requests", 500, "day")
    first = bench.ask("m1", limit, 100)
    assert (first.total, first.left, first.spent) == (100, 400, False)
    assert bench.ask("m1", limit, 100) == first
    assert bench.ask("m1", limit, 60).total == 100, "never fewer than before"
    assert first.resets == spans.span("day", days_ago(0)).end
    assert first.resets > time.time()


def test_all_is_granted_and_not_one_more(bench: Bench) -> None:
    limit = bench.limit("requests", 500, "day")
    last = bench.ask_all("m1", limit, 10_000)
    assert (last.total, last.left, last.spent) == (500, 0, True)
    other = bench.ask("m2", limit, 1)
    assert (other.total, other.spent) == (0, True)


def test_near_the_end_machines_share_the_rest(bench: Bench) -> None:
    limit = bench.limit("rows", 1000, "day")
    machines = ["m1", "m2", "m3"]
    assert bench.ask("m1", limit, 1000).total == 500
    assert bench.ask("m2", limit, 1000).total == 125
    for _ in range(20):
        for each in machines:
            bench.ask(each, limit, 1000)
    totals = [bench.ask_all(each, limit, 10_000).total for each in machines]
    assert sum(totals) == 1000
    assert min(totals) > 50


def test_a_lowered_limit_gives_nothing_more_and_a_raised_one_the_difference(bench: Bench) -> None:
    limit = bench.limit("requests", 500, "day")
    assert bench.ask("m1", limit, 200).total == 200
    assert bench.limit("requests", 100, "day") == limit, "the account goes on"
    lowered = bench.ask("m1", limit, 300)
    assert (lowered.total, lowered.left, lowered.spent) == (200, 0, True)
    bench.limit("requests", 300, "day")
    assert bench.ask_all("m1", limit, 900).total == 300


def test_what_was_counted_is_not_granted_again(bench: Bench) -> None:
    limit = bench.limit("rows", 100, "month")
    assert bench.ask_all("m1", limit, 60).total == 60
    bench.report("m1", rows=25, requests=3)
    assert bench.ask_all("m2", limit, 1000).total == 40, "35 are still m1's"
    bench.report("m1", rows=60, requests=9)
    assert bench.ask("m2", limit, 1000).total == 40


def test_what_was_used_before_there_was_a_limit_counts_and_is_no_grant(bench: Bench) -> None:
    bench.report("m1", requests=70)
    limit = bench.limit("requests", 100, "day")
    assert bench.ask_all("m1", limit, 1000).total == 30
    assert bench.ask("m2", limit, 1).spent


def test_a_closed_day_frees_what_was_not_used_and_is_granted_nothing_more(bench: Bench) -> None:
    limit = bench.limit("requests", 100, "month")
    assert bench.ask_all("m1", limit, 80, days_ago(1)).total == 80
    bench.report("m1", days_ago(1), requests=50, open_days=(days_ago(1), days_ago(0)))
    same_month = days_ago(0)[:7] == days_ago(1)[:7]
    assert bench.ask_all("m2", limit, 1000).total == (20 if same_month else 100)
    bench.report("m1", days_ago(1), requests=50, sealed=True, open_days=(days_ago(0),))
    assert bench.ask_all("m2", limit, 1000).total == (50 if same_month else 100)
    back = bench.ask("m1", limit, 90, days_ago(1))
    assert (back.total, back.spent) == (0, False)
    bench.report("m1", days_ago(1), requests=50, sealed=True, open_days=(days_ago(1), days_ago(0)))
    assert bench.ask("m1", limit, 90, days_ago(1)).total == 0, "its books are closed for good"


def test_a_day_that_has_not_begun_is_open(bench: Bench) -> None:
    limit = bench.limit("requests", 100, "day")
    bench.report("m1", requests=1)
    assert bench.ask("m1", limit, 10, days_ago(-1)).total == 10
    assert bench.ask("m1", limit, 10, days_ago(-1)).total == 10
    assert bench.ask_all("m1", limit, 1000).total == 99, "today has an account of its own"


def test_a_date_far_off_is_no_fresh_budget(bench: Bench) -> None:
    limit = bench.limit("requests", 100, "day")
    for day in ("1970-01-01", "2000-02-29", "9999-12-31"):
        found = bench.ask("m1", limit, 10, day)
        # As of a budget that is spent, it is asked again only after a moment.
        assert (found.total, found.spent, found.resets) == (0, True, 0.0)


def test_scopes_count_what_they_are_for(bench: Bench) -> None:
    bench.report("m1", requests=10, endpoint=("acme", "wine"), key="key_1")
    bench.report("m1", requests=20, endpoint=("other", "shared"), key="key_2")
    bench.report("m1", requests=40, tenant="other", endpoint=("acme", "wine"))
    whole = bench.limit("requests", 1000, "day")
    wine = bench.limit("requests", 1000, "day", endpoint="wine")
    shared = bench.limit("requests", 1000, "day", endpoint="shared", by="acme")
    assert [bench.ask("m2", each, 0).left for each in (whole, wine, shared)] == [970, 990, 980]


def test_fine_units_are_given_to_the_last(bench: Bench) -> None:
    for metric in ("compute", "spend"):
        limit = bench.limit(metric, 5.000000001, "day")
        assert bench.ask_all("m1", limit, 10**12).total == 5_000_000_001


def test_many_at_once_never_get_more_than_there_is(bench: Bench) -> None:
    limit = bench.limit("requests", 300, "day")
    together = threading.Barrier(8)

    def spend(number: int) -> int:
        machine, total = f"m{number}", 0
        together.wait()
        while not (found := bench.ask(machine, limit, total + 7)).spent or found.total > total:
            total = found.total
        return total

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(8))) == 300


def test_a_month_that_may_still_be_asked_for_keeps_what_was_given_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one machine's clock the month is over, of another's not."""
    limit, today = bench.limit("requests", 100, "month"), ["2026-11-15"]
    monkeypatch.setattr(spans, "today", lambda: today[0])
    assert bench.ask_all("away", limit, 100, "2026-11-15").total == 100
    today[0] = "2026-12-01"
    assert bench.ask("first", limit, 5, "2026-12-03").total == 5
    assert bench.ask("late", limit, 5, "2026-11-29").total == 0
    assert bench.ask("late", limit, 5, "2026-11-30").total == 0


def test_a_limit_that_is_gone_is_not_answered(bench: Bench) -> None:
    limit = bench.limit("requests", 300, "day")
    bench.limit("requests", None, "day")
    with bench.db.write() as tx:
        assert grants.answer(tx, GrantRequest("m1", (Ask(limit, days_ago(0), 5),))).grants == ()


def test_an_ask_that_no_machine_sends(bench: Bench) -> None:
    for machine, day, total in [
        ("m", "2026-13-01", 1), ("m", "", 1), ("m", days_ago(0), -1), ("m", days_ago(0), 1 << 63),
        ("", days_ago(0), 1), ("m" * 256, days_ago(0), 1),
    ]:  # fmt: skip
        with bench.db.write() as tx, pytest.raises(TapsterError) as caught:
            grants.answer(tx, GrantRequest(machine, (Ask("lim_x", day, total),)))
        assert caught.value.code == "invalid"
