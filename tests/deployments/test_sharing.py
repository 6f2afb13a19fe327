"""Whom endpoints are shared with, what others call them, and what of that is in the plan."""

import pytest
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.deployments import deltas, service, store
from tapster.deployments.sharing import service as sharing
from tapster.tenancy import revisions
from tapster.tenancy import service as tenancy
from tapster.tenancy.shares import service as shares
from tapster.tenancy.tenants import service as tenants
from tests.deployments.conftest import DataPlane, live


@pytest.fixture(autouse=True)
def others(tx: Connection, plane: DataPlane) -> None:
    """Endpoint e of the tenant default is live, and there are tenants acme and zeta."""
    for name in ("acme", "zeta"):
        tenants.add(tx, name)
    live(tx, plane, "m@1")


def seen(tx: Connection, tenant: str) -> list[tuple[str, str]]:
    return [(endpoint.name, endpoint.tenant) for endpoint in service.listing(tx, tenant)]


def planned(tx: Connection) -> tuple[str, ...]:
    return service.plan(tx, "key").endpoints[0].shared


def test_who_it_is_shared_with_sees_it_and_nothing_of_it(tx: Connection) -> None:
    assert sharing.share(tx, "default", "e", ["acme"]) == ["acme"]
    assert seen(tx, "acme") == [("e", "default")]
    assert seen(tx, "zeta") == []
    offered = service.show(tx, "acme", "default--e")
    assert (offered.name, offered.status, offered.serving) == ("default--e", "live", None)
    assert (offered.traffic, offered.options, offered.shared) == ([], {}, [])
    assert service.show(tx, "default", "e").shared == ["acme"]
    assert service.listing(tx, "default")[0].shared == ["acme"]
    assert planned(tx) == ("acme",)


def test_it_is_withdrawn_from_some_or_from_all(tx: Connection) -> None:
    sharing.share(tx, "default", "e", ["acme", "zeta"])
    assert sharing.withdraw(tx, "default", "e", ["acme"]) == ["zeta"]
    assert seen(tx, "acme") == []
    for nobody in ("", "no such name"):
        with pytest.raises(TapsterError, match="cannot be the name of a tenant"):
            sharing.withdraw(tx, "default", "e", [nobody])
    assert sharing.withdraw(tx, "default", "e", []) == []
    assert planned(tx) == ()
    sharing.share(tx, "default", "e", ["*"])
    assert seen(tx, "zeta") == [("e", "default")]
    with pytest.raises(TapsterError, match="shared with all"):
        sharing.withdraw(tx, "default", "e", ["acme"])
    assert sharing.withdraw(tx, "default", "e", ["*"]) == []


def test_what_is_asked_twice_changes_the_plan_once(tx: Connection) -> None:
    sharing.share(tx, "default", "e", ["acme"])
    number = tenancy.revision(tx)
    assert sharing.share(tx, "default", "e", ["acme", "acme"]) == ["acme"]
    sharing.withdraw(tx, "default", "e", ["zeta"])
    assert tenancy.revision(tx) == number


def test_ones_own_comes_first_and_a_clash_is_called_by_its_owner(tx: Connection) -> None:
    sharing.share(tx, "default", "e", ["acme"])
    store.add(tx, "zeta", "e")
    sharing.share(tx, "zeta", "e", ["*"])
    assert seen(tx, "acme") == [("default--e", "default"), ("zeta--e", "zeta")]
    assert sharing.callee(tx, "acme", "e") is None
    assert sharing.callee(tx, "acme", "zeta--e") == ("zeta", "e")
    with pytest.raises(TapsterError, match="there is no endpoint 'e'"):
        service.show(tx, "acme", "e")
    store.add(tx, "acme", "e")
    assert sharing.callee(tx, "acme", "e") == ("acme", "e")
    assert sharing.callee(tx, "default", "e") == ("default", "e")
    assert seen(tx, "default") == [("e", "default"), ("zeta--e", "zeta")]


def test_only_the_owner_may_change_it(tx: Connection) -> None:
    sharing.share(tx, "default", "e", ["acme"])
    nowhere = refusal(lambda: service.set_options(tx, "zeta", "e", {"cache": 1.0}))
    for change in (
        lambda: service.set_options(tx, "acme", "e", {"cache": 1.0}),
        lambda: service.rollback(tx, "acme", "e"),
        lambda: service.delete(tx, "acme", "e"),
        lambda: sharing.share(tx, "acme", "e", ["zeta"]),
        lambda: sharing.withdraw(tx, "acme", "e", []),
    ):
        assert refusal(change) == nowhere


def test_a_share_goes_with_its_endpoint(tx: Connection) -> None:
    sharing.share(tx, "default", "e", ["*"])
    service.delete(tx, "default", "e")
    store.add(tx, "default", "e")
    assert sharing.consumers(tx, "default", "e") == []
    sharing.share(tx, "default", "e", ["acme"])
    shares.erase(tx, "acme")
    assert sharing.consumers(tx, "default", "e") == []


@pytest.mark.parametrize(
    ("consumers", "words"),
    [
        ([], "name a tenant"),
        (["default"], "yours already"),
        (["A b"], "cannot be the name"),
        (["a--b"], "cannot be the name"),
        (["../x"], "cannot be the name"),
        ([f"t{number}" for number in range(1001)], "at most 1000"),
    ],
)
def test_bad_consumers_are_refused(tx: Connection, consumers: list[str], words: str) -> None:
    with pytest.raises(TapsterError, match=words):
        sharing.share(tx, "default", "e", consumers)
    assert sharing.consumers(tx, "default", "e") == []


def test_a_name_with_two_hyphens_is_not_shared(tx: Connection) -> None:
    store.add(tx, "default", "acme--e")
    with pytest.raises(TapsterError, match="cannot be shared"):
        sharing.share(tx, "default", "acme--e", ["*"])


def test_a_share_is_one_delta_of_one_endpoint(tx: Connection) -> None:
    after = tenancy.revision(tx)
    mark = revisions.mark(tx, after)
    sharing.share(tx, "default", "e", ["acme"])
    found = deltas.delta(tx, "key", after, mark)
    assert found is not None
    assert b'"shared":["acme"]' in found
    assert b'"keys"' not in found


def refusal(change: object) -> tuple[str, str]:
    assert callable(change)
    with pytest.raises(TapsterError) as refused:
        change()
    return refused.value.code, refused.value.message
