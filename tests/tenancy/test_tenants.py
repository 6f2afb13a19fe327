"""Tenants: names, suspension, what becomes of keys and members."""

import pytest
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.tenancy import service
from tapster.tenancy.keys import service as keys
from tapster.tenancy.members import service as members
from tapster.tenancy.tenants import service as tenants
from tests.tenancy.people import who


@pytest.mark.parametrize("name", ["a", "acme-2", "0", "a-b-c", "x" * 63])
def test_names_that_tenants_have(tx: Connection, name: str) -> None:
    assert tenants.add(tx, name, "Words").name == name
    assert tenants.show(tx, name).status == "active"
    with pytest.raises(TapsterError) as caught:
        tenants.add(tx, name)
    assert caught.value.code == "conflict"


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a--b", "A", "a_b", "a.b", "é", "a b", "x" * 64, "../x", "a\n", "a\0", "*"],
)
def test_names_that_no_tenant_has(tx: Connection, name: str) -> None:
    with pytest.raises(TapsterError) as caught:
        tenants.add(tx, name)
    assert (caught.value.code, caught.value.field) == ("invalid", "name")
    with pytest.raises(TapsterError) as caught:
        tenants.show(tx, name)
    assert caught.value.code == "not_found"


def test_a_suspended_tenant_is_turned_away_and_comes_back_as_it_was(tx: Connection) -> None:
    owner = who(tenant="acme")
    secret = keys.make(tx, owner, role="consumer").key
    member = members.add(tx, owner, "ann", "owner")
    session = service.sign_in(tx, "acme", member.id, how="password", address="", seconds=60)
    assert service.authenticate(tx, session.token) is not None
    before = service.revision(tx)
    service.suspend_tenant(tx, "acme")
    assert service.revision(tx) > before
    assert service.authenticate(tx, secret) is None
    assert service.authenticate(tx, session.token) is None
    told = [service.suspended(tx, each) for each in (secret, session.token, secret + "x", "")]
    assert told == ["acme", "", "", ""]
    assert members.signing_in(tx, "acme", "ann") is None
    assert session.id not in {grant.id for grant in service.grants(tx)}
    with pytest.raises(TapsterError):
        service.sign_in(tx, "acme", member.id, how="password", address="", seconds=60)
    tenants.resume(tx, "acme")
    assert service.authenticate(tx, secret) is not None
    assert service.suspended(tx, secret) == ""
    assert service.authenticate(tx, session.token) is None, "its sessions have ended"
    assert members.signing_in(tx, "acme", "ann") is not None


def test_the_installations_own_tenant_stays(tx: Connection) -> None:
    with pytest.raises(TapsterError) as caught:
        service.suspend_tenant(tx, "default")
    assert caught.value.code == "conflict"


def test_who_acts_for_whom(tx: Connection) -> None:
    service.acting_for(tx, who(tenants=["*"]), "acme")
    service.acting_for(tx, who(tenants=["acme"]), "acme")
    refused = [
        (who(), "acme"),
        (who(tenants=["acme"]), "other"),
        (who(tenant="other", tenants=["*"]), "acme"),
    ]
    for caller, tenant in refused:
        with pytest.raises(TapsterError) as caught:
            service.acting_for(tx, caller, tenant)
        told = caught.value.message.replace(tenant, "nowhere")
        with pytest.raises(TapsterError) as caught:
            service.acting_for(tx, who(tenants=["*"]), "nowhere")
        assert (caught.value.code, caught.value.message) == ("not_found", told)
