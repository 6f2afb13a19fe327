"""Limits: who sets which, what is refused, what the plan carries, what is shown."""

import pytest

from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import LimitGrant, TenantGrant
from tapster.tenancy.keys import service as keys
from tapster.tenancy.ledger import periods
from tapster.tenancy.limits import service, spans, units
from tapster.tenancy.revisions import revision
from tapster.tenancy.rights import ROLES
from tests.tenancy.limits.conftest import INSTALLATION, Bench


def refused(
    bench: Bench, metric: str, amount: float | None, period: str = "", **more: object
) -> TapsterError:
    """The refusal of a limit, which changes nothing."""
    before = shown(bench)
    with pytest.raises(TapsterError) as caught:
        bench.limit(metric, amount, period, **more)
    assert shown(bench) == before
    return caught.value


def shown(bench: Bench, who: Principal = INSTALLATION, tenant: str = "acme") -> list[str]:
    """Metric, amount and who set it, of each limit."""
    with bench.db.read() as tx:
        found = service.listing(tx, who, tenant, {"storage": lambda _tx, _tenant: 300})
    return [f"{one.metric} {one.amount:g} {one.period} {one.set_by}" for one in found]


def planned(
    bench: Bench, endpoints: dict[tuple[str, str], str]
) -> dict[str, tuple[LimitGrant, ...]]:
    """What the data plane is told, by tenant."""
    with bench.db.read() as tx:
        return {each.tenant: each.limits for each in service.tenant_grants(tx, endpoints)}


def test_a_limit_takes_the_place_of_the_one_it_names(bench: Bench) -> None:
    first = bench.limit("requests", 500, "day")
    assert bench.limit("requests", 600, "day") == first
    bench.limit("requests", 9000, "month")
    bench.limit("requests", 10, "day", endpoint="wine")
    bench.limit("requests", 20, "day", endpoint="wine", by="acme")
    assert sorted(shown(bench)) == [
        "requests 10 day default",
        "requests 20 day acme",
        "requests 600 day default",
        "requests 9000 month default",
    ]
    bench.limit("requests", None, "day")
    assert len(shown(bench)) == 3


def test_the_plan_has_what_the_data_plane_holds_to(bench: Bench) -> None:
    spend = bench.limit("spend", 5.5, "month")
    rate = bench.limit("rate", 2.5, key="", burst=7)
    wine = bench.limit("concurrency", 4, endpoint="wine")
    for metric in ("storage", "jobs", "models"):
        bench.limit(metric, 3)
    bench.limit("training", 60, "day")
    without = planned(bench, {})["acme"]
    assert {each.id: each for each in without} == {
        spend: LimitGrant(spend, "money", 5_500_000_000, "month"),
        rate: LimitGrant(rate, "rate", 2500, burst=7),
    }
    found = planned(bench, {("acme", "wine"): "ep_7"})["acme"]
    assert LimitGrant(wine, "concurrency", 4, endpoint="ep_7") in found
    with bench.db.read() as tx:
        assert service.tenant_grants(tx, {}, ["other"]) == ()
        assert service.tenant_grants(tx, {}, ["acme"]) == (TenantGrant("acme", limits=without),)


def test_only_what_the_data_plane_holds_to_changes_the_plan(bench: Bench) -> None:
    def number() -> int:
        with bench.db.read() as tx:
            return revision(tx)

    start = number()
    bench.limit("storage", 10)
    assert number() == start
    limit = bench.limit("rows", 10, "day")
    assert number() == start + 1
    with bench.db.write() as tx:
        service.remove(tx, INSTALLATION, limit)
        service.endpoint_made(tx, "acme", "wine")
    assert number() == start + 2
    bench.limit("rows", 10, "day", endpoint="wine")
    with bench.db.write() as tx:
        service.endpoint_made(tx, "acme", "wine")
    assert number() == start + 4, "the endpoint has another id now"


def test_a_tenant_limits_its_own_keys_and_endpoints_and_nothing_else(bench: Bench) -> None:
    acme = Principal("acme", "key_a", frozenset({"*"}))
    with bench.db.write() as tx:
        key = keys.make(tx, acme, name="till", role="consumer").id
    own = bench.limit("requests", 5, "day", key=key, by="acme")
    theirs = bench.limit("requests", 500, "day")
    assert refused(bench, "requests", 5000, "day", by="acme").code == "forbidden"
    with bench.db.write() as tx, pytest.raises(TapsterError) as caught:
        service.remove(tx, acme, theirs)
    assert caught.value.code == "forbidden"
    with bench.db.write() as tx:
        assert service.remove(tx, acme, own).key == key
    assert shown(bench, acme, "") == ["requests 500 day default"]


def test_other_tenants_answer_like_tenants_that_are_not_there(bench: Bench) -> None:
    other = Principal("other", "key_o", frozenset({"*"}))
    limit = bench.limit("requests", 5, "day")
    messages = []
    for tenant in ("acme", "nobody"):
        with bench.db.read() as tx, pytest.raises(TapsterError) as caught:
            service.listing(tx, other, tenant, {})
        messages.append((caught.value.code, caught.value.message.replace(tenant, "T")))
    for identifier in (limit, "lim_nothing"):
        with bench.db.write() as tx, pytest.raises(TapsterError) as caught:
            service.remove(tx, other, identifier)
        messages.append((caught.value.code, caught.value.message.replace(identifier, "T")))
    assert messages[0] == messages[1]
    assert messages[2] == messages[3]
    assert {code for code, _ in messages} == {"not_found"}
    assert refused(bench, "rows", 1, "day", endpoint="nowhere").code == "not_found"
    assert refused(bench, "rows", 1, "day", key="key_nobody").code == "not_found"


NO_LIMITS: list[tuple[str, float, str, dict[str, object]]] = [
    ("requests", 1.5, "day", {}),
    ("requests", -1, "day", {}),
    ("requests", float("nan"), "day", {}),
    ("requests", float("inf"), "day", {}),
    ("requests", 1e19, "day", {}),
    ("requests", 5, "", {}),
    ("requests", 5, "hour", {}),
    ("requests", 5, "day", {"burst": 3.0}),
    ("spend", 1e-10, "day", {}),
    ("money", 5, "day", {}),
    ("rate", 0, "", {}),
    ("rate", 0.0001, "", {}),
    ("rate", 5, "day", {}),
    ("rate", 5, "", {"burst": 0.0}),
    ("rate", 5, "", {"burst": 1.5}),
    ("rate", 5, "", {"burst": float("nan")}),
    ("concurrency", 0, "", {}),
    ("storage", 5, "", {"endpoint": "wine"}),
    ("jobs", 5, "month", {}),
    ("cores", 5, "", {}),
    ("rate", 1, "", {"burst": 1e9}),
]


def test_what_is_no_limit_is_refused(bench: Bench) -> None:
    for metric, amount, period, more in NO_LIMITS:
        assert refused(bench, metric, amount, period, **more).code == "invalid", (metric, amount)


def test_amounts_are_exact(bench: Bench) -> None:
    for written, kept in ((0.1, 10**8), (4.35, 4_350_000_000), (1e6, 10**15)):
        assert units.units("money", written) == kept
        assert units.shown("money", kept) == written
    assert units.spelled("money", 5_500_000_000, "month") == "5.5 of the currency a month"
    assert units.spelled("training", 36_000 * 10**9, "day") == "36,000 seconds a day"


def test_what_is_used_held_and_left_is_shown(bench: Bench) -> None:
    requests = bench.limit("requests", 100, "day")
    bench.limit("storage", 1000)
    bench.limit("rate", 5)
    bench.ask("m1", requests, 30)
    bench.report("m1", requests=10)
    with bench.db.read() as tx:
        found = service.listing(tx, INSTALLATION, "acme", {"storage": lambda _tx, _tenant: 300})
    by_metric = {one.metric: one for one in found}
    one = by_metric["requests"]
    assert (one.used, one.held, one.left) == (10, 20, 70)
    assert one.resets == spans.span("day", spans.today()).end
    assert (by_metric["storage"].used, by_metric["storage"].left) == (300, 700)
    assert by_metric["rate"].used is None


def test_a_tenant_has_not_more_limits_than_it_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MOST", 2)
    bench.limit("rows", 1, "day")
    bench.limit("rows", 1, "month")
    assert refused(bench, "requests", 1, "month").code == "invalid"


def test_months_have_their_days() -> None:
    assert spans.span("month", "2028-02-10")[:2] == ("2028-02-01", "2028-02-29")
    assert spans.span("month", "2026-12-31") == ("2026-12-01", "2026-12-31", 1798761600.0)
    assert spans.span("day", "2026-11-21")[:2] == ("2026-11-21", "2026-11-21")
    assert [periods.is_day(text) for text in ("2026-02-28", "2026-02-29", "26-1-1", "")] == [
        True, False, False, False,
    ]  # fmt: skip


def test_who_may_not_see_tenants_sees_no_limits_of_theirs(bench: Bench) -> None:
    bench.limit("requests", 500, "day")
    developer = Principal("default", "key_dev", ROLES["developer"])
    said = set()
    for tenant in ("acme", "nobody"):
        with pytest.raises(TapsterError) as caught, bench.db.read() as tx:
            service.listing(tx, developer, tenant, {})
        said.add((caught.value.code, caught.value.message.replace(tenant, "T")))
    assert said == {("not_found", "there is no tenant 'T'")}
    with bench.db.read() as tx:
        assert service.listing(tx, developer, "", {}) == []
    auditor = Principal("default", "key_aud", ROLES["auditor"])
    assert shown(bench, auditor) == ["requests 500 day default"]
