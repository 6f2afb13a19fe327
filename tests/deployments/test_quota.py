"""How many versions a tenant may have behind its endpoints."""

import pytest
from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.errors import TapsterError
from tapster.deployments import service
from tapster.tenancy.limits import service as limits
from tapster.tenancy.limits.service import Wanted
from tests.deployments.conftest import DataPlane, live, shown

WHO = Principal(DEFAULT_TENANT, "key_admin", frozenset({"*"}))


def allow(tx: Connection, count: int) -> None:
    """Limit the versions behind endpoints."""
    limits.put(tx, WHO, "", [Wanted("models", count)], service.callee)


def test_a_version_more_than_there_may_be_is_refused(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    allow(tx, 1)
    live(tx, plane, "m@2")  # in its place
    before = shown(tx)
    with pytest.raises(TapsterError) as caught:
        service.deploy(tx, "default", "e", "m@3", 20)
    assert caught.value.code == "exhausted"
    assert "limit of models: 1 of 1 versions are used" in caught.value.message
    assert shown(tx) == before
    with pytest.raises(TapsterError):
        service.deploy(tx, "default", "another", "m@3")
    assert service.deploy(tx, "default", "another", "m@2").status == "loading"
    assert service.loaded(tx, "default") == 1


def test_who_has_too_many_already_may_still_go_back(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    live(tx, plane, "m@2", 50)
    allow(tx, 1)
    assert service.loaded(tx, "default") == 2
    service.set_weights(tx, "default", "e", {"m@1": 90, "m@2": 10})
    plane.settle(2)
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert service.deploy(tx, "default", "e", "m@3").status == "loading"
