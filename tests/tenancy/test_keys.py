"""API keys: scope, life, rotation, revocation, and what the data plane is told of them."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tapster.contract.errors import TapsterError
from tapster.core.crypto import key_digest
from tapster.tenancy import service
from tapster.tenancy.keys import service as keys
from tapster.tenancy.keys import store
from tests.tenancy.people import holder, who


def _granted(tx: Connection, secret: str) -> Any:
    found = [grant for grant in service.grants(tx) if grant.digest == key_digest(secret)]
    return found[0] if found else None


def test_a_key_is_shown_once_and_kept_as_a_digest(tx: Connection) -> None:
    made = keys.make(tx, who(tenant="acme"), role="consumer", endpoints=["churn"], name="shop")
    assert made.key.startswith("tap_")
    assert made.key.startswith(made.prefix)
    assert len(made.prefix) == 12
    rows = tx.execute(select(store.keys).where(store.keys.c.tenant == "acme")).all()
    assert made.key not in repr(rows)
    assert keys.show(tx, "acme", made.id).key == ""
    assert keys.listing(tx, "other") == []
    caller = service.authenticate(tx, made.key)
    assert caller is not None
    assert caller.tenant == "acme"
    assert caller.rights == {"predict"}
    assert caller.endpoints == {"churn"}
    grant = _granted(tx, made.key)
    assert (grant.id, grant.rights, grant.endpoints) == (made.id, ("predict",), ("churn",))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock forward by so many seconds."""
    clock = time.time

    def set_forward(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: clock() + seconds)

    return set_forward


def test_a_key_ends_with_its_time(tx: Connection, later: Callable[[float], None]) -> None:
    made = keys.make(tx, who(), role="consumer", expires_in=60)
    assert service.authenticate(tx, made.key) is not None
    later(61)
    assert service.authenticate(tx, made.key) is None
    assert _granted(tx, made.key) is None
    assert keys.show(tx, "default", made.id).status == "expired"
    for seconds in (0.0, -1.0, 1e12, float("nan"), float("inf")):
        with pytest.raises(TapsterError) as caught:
            keys.make(tx, who(), role="consumer", expires_in=seconds)
        assert caught.value.field == "expires_in"


def test_rotation_with_and_without_overlap(tx: Connection, later: Callable[[float], None]) -> None:
    old = keys.make(tx, who(), role="developer", name="ci")
    new = keys.rotate(tx, who(), old.id, overlap=60)
    assert (new.id, new.name, new.rights) == (old.id, "ci", old.rights)
    assert new.key != old.key
    assert [service.authenticate(tx, each.key) is None for each in (old, new)] == [False, False]
    told = list(service.grants(tx, [old.id]))
    assert {grant.digest for grant in told} == {key_digest(each.key) for each in (old, new)}
    ends = {grant.digest: grant.expires for grant in told}
    assert ends[key_digest(new.key)] is None
    assert (ends[key_digest(old.key)] or 0) <= time.time() + 60
    later(61)
    assert service.authenticate(tx, old.key) is None
    assert _granted(tx, old.key) is None
    last = keys.rotate(tx, who(), old.id)
    assert [service.authenticate(tx, each.key) is None for each in (new, last)] == [True, False]


def test_an_overlap_does_not_outlive_the_key(
    tx: Connection, later: Callable[[float], None]
) -> None:
    old = keys.make(tx, who(), role="consumer", expires_in=50)
    keys.rotate(tx, who(), old.id, overlap=100, expires_in=100)
    later(51)
    assert service.authenticate(tx, old.key) is None


def test_an_overlap_does_not_outlive_an_end_that_is_set_with_it(tx: Connection) -> None:
    """Data planes let a secret in until the end that they were told of."""
    old = keys.make(tx, who(), role="consumer")
    new = keys.rotate(tx, who(), old.id, overlap=1000, expires_in=10)
    for each in (old, new):
        assert _granted(tx, each.key).expires <= time.time() + 10


def test_revocation_is_for_good_and_ends_both_forms(tx: Connection) -> None:
    old = keys.make(tx, who(), role="consumer")
    new = keys.rotate(tx, who(), old.id, overlap=100)
    before = service.revision(tx)
    assert keys.revoke(tx, "default", old.id).status == "revoked"
    assert service.revision(tx) == before + 1
    keys.revoke(tx, "default", old.id)
    assert service.revision(tx) == before + 1
    assert [service.authenticate(tx, each.key) for each in (old, new)] == [None, None]
    with pytest.raises(TapsterError) as caught:
        keys.rotate(tx, who(), old.id)
    assert caught.value.code == "conflict"
    with pytest.raises(TapsterError) as caught:
        keys.revoke(tx, "acme", old.id)
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("scope", "code", "field"),
    [
        ({}, "invalid", "role"),
        ({"role": "consumer", "rights": ["predict"]}, "invalid", "role"),
        ({"role": "nothing"}, "invalid", "role"),
        ({"rights": ["models:eat"]}, "invalid", "rights"),
        ({"role": "owner"}, "forbidden", "rights"),
        ({"rights": ["*"]}, "forbidden", "rights"),
        ({"rights": ["tenants:write"]}, "forbidden", "rights"),
        ({"role": "consumer", "endpoints": ["a b"]}, "invalid", "endpoints"),
        ({"role": "consumer", "endpoints": ["../x"]}, "invalid", "endpoints"),
        ({"role": "consumer", "reach": ["acme"]}, "forbidden", "tenants"),
        ({"role": "consumer", "reach": ["*"]}, "forbidden", "tenants"),
        ({"role": "consumer", "name": "x" * 101}, "invalid", "name"),
    ],
)
def test_what_an_admin_cannot_make(
    tx: Connection, scope: dict[str, Any], code: str, field: str
) -> None:
    with pytest.raises(TapsterError) as caught:
        keys.make(tx, who("admin"), **scope)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_only_the_installations_keys_act_for_tenants_and_only_those_given_on(
    tx: Connection,
) -> None:
    made = keys.make(tx, who(tenants=["*"]), role="operator", reach=["acme"])
    caller = service.authenticate(tx, made.key)
    assert caller is not None
    assert caller.tenants == {"acme"}
    assert keys.make(tx, who(tenants=["acme"]), role="operator", reach=["acme"]).tenants == ["acme"]
    for caller, reach in (
        (who(tenants=["acme"]), ["other"]),
        (who(tenants=["acme"]), ["*"]),
        (who(tenant="acme", tenants=["*"]), ["acme"]),
    ):
        with pytest.raises(TapsterError) as caught:
            keys.make(tx, caller, role="operator", reach=reach)
        assert caught.value.code == "forbidden"
    with pytest.raises(TapsterError) as caught:
        keys.make(tx, who(tenants=["*"]), role="operator", reach=["nowhere"])
    assert caught.value.code == "not_found"


def test_who_holds_less_cannot_take_a_key_over_by_rotating_it(tx: Connection) -> None:
    strong = keys.make(tx, who(tenants=["*"]), role="owner", reach=["*"])
    far = keys.make(tx, who(tenants=["*"]), role="consumer", reach=["acme"])
    for key in (strong, far):
        with pytest.raises(TapsterError) as caught:
            keys.rotate(tx, holder("keys:write", "predict"), key.id)
        assert caught.value.code == "forbidden"


def test_a_key_follows_its_role(tx: Connection) -> None:
    service.put_role(tx, who(tenant="acme"), "labeller", ["datasets:read"], "")
    made = keys.make(tx, who(tenant="acme"), role="labeller")
    assert _granted(tx, made.key).rights == ("datasets:read",)
    before = service.revision(tx)
    service.put_role(tx, who(tenant="acme"), "labeller", ["predict"], "")
    assert service.revision(tx) == before + 1
    caller = service.authenticate(tx, made.key)
    assert caller is not None
    assert caller.rights == {"predict"}
    assert _granted(tx, made.key).rights == ("predict",)
    with pytest.raises(TapsterError) as caught:
        service.remove_role(tx, who(tenant="acme"), "labeller")
    assert caught.value.code == "conflict"
    keys.revoke(tx, "acme", made.id)
    service.remove_role(tx, who(tenant="acme"), "labeller")


def test_last_use_is_remembered_and_never_goes_back(tx: Connection) -> None:
    made = keys.make(tx, who(), role="consumer")
    service.used(tx, {made.id: 1000.0})
    service.used(tx, {made.id: 900.0, "ses_nobodys": 1.0, "key_nobodys": 1.0})
    assert keys.show(tx, "default", made.id).last_used == 1000.0
