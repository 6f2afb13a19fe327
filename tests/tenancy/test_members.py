"""Members and roles: nobody rises by what they do to others."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Connection, select

from tapster.contract.errors import TapsterError
from tapster.tenancy import service
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.members import service as members
from tapster.tenancy.roles import service as roles
from tapster.tenancy.sessions import service as sessions
from tapster.tenancy.sessions import store as session_rows
from tests.tenancy.people import holder, who


def _refused(code: str, field: str | None = None) -> "pytest.RaisesExc[TapsterError]":
    def fits(error: TapsterError) -> bool:
        return error.code == code and field in {None, error.field}

    return pytest.RaisesExc(TapsterError, check=fits)


def test_a_member_is_one_within_its_tenant(tx: Connection) -> None:
    ann = members.add(tx, who(tenant="acme"), "ann@acme.example", "admin")
    assert members.show(tx, "acme", "ann@acme.example") == ann
    assert members.show(tx, "acme", ann.id) == ann
    assert members.add(tx, who(tenant="other"), "ann@acme.example", "owner").id != ann.id
    with _refused("conflict", "name"):
        members.add(tx, who(tenant="acme"), "ann@acme.example", "consumer")
    with _refused("not_found"):
        members.show(tx, "default", ann.id)
    gone = service.remove_member(tx, who(tenant="acme"), "ann@acme.example")
    again = members.add(tx, who(tenant="acme"), "ann@acme.example", "consumer")
    assert again.id != gone.id


@pytest.mark.parametrize("name", ["", "Ann", "a b", "@x", "é", "a" * 201, "a\n", "a/b", "a'--"])
def test_names_that_no_member_has(tx: Connection, name: str) -> None:
    with _refused("invalid", "name"):
        members.add(tx, who(), name, "consumer")


def test_nobody_gives_or_takes_more_than_they_hold(tx: Connection) -> None:
    members.add(tx, who(tenants=["*"]), "boss", "owner")
    members.add(tx, who(), "dev", "developer")
    admin = who("admin")
    for attempt in (
        lambda: members.add(tx, admin, "mine", "owner"),
        lambda: service.change_member(tx, admin, "dev", role="owner"),
        lambda: service.change_member(tx, admin, "boss", role="consumer"),
        lambda: service.suspend_member(tx, admin, "boss"),
        lambda: service.remove_member(tx, admin, "boss"),
        lambda: service.set_password(tx, admin, "boss", "hash"),
        lambda: service.change_member(tx, admin, "dev", reach=["acme"]),
        lambda: service.put_role(tx, admin, "mine", ["tenants:write"], ""),
        lambda: service.put_role(tx, holder("roles:write"), "mine", ["predict"], ""),
    ):
        with _refused("forbidden"):
            attempt()
    assert service.change_member(tx, admin, "dev", role="operator").role == "operator"


def test_who_holds_less_cannot_weaken_a_role_either(tx: Connection) -> None:
    service.put_role(tx, who(), "keeper", ["tenants:write", "predict"], "")
    with _refused("forbidden"):
        service.put_role(tx, who("admin"), "keeper", ["predict"], "")


@pytest.mark.parametrize(
    ("name", "rights", "field"),
    [
        ("owner", ["predict"], "name"),
        ("auditor", ["predict"], "name"),
        ("Big", ["predict"], "name"),
        ("9", ["predict"], "name"),
        ("x" * 64, ["predict"], "name"),
        ("fine", [], "rights"),
        ("fine", ["everything"], "rights"),
        ("fine", ["predict"] * 201, "rights"),
    ],
)
def test_roles_that_cannot_be(tx: Connection, name: str, rights: list[str], field: str) -> None:
    with _refused("invalid", field):
        service.put_role(tx, who(), name, rights, "")


def test_a_role_in_use_stays_and_those_that_come_along_always(tx: Connection) -> None:
    service.put_role(tx, who(tenant="acme"), "labeller", ["datasets:read"], "labels")
    assert roles.show(tx, "acme", "labeller").custom
    with _refused("not_found"):
        roles.show(tx, "other", "labeller")
    with _refused("invalid", "role"):
        members.add(tx, who(tenant="other"), "ann", "labeller")
    members.add(tx, who(tenant="acme"), "ann", "labeller")
    with _refused("conflict"):
        service.remove_role(tx, who(tenant="acme"), "labeller")
    service.change_member(tx, who(tenant="acme"), "ann", role="consumer")
    service.remove_role(tx, who(tenant="acme"), "labeller")
    for name in ("labeller", "nothing"):
        with _refused("not_found"):
            service.remove_role(tx, who(tenant="acme"), name)
    with _refused("conflict"):
        service.remove_role(tx, who(tenant="acme"), "owner")


def test_the_last_owner_stays_one(tx: Connection) -> None:
    owner = who(tenant="acme")
    members.add(tx, owner, "ann", "owner")
    members.add(tx, owner, "dev", "developer")
    members.add(tx, who(tenant="other"), "ann", "owner")
    attempts: list[Callable[[], object]] = [
        lambda: service.change_member(tx, owner, "ann", role="developer"),
        lambda: service.suspend_member(tx, owner, "ann"),
        lambda: service.remove_member(tx, owner, "ann"),
    ]
    for attempt in attempts:
        with _refused("conflict"):
            attempt()
    assert service.change_member(tx, owner, "ann", role="owner").role == "owner"
    # An owner who is kept out does not count; one who is let in does.
    members.add(tx, owner, "bob", "owner")
    service.suspend_member(tx, owner, "bob")
    with _refused("conflict"):
        service.remove_member(tx, owner, "ann")
    members.set_status(tx, owner, "bob", "active")
    assert service.change_member(tx, owner, "ann", role="developer").role == "developer"
    for gone in ("ann", "dev"):
        service.remove_member(tx, owner, gone)
    with _refused("conflict"):
        service.remove_member(tx, owner, "bob")


def test_a_tenant_that_is_erased_may_lose_its_last_owner(tx: Connection) -> None:
    owner = who(tenant="acme")
    members.add(tx, owner, "ann", "owner")
    erasures.begin(tx, "acme", "era_1", "key_admin")
    assert service.remove_member(tx, owner, "ann").name == "ann"


def test_a_session_is_as_its_member_is_now(tx: Connection) -> None:
    owner = who(tenant="acme")
    ann = members.add(tx, owner, "ann", "developer")

    def enter() -> str:
        found = service.sign_in(tx, "acme", ann.id, how="password", address="::1", seconds=60)
        return found.token

    token = enter()
    caller = service.authenticate(tx, token)
    assert caller is not None
    assert (caller.member, caller.name, caller.tenant) == (ann.id, "ann", "acme")
    assert caller.may("models:write")
    service.change_member(tx, owner, "ann", role="consumer")
    caller = service.authenticate(tx, token)
    assert caller is not None
    assert not caller.may("models:write")
    service.suspend_member(tx, owner, "ann")
    assert service.authenticate(tx, token) is None
    members.set_status(tx, owner, "ann", "active")
    assert service.authenticate(tx, token) is None
    token = enter()
    service.set_password(tx, owner, "ann", "another hash")
    assert service.authenticate(tx, token) is None
    token = enter()
    service.remove_member(tx, owner, "ann")
    assert service.authenticate(tx, token) is None
    assert sessions.listing(tx, "acme") == []


def test_sessions_end_by_time_by_their_own_and_by_who_may(tx: Connection) -> None:
    owner = who(tenant="acme")
    ann = members.add(tx, owner, "ann", "consumer")
    bob = members.add(tx, owner, "bob", "consumer")
    short = service.sign_in(tx, "acme", ann.id, how="password", address="", seconds=-1)
    assert service.authenticate(tx, short.token) is None
    one, two = (
        service.sign_in(tx, "acme", ann.id, how="password", address="", seconds=60)
        for _ in range(2)
    )
    assert {grant.id for grant in sessions.grants(tx)} >= {one.id, two.id}
    other = who("consumer", "acme", member=bob.id)
    with _refused("not_found"):
        sessions.end(tx, other, one.id)
    with _refused("not_found"):
        sessions.end(tx, who(tenant="other"), one.id)
    sessions.end(tx, who("consumer", "acme", member=ann.id), one.id)
    assert service.authenticate(tx, one.token) is None
    assert service.authenticate(tx, two.token) is not None
    sessions.end(tx, owner, two.id)
    assert service.authenticate(tx, two.token) is None
    members.add(tx, owner, "boss", "owner")
    boss = members.show(tx, "acme", "boss")
    high = service.sign_in(tx, "acme", boss.id, how="password", address="", seconds=60)
    with _refused("forbidden"):
        sessions.end(tx, who("admin", "acme"), high.id)


def test_an_address_that_only_looks_like_a_members_is_nobodys(tx: Connection) -> None:
    kate = members.add(tx, who(tenant="acme"), "kate@acme.example", "owner")
    assert members.known_as(tx, "acme", "https://login.example 1", "\u212aate@acme.example") is None
    row = members.known_as(tx, "acme", "https://login.example 2", "Kate@ACME.example")
    assert row["id"] == kate.id


def test_a_former_password_is_no_use_once_there_is_another(tx: Connection) -> None:
    ann = members.add(tx, who(tenant="acme"), "ann", "owner", password="former")
    session = service.sign_in(
        tx, "acme", ann.id, how="password", address="", seconds=60, proved="former"
    )
    herself = replace(who(tenant="acme"), member=ann.id, key_id=session.id)
    service.set_password(tx, who(tenant="acme"), "ann", "another")
    for attempt in (
        lambda: service.sign_in(
            tx, "acme", ann.id, how="password", address="", seconds=60, proved="former"
        ),
        lambda: service.set_own_password(tx, herself, "mine", proved="former"),
    ):
        with pytest.raises(TapsterError):
            attempt()
    assert sessions.listing(tx, "acme") == []
    service.set_own_password(tx, herself, "mine", proved="another")


def test_a_sign_in_touches_no_other_tenants_sessions(tx: Connection) -> None:
    for tenant, seconds in (("acme", -1.0), ("other", 60.0)):
        ann = members.add(tx, who(tenant=tenant), "ann", "owner")
        service.sign_in(tx, tenant, ann.id, how="oidc", address="", seconds=seconds)
    left = list(tx.execute(select(session_rows.sessions.c.tenant)).scalars())
    assert sorted(left) == ["acme", "other"], "each one's record tells of its own members only"
