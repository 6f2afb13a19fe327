"""Prices in force, usage by group, invoices, showback, erasure."""

import csv
import io
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Connection, func, select, update

from tapster.contract.control import Job, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.usage import FREE, Line, Segment, UsageReport
from tapster.core.db import Database
from tapster.tenancy.erasure import store as erasure_store
from tapster.tenancy.ledger import invoices, papers, periods, service, store
from tapster.tenancy.ledger.prices import service as prices
from tapster.tenancy.ledger.reading import store as reading
from tapster.tenancy.ledger.tariffs import CEILING
from tapster.tenancy.tenants import service as tenants
from tapster.tenancy.tenants.store import tenants as tenant_rows
from tests.tenancy.ledger.conftest import DAY, NOON, count, line, report

HOUSE = Principal("default", "k", frozenset({"*"}))
LATER = NOON + 40 * 86400


def _who(tenant: str) -> Principal:
    return Principal(tenant, "k", frozenset({"*"}))


def _price(
    tx: Connection, rates: dict[str, str], *, caller: str = "", owner: str = "default",
    name: str = "wine", at: float = 0.0, tiers: Any = (),
) -> str:  # fmt: skip
    tariff = prices.tariff(rates, tiers, house=not name)
    return prices.put(tx, owner, name, caller, tariff, now=at).id


def _take(db: Database, what: UsageReport, at: float = NOON) -> None:
    with db.write() as tx:
        service.take(tx, what, at)


def _invoice(db: Database, who: Principal, tenant: str = "", month: str = "2026-11") -> Any:
    with db.read() as tx:
        return invoices.invoice(tx, who, month, tenant, currency="EUR", now=NOON)


def _usage(db: Database, who: Principal, by: str, **values: Any) -> Any:
    with db.read() as tx:
        span = {"first": "2026-11-01", "last": "2026-11-30"}
        return service.usage(tx, who, by=by, currency="EUR", **{**span, **values})


def test_a_price_holds_from_when_it_is_set_and_lines_name_theirs(db: Database) -> None:
    with db.write() as tx:
        first = _price(tx, {"row": "0.01"}, at=NOON - 100)
    _take(db, report(count(rows=10)), NOON)
    with db.write() as tx:
        second = _price(tx, {"row": "0.02"}, at=NOON + 1)
    _take(db, report(count(rows=15)), NOON + 2)
    bill = _invoice(db, _who("acme"))
    found = {row["price"]: (row["rows"], row["amount"], row["rates"]) for row in bill["lines"]}
    assert found == {
        first: (10, "0.10", {"row": "0.01"}),
        second: (5, "0.10", {"row": "0.02"}),
    }
    assert bill["total"] == "0.20"
    with db.write() as tx:
        prices.delete(tx, "default", second, now=NOON + 3)
    _take(db, report(count(rows=100)), NOON + 4)
    assert _invoice(db, _who("acme"))["total"] == "0.20"


def test_no_tenants_prices_make_sums_that_nobody_can_read(db: Database) -> None:
    """Sums of SQLite have 63 bits: what is beyond is an error to whoever asks for any of them."""
    for number in range(12):
        with db.write() as tx:
            _price(tx, {"row": "1000"}, owner="acme", at=NOON + number)
        _take(db, report(count(number, line(owner="acme"), rows=10**9)), NOON + number)
    _take(db, report(count(99, line(tenant="beta", owner="acme"), rows=1)), NOON + 99)
    found = {row["tenant"]: row["amount"] for row in _usage(db, HOUSE, "tenant")["rows"]}
    assert found == {"acme": "1000000000.00", "beta": "1000.00"}
    with db.read() as tx:
        assert service.counted(tx, "money", "acme", DAY) == CEILING
        assert service.check(tx) == []


def test_what_was_counted_yesterday_has_yesterdays_price(sqlite: Database) -> None:
    with sqlite.write() as tx:
        _price(tx, {"row": "1"}, at=NOON - 86400)
        _price(tx, {"row": "2"}, at=NOON)
    _take(sqlite, report(count(0, line(day="2026-11-20"), rows=1)), NOON + 5)
    assert _invoice(sqlite, _who("acme"))["total"] == "1.00"


def test_a_count_that_names_its_price_has_that(sqlite: Database) -> None:
    with sqlite.write() as tx:
        first = _price(tx, {"row": "1"}, at=NOON - 100)
        _price(tx, {"row": "9"}, at=NOON)
        foreign = _price(tx, {"row": "0"}, at=NOON - 100, caller="zeta")
    _take(sqlite, report(count(0, line(price=first), rows=1)), NOON + 5)
    _take(sqlite, report(count(1, line(price=foreign, key="b"), rows=1)), NOON + 5)
    assert _invoice(sqlite, _who("acme"))["total"] == "10.00", "nobody is given another's price"


def test_a_price_that_ended_before_the_day_holds_for_who_was_let_in_by_it(db: Database) -> None:
    """A plan arrives a moment later, and a machine that is cut off goes on for days."""
    midnight = periods.begins(DAY)
    with db.write() as tx:
        first = _price(tx, {"row": "1"}, at=midnight - 100)
        _price(tx, {"row": "9"}, at=midnight - 1)
    _take(db, report(count(0, line(price=first), rows=1)), midnight + 5)
    found = {row["price"]: row["amount"] for row in _invoice(db, _who("acme"))["lines"]}
    assert found == {first: "1.00"}


def test_what_was_let_in_for_nothing_stays_free(sqlite: Database) -> None:
    with sqlite.write() as tx:
        _price(tx, {"row": "7"}, caller="zeta", at=NOON - 100)
    with sqlite.read() as tx:
        told = {price.tenant: price.id for price in prices.planned(tx)["default", "wine"]}
    assert told[""] == FREE, "whoever has no price is told so"
    with sqlite.write() as tx:
        _price(tx, {"request": "1000"}, at=NOON)
    _take(sqlite, report(count(0, line(price=FREE), requests=5)), NOON + 5)
    assert _invoice(sqlite, _who("acme"))["total"] == "0.00"
    _take(sqlite, report(count(1, requests=1)), NOON + 6)
    assert _invoice(sqlite, _who("acme"))["total"] == "1000.00", "who does not say pays what holds"


def test_a_tenants_own_price_goes_before_everybodys(db: Database) -> None:
    with db.write() as tx:
        _price(tx, {"request": "0.5"})
        _price(tx, {"request": "0.2"}, caller="acme")
        _price(tx, {"request": "100"}, owner="zeta")
    _take(db, report(count(0, requests=1), count(1, line(tenant="beta"), requests=1)))
    assert _invoice(db, HOUSE, "acme")["total"] == "0.20"
    assert _invoice(db, HOUSE, "beta")["total"] == "0.50"
    with db.read() as tx:
        found = {price.tenant: price.request for price in prices.planned(tx)["default", "wine"]}
    assert found == {"": 5 * 10**8, "acme": 2 * 10**8}


def test_the_plan_has_the_dearest_tier(sqlite: Database) -> None:
    with sqlite.write() as tx:
        _price(tx, {"row": "0.01"}, tiers=[(10, {"row": "0.03", "token": "1"}), (20, {"row": "0"})])
    with sqlite.read() as tx:
        [price] = prices.planned(tx)["default", "wine"]
    assert (price.row, price.token, price.request) == (30_000_000, 10**9, 0)


@pytest.mark.parametrize(
    ("rates", "tiers", "house"),
    [
        ({}, [], False),
        ({"rows": "1"}, [], False),
        ({"training": "1"}, [], False),
        ({"row": "1"}, [], True),
        ({"row": "0.0000000001"}, [], False),
        ({"row": "1"}, [(0, {"row": "1"})], False),
        ({"row": "1"}, [(-5, {"row": "1"})], False),
        ({"row": "1"}, [(5, {})], False),
        ({"row": "1"}, [(5, {"row": "1"}), (5, {"row": "2"})], False),
        ({"row": "1"}, [(n, {"row": "1"}) for n in range(1, 40)], False),
        ({"row": "1"}, [(1 << 62, {"row": "1"})], False),
    ],
)
def test_an_odd_price_is_refused(rates: dict[str, str], tiers: Any, house: bool) -> None:
    with pytest.raises(TapsterError) as refused:
        prices.tariff(rates, tiers, house=house)
    assert refused.value.code == "invalid"


def test_a_price_in_the_wrong_place_is_told_of_the_right_one() -> None:
    with pytest.raises(TapsterError) as refused:
        prices.tariff({"request": "1"}, [], house=True)
    assert "--endpoint" in refused.value.hint
    with pytest.raises(TapsterError) as refused:
        prices.tariff({"training": "1"}, [], house=False)
    assert "without an endpoint" in refused.value.hint


def test_everybody_sees_what_they_pay_and_are_paid(db: Database) -> None:
    with db.write() as tx:
        _price(tx, {"request": "0.5"}, owner="acme", name="beer")
    beer = {"owner": "acme", "endpoint": "ep_2", "name": "beer"}
    _take(
        db,
        report(
            count(0, requests=7),
            count(1, line(tenant="beta", key="key_b", **beer), requests=4),
            count(2, line(**beer), requests=2),
            count(3, line(tenant="zeta", key="key_z"), requests=1),
        ),
    )
    all_of_it = _usage(db, HOUSE, "tenant")
    assert {row["tenant"]: row["requests"] for row in all_of_it["rows"]} == {
        "acme": 9, "beta": 4, "zeta": 1,
    }  # fmt: skip
    assert (all_of_it["total"]["amount"], all_of_it["groups"]) == ("3.00", 3)
    own = _usage(db, _who("acme"), "endpoint")
    assert {(r["owner"], r["endpoint"]): r["requests"] for r in own["rows"]} == {
        ("default", "wine"): 7, ("acme", "beer"): 2,
    }  # fmt: skip
    assert [(r["endpoint"], r["requests"], r["amount"]) for r in own["earned"]["rows"]] == [
        ("beer", 4, "2.00")
    ]
    earned = _usage(db, _who("acme"), "key")["earned"]["rows"]
    assert [set(row) & {"key"} for row in earned] == [set()], "others' keys are theirs"
    assert _usage(db, _who("acme"), "tenant", tenant="beta")["earned"]["total"]["requests"] == 4
    assert _usage(db, HOUSE, "tenant", tenant="beta")["total"]["requests"] == 4
    beta = _usage(db, _who("beta"), "model")
    assert [(row["model"], row["requests"]) for row in beta["rows"]] == [("wine", 4)]
    assert beta["earned"]["rows"] == []


def test_another_tenants_usage_is_as_if_it_did_not_exist(db: Database) -> None:
    _take(db, report(count(0, line(tenant="zeta", owner="beta"), requests=7)))
    clerk = Principal("default", "k", frozenset({"usage:read", "invoices:read"}))
    for who in (_who("acme"), clerk):
        said = set()
        for tenant in ("zeta", "nobody"):
            with pytest.raises(TapsterError) as refused:
                _usage(db, who, "day", tenant=tenant)
            said.add((refused.value.code, refused.value.message.replace(tenant, "T")))
            with pytest.raises(TapsterError) as refused:
                _invoice(db, who, tenant)
            said.add((refused.value.code, refused.value.message.replace(tenant, "T")))
        assert said == {("not_found", "there is no tenant 'T'")}
        assert _usage(db, who, "day")["rows"] == []
    with pytest.raises(TapsterError):
        _invoice(db, _who("beta"), "zeta")
    assert _usage(db, _who("beta"), "day", tenant="zeta")["earned"]["total"]["requests"] == 7
    assert _usage(db, HOUSE, "day", tenant="zeta")["total"]["requests"] == 7


@pytest.mark.parametrize("by", ["tenant", "key", "endpoint", "model", "hour", "day"])
def test_every_grouping_adds_up(db: Database, by: str) -> None:
    days = [f"2026-11-{n:02}" for n in (19, 20, 21)]
    for place, day in enumerate(days):
        counts = [
            count(n, line(day=day, key=f"key_{n}", version=str(n)), requests=n + 1, errors=1)
            for n in range(3)
        ]
        _take(db, report(*counts, segment=f"s{place}"), NOON + place)
    found = _usage(db, _who("acme"), by)
    assert found["total"]["requests"] == sum(row["requests"] for row in found["rows"]) == 18
    assert found["groups"] == len(found["rows"])
    expected = {"tenant": 1, "endpoint": 1}
    assert len(found["rows"]) == expected.get(by, 3)
    least = _usage(db, _who("acme"), by, limit=1)
    assert (len(least["rows"]), least["groups"]) == (1, expected.get(by, 3))
    assert least["total"] == found["total"]


@pytest.mark.parametrize(
    "odd",
    [
        {"by": "colour"},
        {"first": "x"},
        {"last": "2026-13-01"},
        {"first": "9999-01-01"},
        {"first": "2026-11-02", "last": "2026-11-01"},
    ],
)
def test_odd_questions_are_refused(sqlite: Database, odd: dict[str, str]) -> None:
    with pytest.raises(TapsterError) as refused:
        _usage(sqlite, HOUSE, **{"by": "day", **odd})
    assert refused.value.code == "invalid"


def _job(**values: Any) -> Job:
    fixed = {
        "id": "job_1", "tenant": "acme", "kind": "training", "status": "running", "spec": {},
        "priority": 0, "attempt": 1, "max_attempts": 3, "time_limit": None, "memory_limit": None,
        "progress": 0.0, "phase": "", "message": "", "created": NOON, "started": NOON - 10,
        "finished": None, "result": None, "error": None,
    }  # fmt: skip
    return Job(**{**fixed, **values})


def test_a_job_is_shown_back_once(db: Database) -> None:
    with db.write() as tx:
        _price(tx, {"training": "0.1", "storage": "0.5"}, name="")
    for _ in range(2):
        with db.write() as tx:
            service.trained(tx, _job(), NOON)
    with db.write() as tx:
        service.trained(tx, _job(id="job_2", started=None), NOON)
    with db.read() as tx:
        assert service.counted(tx, "training", "acme", DAY) == 10 * 10**9
        assert service.counted(tx, "money", "acme", DAY) == 0, "showback is not charged"
    bill = _invoice(db, _who("acme"))
    assert (bill["total"], bill["showback"]["total"], bill["lines"]) == ("0.00", "1.00", [])
    assert bill["showback"]["lines"][0]["job"] == "job_1"
    assert _usage(db, _who("acme"), "day")["total"]["training_seconds"] == 10


def test_storage_is_sampled_once_an_hour(db: Database) -> None:
    with db.write() as tx:
        _price(tx, {"storage": "0.5"}, name="")
    for minute in (0, 1, 60):
        with db.write() as tx:
            due = service.sample_due(tx, NOON + 60 * minute)
            assert (
                service.sample_storage(tx, {"acme": 1 << 30, "beta": 0}, NOON + 60 * minute) is due
            )
    bill = _invoice(db, _who("acme"))
    assert bill["showback"]["total"] == "1.00"
    assert bill["showback"]["lines"][0]["byte_hours"] == 2 << 30


def test_an_open_month_says_so(sqlite: Database) -> None:
    _take(sqlite, report(count(requests=3)))

    def status(now: float) -> str:
        with sqlite.read() as tx:
            [found] = invoices.listing(tx, _who("acme"), "", "EUR", now)
        assert (found["number"], found["month"]) == ("2026-11-acme", "2026-11")
        return str(found["status"])

    days = 86400
    assert [status(NOON + n * days) for n in (0, 10, 20)] == ["open", "closing", "final"]
    with pytest.raises(TapsterError) as refused:
        _invoice(sqlite, _who("acme"), month="2026-10")
    assert refused.value.code == "not_found"
    with pytest.raises(TapsterError) as refused:
        _invoice(sqlite, _who("acme"), month="2026-1x")
    assert refused.value.code == "invalid"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._inside = False
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.cells.append("")
            self._inside = True
        self.outside += [tag for name, _ in attrs if name in {"src", "href", "onclick"}]
        if tag in {"script", "link", "img", "iframe"}:
            self.outside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def test_papers_say_what_the_document_says(sqlite: Database) -> None:
    with sqlite.write() as tx:
        _price(tx, {"row": "0.001"})
        _price(tx, {"training": "0.1"}, name="")
        service.trained(tx, _job(kind="<b>"), NOON)
    evil = line(model="<script>alert(1)</script>", version='=1+1&"')
    _take(sqlite, report(count(0, rows=5), count(1, evil, rows=1234567)))
    bill = _invoice(sqlite, _who("acme"))
    rows = list(csv.DictReader(io.StringIO(papers.as_csv(bill))))
    charged = [Decimal(row["amount"]) for row in rows if row["charged"] == "yes"]
    assert sum(charged) == Decimal(bill["total"])
    assert {row["kind"] for row in rows} == {"calls", "training"}
    assert [row["version"] for row in rows if row["model"] == evil.model] == ["'=1+1&\""]
    page = _Reader()
    page.feed(papers.as_html(bill))
    assert page.outside == []
    spelled = f"{evil.model}@{evil.version}"
    assert {spelled, "row 0.001", "1,234,567", f"{bill['total']} EUR"} <= set(page.cells)
    assert "open" in papers.as_html(bill)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.tuples(*[st.integers(0, 500)] * 3), min_size=4, max_size=4),
            st.sampled_from([None, {"row": "0.333333333"}, {"request": "0.1", "compute": "7"}]),
        ),
        min_size=1,
        max_size=6,
    ),
    tiers=st.lists(st.integers(1, 900), unique=True, max_size=3),
)
def test_the_sum_of_the_lines_is_the_bill(
    sqlite: Database, rounds: list[Any], tiers: list[int]
) -> None:
    with sqlite.write() as tx:
        number = tx.execute(select(func.count()).select_from(store.segments)).scalar_one()
    payers = [f"p{number}a", f"p{number}b"]
    labels: list[Line] = [
        line(tenant=payer, key=key, name=f"e{number}") for payer in payers for key in ("a", "b")
    ]
    totals = [[0, 0, 0] for _ in labels]
    for place, (grown, rates) in enumerate(rounds):
        if rates:
            more = [(above, {next(iter(rates)): "0.07"}) for above in tiers]
            with sqlite.write() as tx:
                _price(tx, rates, name=f"e{number}", tiers=more, at=NOON + place)
        for held, step in zip(totals, grown, strict=True):
            held[:] = [old + new for old, new in zip(held, step, strict=True)]
        counts = tuple(
            count(n, of, requests=a, rows=b, compute=c * 10**7)
            for n, (of, (a, b, c)) in enumerate(zip(labels, totals, strict=True))
        )
        segment = Segment(f"s{number}", DAY, place == len(rounds) - 1, counts)
        _take(sqlite, UsageReport("m1", (segment,), (DAY,)), NOON + place)
    with sqlite.read() as tx:
        for payer in payers:
            table = store.lines.c
            query = select(func.coalesce(func.sum(table.amount), 0)).where(table.tenant == payer)
            amount = int(tx.execute(query).scalar_one())
            assert service.counted(tx, "money", payer, DAY) == amount
            if not reading.known(tx, payer):
                continue
            bill = invoices.invoice(tx, _who(payer), "2026-11", now=NOON)
            assert Decimal(bill["total"]) * 10**9 == amount
            assert sum(Decimal(row["amount"]) for row in bill["lines"]) == Decimal(bill["total"])
            used = service.usage(tx, _who(payer), by="endpoint", first=DAY, last=DAY)
            assert used["total"]["amount"] == bill["total"]
        assert service.check(tx) == []


def test_an_erased_tenant_has_no_name_and_the_sums_stay(db: Database) -> None:
    with db.write() as tx:
        _price(tx, {"request": "0.5"})
        _price(tx, {"request": "0.1"}, owner="acme", name="beer")
    beer = {"owner": "acme", "endpoint": "ep_2", "name": "beer", "model": "secret"}
    _take(
        db,
        report(
            count(0, requests=2),
            count(1, line(tenant="beta", **beer), requests=4),
            count(2, line(**beer), requests=1),
            count(3, line(tenant="zeta"), requests=1),
        ),
    )
    with db.read() as tx:
        before = service.usage(tx, HOUSE, by="day", first=DAY, last=DAY)["total"]
    with db.write() as tx:
        receipt = service.anonymise(tx, "acme")
    assert receipt["lines"] == 4
    with db.read() as tx:
        assert service.check(tx) == []
        assert service.usage(tx, HOUSE, by="day", first=DAY, last=DAY)["total"] == before
        everything = [str(dict(row)) for table in (store.lines, store.hours, store.days)
                      for row in tx.execute(select(table)).mappings()]  # fmt: skip
    for word in ("acme", "key_a'} acme", "secret", "beer"):
        assert not any(word in row for row in everything), word
    assert _invoice(db, HOUSE, receipt["pseudonym"])["total"] == "1.10"
    assert _invoice(db, HOUSE, "beta")["total"] == "0.40"


def test_what_is_reported_of_an_erased_tenant_later_names_nobody(db: Database) -> None:
    with db.write() as tx:
        erasure_store.begin(tx, "acme", "era_1", "key_admin")
        erasure_store.end(tx, "acme", "era_1", NOON, {})
    theirs = line(tenant="beta", owner="acme", key="key_b")
    _take(db, report(count(0, requests=2), count(1, theirs, requests=1)))
    with db.read() as tx:
        everything = [
            str(dict(row))
            for table in (store.lines, store.hours, store.days, store.totals)
            for row in tx.execute(select(table)).mappings()
        ]
        assert service.counted(tx, "requests", "erased:late", DAY) == 2
        assert service.counted(tx, "requests", "beta", DAY) == 1
    assert not any("acme" in row or "key_a'" in row for row in everything)
    with db.write() as tx:
        tenants.ensure(tx, "acme")
        tx.execute(update(tenant_rows).values(created=NOON))
    before = _yesterday(line(), line(tenant="beta", owner="acme", key="key_b"))
    _take(db, before)
    _take(db, report(count(0, requests=5), segment="another"))
    with db.read() as tx:
        assert service.counted(tx, "requests", "acme", DAY) == 5, "a new tenant of that name"
        lines = tx.execute(select(store.lines).where(store.lines.c.day == "2026-11-20")).all()
        assert {(each.tenant, each.owner) for each in lines} == {
            ("erased:late", "default"),
            ("beta", "erased:late"),
        }, "what was used before there was the new one is not its"


def _yesterday(*lines: Line) -> UsageReport:
    """What a machine that was away reports of the day before."""
    day = "2026-11-20"
    counts = [count(at, replace(each, day=day), requests=1) for at, each in enumerate(lines)]
    return report(*counts, segment="before")
