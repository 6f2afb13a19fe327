"""Reports become lines once, whatever becomes of the reports."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from tapster.contract.usage import Count, Segment, UsageReceipt, UsageReport
from tapster.core.db import Database
from tapster.tenancy.ledger import service, store
from tapster.tenancy.ledger.prices import service as prices
from tapster.tenancy.ledger.tariffs import Tier
from tests.tenancy.ledger.conftest import DAY, NOON, count, line, report


def _take(db: Database, what: UsageReport, at: float = NOON) -> tuple[str, ...]:
    with db.write() as tx:
        return service.take(tx, what, at).taken


def _sum(db: Database, column: str, table: str = "usage_lines") -> int:
    with db.read() as tx:
        query = text(f"select coalesce(sum({column}), 0) from {table}")
        return int(tx.execute(query).scalar_one())


def _lines(db: Database) -> int:
    with db.read() as tx:
        return int(tx.execute(select(func.count()).select_from(store.lines)).scalar_one())


def test_growth_is_counted_and_nothing_twice(db: Database) -> None:
    first = report(count(0, requests=3, rows=30), count(1, line(key="key_b"), requests=1, errors=2))
    assert _take(db, first) == ()
    assert _take(db, first) == ()
    assert (_sum(db, "requests"), _sum(db, "rows"), _sum(db, "errors")) == (4, 30, 2)
    _take(db, report(count(0, requests=5, rows=31)))
    _take(db, first)  # overtaken by the one before
    assert (_sum(db, "requests"), _sum(db, "rows"), _lines(db)) == (6, 31, 3)
    for table in ("usage_hours", "usage_days"):
        assert _sum(db, "requests", table) == 6
    with db.read() as tx:
        assert service.check(tx) == []


def test_a_sealed_segment_is_taken_once_and_for_ever(db: Database) -> None:
    _take(db, report(count(0, requests=3)))
    last = report(count(0, requests=4), count(1, line(key="key_b"), requests=2), sealed=True)
    assert _take(db, last) == ("seg",)
    assert _take(db, last) == ("seg",), "an answer that was lost is given again"
    assert _take(db, report(count(0, requests=9))) == ("seg",)
    assert _sum(db, "requests") == 6
    with db.read() as tx:
        left = select(func.count()).select_from(store.totals)
        assert tx.execute(left).scalar_one() == 0


def test_a_machine_is_told_of_a_ledger_without_its_last_report(sqlite: Database) -> None:
    path = Path(sqlite.engine.url.database or "")

    def take(what: UsageReport, at: float) -> UsageReceipt:
        with sqlite.write() as tx:
            return service.take(tx, what, at)

    first = take(report(count(0, requests=3)), NOON)
    assert not first.again, "nobody knows what one that has just begun had told"
    backup = path.read_bytes()
    second = take(replace(report(count(0, requests=5)), mark=first.mark), NOON + 1)
    assert (second.again, second.mark == first.mark) == (False, False)
    assert take(replace(report(), mark=first.mark), NOON + 2).again, "an answer that was lost"
    sqlite.close()
    path.write_bytes(backup)
    idle = replace(report(), segments=(), mark=second.mark)
    with sqlite.read() as tx:
        assert service.news(tx, idle)
        assert not service.news(tx, replace(idle, mark=first.mark))
    restored = take(idle, NOON + 3)
    assert (restored.again, _sum(sqlite, "requests")) == (True, 3)
    again = take(replace(report(count(0, requests=5)), mark=restored.mark), NOON + 4)
    assert (again.again, _sum(sqlite, "requests")) == (False, 5)


def test_the_same_segment_of_another_machine_is_another(db: Database) -> None:
    _take(db, report(count(requests=3)))
    _take(db, report(count(requests=3), machine="m2"))
    assert _sum(db, "requests") == 6


@pytest.mark.parametrize(
    "odd",
    [
        count(0, requests=2, rows=40),
        count(0, line(tenant="other"), requests=9, rows=90),
        count(0, line(key="k" * 65), requests=9, rows=90),
        count(0, line(key="k\0"), requests=9, rows=90),
        count(0, line(tenant=""), requests=9, rows=90),
        count(0, requests=-1, rows=90),
        count(0, requests=1 << 60, rows=90),
        count(-1, requests=9, rows=90),
        count(0, line(day="2026-11-20"), requests=9, rows=90),
    ],
)
def test_what_cannot_be_is_refused_and_the_rest_is_taken(db: Database, odd: Count) -> None:
    good = count(7, line(key="key_b"), requests=1)
    _take(db, report(count(0, requests=3, rows=30)))
    segment = Segment("seg", DAY, True, (odd, good))
    assert _take(db, UsageReport("m1", (segment,), ())) == ()
    assert (_sum(db, "requests"), _sum(db, "rows")) == (4, 30)
    with db.read() as tx:
        assert not service.closed(tx, "m1", DAY), "its file is kept for somebody to look at"


def test_a_machine_that_has_lost_some_seconds_is_done_with_its_day(db: Database) -> None:
    """Its power failed: what it had told is more than what it knows now, and stays."""
    _take(db, report(count(0, requests=9, rows=90), count(1, line(key="key_b"), requests=5)))
    last = report(count(0, requests=7, rows=80), sealed=True, open_days=("2026-11-22",))
    assert _take(db, last) == ("seg",)
    assert (_sum(db, "requests"), _sum(db, "rows")) == (14, 90)
    with db.read() as tx:
        assert service.closed(tx, "m1", DAY)


@pytest.mark.parametrize("odd", ["", "x" * 65, "a\0b", "2026-02-30"])
def test_an_impossible_segment_is_refused(sqlite: Database, odd: str) -> None:
    day = odd if odd.startswith("2026") else DAY
    identifier = "seg" if odd.startswith("2026") else odd
    found = count(0, line(day=day), requests=1)
    assert _take(sqlite, UsageReport("m1", (Segment(identifier, day, True, (found,)),))) == ()
    assert _sum(sqlite, "requests") == 0


def test_lines_refuse_to_change(db: Database) -> None:
    _take(db, report(count(requests=3)))
    attempts = [
        update(store.lines).values(requests=1),
        update(store.lines).values(tenant="somebody"),
        update(store.lines).values(amount=1, tenant="erased:x"),
        update(store.lines).values(key=""),
        delete(store.lines),
    ]
    if not db.sqlite:
        attempts.append(text("truncate usage_lines"))  # type: ignore[arg-type]
    for attempt in attempts:
        with pytest.raises(DBAPIError, match="append-only"), db.write() as tx:
            tx.execute(attempt)
    assert _sum(db, "requests") == 3


def test_a_day_is_closed_once_all_of_it_is_in(db: Database) -> None:
    def closed() -> bool:
        with db.read() as tx:
            return service.closed(tx, "m1", DAY)

    assert not closed(), "a machine never heard of may have anything"
    _take(db, report(count(requests=3)))
    assert not closed()
    _take(db, report(count(requests=3), open_days=("2026-11-22",)))
    assert not closed(), "its segment is not in whole"
    _take(db, report(count(requests=3), sealed=True, open_days=("2026-11-22",)))
    assert closed()


def test_an_idle_machine_writes_nothing(sqlite: Database) -> None:
    idle = UsageReport("m1", (), (DAY,))
    with sqlite.read() as tx:
        assert service.news(tx, idle)
    _take(sqlite, idle)
    with sqlite.read() as tx:
        assert not service.news(tx, idle)
        assert service.news(tx, UsageReport("m1", (), (DAY, "2026-11-22")))


def test_a_crash_before_the_commit_leaves_nothing(db: Database) -> None:
    what = report(count(requests=3), sealed=True)

    def crash() -> None:
        with db.write() as tx:
            service.take(tx, what, NOON)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert (_sum(db, "requests"), _lines(db)) == (0, 0)
    assert _take(db, what) == ("seg",)
    assert _sum(db, "requests") == 3


def test_counts_are_found_by_scope_and_machine(db: Database) -> None:
    other = line(key="key_b", endpoint="ep_2", name="beer")
    _take(db, report(count(0, requests=3, compute=7), count(1, other, requests=2)))
    _take(db, report(count(0, requests=5), machine="m2"))
    _take(db, report(count(0, line(tenant="zeta"), requests=100), machine="m3"))
    with db.read() as tx:
        assert service.counted(tx, "requests", "acme", DAY) == 10
        assert service.counted(tx, "requests", "acme", DAY, machine="m2") == 5
        assert service.counted(tx, "requests", "acme", DAY, endpoint="ep_2") == 2
        assert service.counted(tx, "requests", "acme", "2026-11-01", DAY, key="key_a") == 8
        assert service.counted(tx, "compute", "acme", DAY) == 7
        assert service.counted(tx, "requests", "acme", "2026-11-22") == 0


def test_a_line_is_of_the_day_that_was_counted_and_of_an_hour_of_it(sqlite: Database) -> None:
    late = NOON + 12 * 3600 + 2
    _take(sqlite, report(count(requests=3)), late)
    with sqlite.read() as tx:
        row = tx.execute(select(store.lines)).mappings().one()
    assert (row["day"], row["hour"], row["month"]) == (DAY, f"{DAY}T23", "2026-11")


def test_what_comes_after_its_bill_has_closed_is_on_the_next(sqlite: Database) -> None:
    old = line(day="2026-09-30")
    _take(sqlite, report(count(0, old, requests=3)), NOON)
    with sqlite.read() as tx:
        row = tx.execute(select(store.lines)).mappings().one()
    assert (row["day"], row["month"]) == ("2026-09-30", "2026-11")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_reports_in_any_order_and_number_count_what_was_counted(
    sqlite: Database, data: st.DataObject
) -> None:
    """Totals only grow; every report is delivered at least once, the sealed one among them."""
    with sqlite.write() as tx:
        segment = f"s{tx.execute(select(func.count()).select_from(store.segments)).scalar_one()}"
    before = {name: _sum(sqlite, name) for name in ("requests", "rows", "compute")}
    steps = data.draw(
        st.lists(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=3, max_size=3), min_size=1)
    )
    totals = [[0, 0, 0] for _ in range(3)]
    reports = []
    for number, step in enumerate(steps):
        for held, grown in zip(totals, step, strict=True):
            for place, more in enumerate(grown):
                held[place] += more
        counts = tuple(
            count(record, line(key=f"key_{record}"), requests=a, rows=b, compute=c)
            for record, (a, b, c) in enumerate(totals)
        )
        sealed = number == len(steps) - 1
        reports.append(UsageReport("m1", (Segment(segment, DAY, sealed, counts),), (DAY,)))
    sent = data.draw(st.lists(st.sampled_from(reports), max_size=8))
    for one in data.draw(st.permutations([*sent, *reports])):
        _take(sqlite, one)
    for place, name in enumerate(("requests", "rows", "compute")):
        assert _sum(sqlite, name) - before[name] == sum(held[place] for held in totals)
        assert _sum(sqlite, name, "usage_hours") == _sum(sqlite, name)
        assert _sum(sqlite, name, "usage_days") == _sum(sqlite, name)


def test_a_thousand_records_are_taken_in_well_under_a_second(sqlite: Database) -> None:
    labels = [line(tenant=f"t{n % 100}", key=f"key_{n}") for n in range(1000)]
    took = []
    for round_ in range(1, 4):
        counts = tuple(count(n, of, requests=round_, rows=n) for n, of in enumerate(labels))
        began = time.process_time()
        _take(sqlite, UsageReport("m1", (Segment("seg", DAY, False, counts),), (DAY,)))
        took.append(time.process_time() - began)
    assert (_lines(sqlite), _sum(sqlite, "requests")) == (3000, 3000)
    assert min(took) < 1.0, took


def test_reports_at_once_count_once(db: Database) -> None:
    """Two control processes may hear the same machine, and others; their payers are the same."""
    with db.write() as tx:
        prices.put(tx, "default", "wine", "", (Tier(0, {"row": 3}), Tier(40, {"row": 1})), now=0.0)
    reports = [
        report(count(0, rows=n), count(1, line(key="b"), rows=2 * n), machine=machine)
        for n in range(1, 9)
        for machine in ("m1", "m2", "m1")
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: _take(db, one), reports))
    assert _sum(db, "rows") == 2 * (8 + 16)
    assert _sum(db, "amount") == 40 * 3 + 8 * 1
    with db.read() as tx:
        assert service.check(tx) == []


def test_a_large_report_is_taken_in_portions_and_then_whole(sqlite: Database) -> None:
    counts = tuple(count(n, line(key=f"key_{n}"), requests=n) for n in range(2500))
    odd = tuple(msgspec.structs.replace(one, rows=-1) if not one.record else one for one in counts)
    for number, (found, whole) in enumerate(((counts, ("s0",)), (odd, ()))):
        what = UsageReport("m1", (Segment(f"s{number}", DAY, True, found),), ())
        pieces = list(service.portions(what, 1000))
        assert [len(piece.segments[0].counts) for piece in pieces] == [1000, 1000, 500, 2500]
        taken = [_take(sqlite, piece) for piece in pieces]
        assert taken == [(), (), (), whole]
    assert _sum(sqlite, "requests") == 2 * sum(range(2500))
    assert list(service.portions(report(count(0)))) == [report(count(0))]


def test_no_line_without_its_sums(db: Database) -> None:
    _take(db, report(count(requests=3, rows=5)))
    with db.write() as tx:
        row = dict(tx.execute(select(store.lines)).mappings().one())
        row.pop("id")
        tx.execute(insert(store.lines).values(**row))
    with db.read() as tx:
        found = service.check(tx)
    assert [words.split(":")[0] for words in found] == ["usage_hours", "usage_days"]
