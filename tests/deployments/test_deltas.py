"""What of the plan is sent again when something has changed, and when all of it is."""

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import PlanDelta
from tapster.contract.snapshots import pack, unpack
from tapster.core.crypto import key_digest
from tapster.core.db import Database
from tapster.deployments import deltas, planning, service, store
from tapster.registry import service as registry
from tapster.registry.store import versions
from tapster.tenancy import revisions
from tapster.tenancy import service as tenancy
from tapster.tenancy import store as history
from tapster.tenancy.datakeys import store as datakeys
from tapster.tenancy.keys import service as keys
from tapster.tenancy.limits import service as limits
from tapster.tenancy.limits.service import Wanted
from tapster.tenancy.tenants import service as tenants
from tests.deployments.conftest import DataPlane, digest, live, register, regression

ADMIN = Principal("default", "key_admin", frozenset({"*"}))


class Agent:
    """Holds a plan, and asks for what is new."""

    def __init__(self, tx: Connection) -> None:
        self._tx = tx
        self.number = tenancy.revision(tx)
        self.mark = revisions.mark(tx, self.number)

    def ask(self) -> PlanDelta | None:
        found = deltas.delta(self._tx, "key", self.number, self.mark)
        if found is None:
            return None
        delta = msgspec.json.decode(found, type=PlanDelta)
        assert (delta.after, delta.base) == (self.number, self.mark)
        self.number, self.mark = delta.number, delta.mark
        return delta

    def told(self) -> PlanDelta:
        delta = self.ask()
        assert delta is not None
        return delta


@pytest.fixture
def agent(tx: Connection, plane: DataPlane) -> Agent:
    """One that knows the plan by which endpoint e serves m@1."""
    live(tx, plane, "m@1")
    return Agent(tx)


def parts(delta: PlanDelta) -> set[str]:
    """What a delta has."""
    return set(msgspec.to_builtins(delta)) - {"after", "base", "number", "mark"}


def test_a_key_that_is_made_rotated_and_revoked(tx: Connection, agent: Agent) -> None:
    made = keys.make(tx, ADMIN, role="consumer", endpoints=["e"])
    delta = agent.told()
    assert parts(delta) == {"keys"}
    [grant] = delta.keys
    assert (grant.id, grant.digest) == (made.id, key_digest(made.key))
    assert (grant.endpoints, grant.rights) == (("e",), ("predict",))
    second = keys.rotate(tx, ADMIN, made.id, overlap=60.0)
    assert {each.digest for each in agent.told().keys} == {
        key_digest(made.key),
        key_digest(second.key),
    }
    keys.revoke(tx, "default", made.id)
    delta = agent.told()
    assert (parts(delta), delta.gone_keys) == ({"gone_keys"}, (made.id,))


def test_a_tenant_that_is_limited_suspended_and_resumed(tx: Connection, agent: Agent) -> None:
    tenants.add(tx, "acme")
    wanted = [Wanted("rows", 5.0, "day")]
    limits.put(tx, ADMIN, "acme", wanted, service.callee)
    delta = agent.told()
    assert parts(delta) == {"tenants"}
    assert [(each.tenant, each.suspended) for each in delta.tenants] == [("acme", False)]
    assert [limit.amount for limit in delta.tenants[0].limits] == [5]
    tenants.suspend(tx, "acme")
    [standing] = agent.told().tenants
    assert (standing.suspended, len(standing.limits)) == (True, 1)
    tenants.resume(tx, "acme")
    assert agent.told().tenants == delta.tenants
    limits.put(tx, ADMIN, "acme", [Wanted("rows", None, "day")], service.callee)
    assert agent.told().gone_tenants == ("acme",)


def test_a_tenant_that_weighs_more(tx: Connection, agent: Agent) -> None:
    tenants.add(tx, "acme")
    assert tenants.weigh(tx, "acme", 2.5).weight == 2.5
    [standing] = agent.told().tenants
    assert (standing.tenant, standing.weight, standing.suspended) == ("acme", 2.5, False)
    for weight in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(TapsterError) as caught:
            tenants.weigh(tx, "acme", weight)
        assert caught.value.field == "weight"
    tenants.weigh(tx, "acme", 1.0)
    assert agent.told().gone_tenants == ("acme",)


def test_keys_of_a_suspended_tenant_stay_in_the_plan(tx: Connection, agent: Agent) -> None:
    """So that its standing alone, in one delta, lets them out and in."""
    tenants.add(tx, "acme")
    made = keys.make(tx, Principal("acme", "x", frozenset({"*"})), role="consumer")
    tenants.suspend(tx, "acme")
    plan = service.plan(tx, "key")
    assert made.id in {each.id for each in plan.keys}
    assert [(each.tenant, each.suspended) for each in plan.tenants] == [("acme", True)]


def test_an_endpoint_that_is_prepared_switched_and_deleted(
    tx: Connection, plane: DataPlane, agent: Agent
) -> None:
    service.deploy(tx, "default", "e", "m@2")
    delta = agent.told()
    [need] = delta.needs
    assert set(need.packages) == {digest("m@1"), digest("m@2")}
    assert [v.version for v in delta.endpoints[0].variants] == [1]
    plane.settle(2)
    delta = agent.told()
    assert [v.version for v in delta.endpoints[0].variants] == [2]
    assert delta.needs[0].packages == (digest("m@2"),)
    identifier = delta.endpoints[0].id
    service.delete(tx, "default", "e")
    delta = agent.told()
    assert (parts(delta), delta.gone_endpoints) == ({"gone_endpoints"}, (identifier,))


def test_an_endpoint_that_has_never_served_is_only_prepared(tx: Connection, agent: Agent) -> None:
    service.deploy(tx, "default", "new", "m@3")
    delta = agent.told()
    assert delta.endpoints == ()
    assert [each.packages for each in delta.needs] == [(digest("m@3"),)]
    assert [each.digest for each in delta.packages] == [digest("m@3")]


def test_an_alias_changes_the_endpoints_of_its_model(tx: Connection, agent: Agent) -> None:
    registry.set_alias(tx, "default", "m@1", "best")
    delta = agent.told()
    assert [(each.name, each.labels) for each in delta.endpoints] == [("e", {"best": 1})]
    assert "keys" not in parts(delta)


def test_deltas_in_a_row_make_the_whole_plan(
    tx: Connection, plane: DataPlane, agent: Agent
) -> None:
    """Whatever happens, page after page, ends at what a whole plan says."""
    held: dict[str, dict[str, Any]] = {"keys": {}, "endpoints": {}, "tenants": {}}
    start = service.plan(tx, "key")
    held["keys"] = {each.id: each for each in start.keys}
    held["endpoints"] = {each.id: each for each in start.endpoints}
    for number in range(450):
        made = keys.make(tx, ADMIN, role="consumer")
        if number % 3 == 0:
            keys.revoke(tx, "default", made.id)
        if number % 50 == 0:
            service.set_options(tx, "default", "e", {"cache": number / 10.0})
            tenants.add(tx, f"t{number}")
    tenants.suspend(tx, "t50")
    pages = 0
    while agent.number < tenancy.revision(tx):
        delta = agent.told()
        pages += 1
        assert len(delta.keys) + len(delta.gone_keys) <= deltas.MOST
        for name, key in (("keys", "id"), ("endpoints", "id"), ("tenants", "tenant")):
            for gone in getattr(delta, f"gone_{name}"):
                held[name].pop(gone, None)
            held[name] |= {getattr(each, key): each for each in getattr(delta, name)}
    plan = service.plan(tx, "key")
    assert pages > 2
    assert held["keys"] == {each.id: each for each in plan.keys}
    assert held["endpoints"] == {each.id: each for each in plan.endpoints}
    assert held["tenants"] == {each.tenant: each for each in plan.tenants}
    assert (agent.number, agent.mark) == (plan.number, plan.mark)
    assert unpack(pack(plan)).plan.endpoints == plan.endpoints


@pytest.mark.parametrize("after", ["never", "ahead", "other", "unmarked", "far"])
def test_who_cannot_go_on_gets_the_whole_plan(
    tx: Connection, agent: Agent, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    keys.make(tx, ADMIN, role="consumer")
    monkeypatch.setattr(deltas, "FAR", 0 if after == "far" else deltas.FAR)
    agent.number = {"never": -1, "ahead": agent.number + 100}.get(after, agent.number)
    agent.mark = {"other": "0" * 16, "unmarked": ""}.get(after, agent.mark)
    assert agent.ask() is None
    assert deltas.news(tx, agent.number, agent.mark)


def test_a_change_that_does_not_say_what_it_is_sends_everything(
    tx: Connection, agent: Agent
) -> None:
    revisions.revise(tx, "default", "something")
    assert agent.ask() is None
    agent = Agent(tx)
    revisions.revise(tx, "default", "a thing of a later release", kind="later", ref="x")
    assert agent.ask() is None


def test_revisions_of_an_earlier_release_have_no_mark(tx: Connection, agent: Agent) -> None:
    tx.execute(update(history.revisions).values(mark="", kind=""))
    agent = Agent(tx)
    assert agent.mark == ""
    assert not deltas.news(tx, agent.number, "")
    keys.make(tx, ADMIN, role="consumer")
    assert agent.ask() is None


def test_old_revisions_are_forgotten(tx: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "KEPT", 10)
    while revisions.revise(tx, "default", "x", kind="key", ref="k") % 1000:
        pass
    newest = tenancy.revision(tx)
    kept = [each.number for each in revisions.history(tx, 0, 10_000)]
    assert kept == list(range(newest - 9, newest + 1))


def test_a_key_that_has_expired_is_not_in_the_plan(tx: Connection, agent: Agent) -> None:
    made = keys.make(tx, ADMIN, role="consumer", expires_in=0.01)
    time.sleep(0.02)
    assert agent.told().gone_keys == (made.id,)
    assert made.id not in {each.id for each in service.plan(tx, "key").keys}
    assert planning.without_keys(tx, "key").keys == ()


def test_a_package_that_goes_while_others_have_it_too(tx: Connection, agent: Agent) -> None:
    """Two tenants may have one package: whoever knew it by the one's must not go on doing so."""
    for ref in ("m@1", "own@1"):
        register(tx, ref, regression("x"), "zoo")
    same = (versions.c.tenant == "zoo", versions.c.model == "m")
    tx.execute(update(versions).where(*same).values(digest=digest("m@1")))
    assert registry.delete(tx, "zoo", "own", service.in_use, service.lent)
    assert not deltas.news(tx, agent.number, agent.mark), "nobody else has it"
    assert registry.delete(tx, "zoo", "m", service.in_use, service.lent)
    assert deltas.news(tx, agent.number, agent.mark)
    assert agent.ask() is None, "only the whole plan says whose is left"
    [package] = planning.plan(tx, "key").packages
    assert package.key.startswith("default/packages/")


def test_a_package_is_read_where_it_opens_while_another_who_has_it_is_erased(
    tx: Connection, plane: DataPlane
) -> None:
    tenants.add(tx, "zoo")
    register(tx, "m@1", regression("a", "b", "c"), "zoo")
    same = (versions.c.tenant == "zoo", versions.c.model == "m")
    tx.execute(update(versions).where(*same).values(digest=digest("m@1")))
    for tenant in ("default", "zoo"):
        service.deploy(tx, tenant, "e", "m@1")
    plane.settle(2)
    datakeys.add(tx, "default", "dk_1", "dk_1:master:wrapped", "master")
    rows = store.everywhere(tx)
    for each in (rows, rows[::-1]):
        [package] = planning.part(tx, each, "key").packages
        assert package.key.startswith("default/packages/")
        assert package.secret == "dk_1:master:wrapped"


def test_a_whole_plan_is_never_newer_than_what_it_tells(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL shows each statement what is committed by then: changes come in between."""
    db, read = Database(postgres_url), planning.part
    db.migrate()

    def part(*values: Any) -> planning.Part:
        found = read(*values)
        with db.write() as tx:
            tenancy.revise(tx, "default", "another change", kind="endpoint", ref="e")
        return found

    monkeypatch.setattr(planning, "part", part)
    with db.read() as tx:
        before = tenancy.revision(tx)
        assert planning.without_keys(tx, "key").number == before, "the change is yet to be told"
        assert tenancy.revision(tx) > before
    db.close()
