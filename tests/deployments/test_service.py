"""A deployment's two phases, decided by what workers report."""

import time
from dataclasses import replace

import pytest
from sqlalchemy import Connection, update

from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError
from tapster.contract.plan import PackageState, WorkerState
from tapster.deployments import service, settling, store
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy
from tests.deployments.conftest import DataPlane, digest, live, shown


def _versions(endpoint: Endpoint) -> tuple[int | None, ...]:
    held = (endpoint.serving, endpoint.pending, endpoint.previous)
    return tuple(None if one is None else one["version"] for one in held)


def test_traffic_moves_only_when_every_worker_is_ready(tx: Connection) -> None:
    plane = DataPlane(tx, workers=2)
    service.deploy(tx, "default", "e", "m@1")
    assert [e.name for e in service.plan(tx, "key").endpoints] == []
    assert [p.digest for p in service.plan(tx, "key").packages] == [digest("m@1")]
    plane.silent = True
    assert not plane.settle()
    plane.silent, plane.count = False, 1
    assert not service.settle(tx, plane, 2)
    plane.count = 2
    assert plane.settle()
    assert shown(tx).status == "loading"
    assert [e.name for e in service.plan(tx, "key").endpoints] == ["e"]
    plane.lag = 1
    assert not plane.settle(), "these have not applied the switch yet"
    plane.lag = 0
    assert plane.settle()
    assert shown(tx).status == "live"
    assert not service.unsettled(tx, plane)


def test_workers_of_another_machine_are_waited_for_too(tx: Connection) -> None:
    """That of control has one worker, which is what control expects."""
    away: list[WorkerState] = []

    class Machines(DataPlane):
        def workers(self) -> list[WorkerState]:
            return [*super().workers(), *away]

    plane = Machines(tx)
    live(tx, plane, "m@1")
    [here] = plane.workers()
    away = [here]
    service.deploy(tx, "default", "e", "m@2")
    assert not plane.settle(), "the other machine has not heard of it"
    ready = PackageState(digest("m@1"), "ready")
    broken = PackageState(digest("m@2"), "failed", "the answers differ")
    away = [WorkerState(0, 2, tenancy.revision(tx), (ready, broken))]
    assert plane.settle()
    assert _versions(shown(tx)) == (1, None, None)
    service.deploy(tx, "default", "e", "m@3")
    away = [WorkerState(0, 2, tenancy.revision(tx), (ready, PackageState(digest("m@3"), "ready")))]
    assert plane.settle()
    assert not plane.settle(), "it has not switched yet"
    away = [WorkerState(0, 2, tenancy.revision(tx), away[0].packages)]
    assert plane.settle()
    assert (shown(tx).status, _versions(shown(tx))[0]) == ("live", 3)


def test_one_refusal_leaves_the_old_version_serving(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    service.deploy(tx, "default", "e", "m@2")
    plane.failed[digest("m@2")] = "the answers differ"
    assert plane.settle()
    endpoint = shown(tx)
    assert (endpoint.status, _versions(endpoint)) == ("live", (1, None, None))
    assert endpoint.error is not None
    assert endpoint.error["message"] == "m@2 was refused: the answers differ"
    assert "m@1 serves on" in endpoint.error["hint"]
    assert [p.digest for p in service.plan(tx, "key").packages] == [digest("m@1")]


def test_a_report_of_an_earlier_try_does_not_count(tx: Connection, plane: DataPlane) -> None:
    service.deploy(tx, "default", "e", "m@1")
    plane.lag, plane.failed[digest("m@1")] = 1, "an earlier try"
    assert not plane.settle()
    assert shown(tx).status == "loading"


def test_a_first_deployment_that_fails_serves_nothing(tx: Connection, plane: DataPlane) -> None:
    service.deploy(tx, "default", "e", "m@1")
    plane.failed[digest("m@1")] = "the answers differ"
    plane.settle()
    endpoint = shown(tx)
    assert (endpoint.status, _versions(endpoint)) == ("failed", (None, None, None))


def test_a_data_plane_that_never_answers_is_not_waited_for_for_ever(
    tx: Connection, plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.deploy(tx, "default", "e", "m@1")
    monkeypatch.setattr(settling, "PATIENCE", -1.0)
    plane.silent = True
    assert plane.settle()
    error = shown(tx).error
    assert error is not None
    assert "did not load it in time" in error["message"]


def test_a_deployment_outlives_an_outage_of_the_control_plane(
    tx: Connection, plane: DataPlane
) -> None:
    service.deploy(tx, "default", "e", "m@1")
    long_ago = time.time() - 10 * settling.PATIENCE
    tx.execute(update(store.endpoints).values(updated=long_ago))
    plane.silent = True
    assert not service.settle(tx, plane, 1, since=time.time())
    assert shown(tx).status == "loading"
    assert service.settle(tx, plane, 1, since=long_ago)
    assert shown(tx).status == "failed"


def test_rollback_swaps_and_swaps_back(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError, match="served nothing before"):
        service.rollback(tx, "default", "e")
    assert _versions(live(tx, plane, "m@2")) == (2, None, 1)
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert _versions(shown(tx)) == (1, None, 2)


def test_what_was_deleted_cannot_be_rolled_back_to(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    live(tx, plane, "m@2")
    registry.delete(tx, "default", "m@1", service.in_use, service.lent)
    with pytest.raises(TapsterError, match="no version 1"):
        service.rollback(tx, "default", "e")


def test_deploying_while_deploying_is_a_conflict(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    with pytest.raises(TapsterError, match="still switching") as caught:
        service.deploy(tx, "default", "e", "m@2")
    assert caught.value.code == "conflict"


def test_an_alias_is_followed_once_and_not_after_a_refusal(
    tx: Connection, plane: DataPlane
) -> None:
    registry.set_alias(tx, "default", "m@1", "champion")
    live(tx, plane, "m:champion")
    assert not plane.settle()
    registry.set_alias(tx, "default", "m@2", "champion")
    assert plane.settle()
    assert _versions(shown(tx)) == (1, 2, None)
    plane.failed[digest("m@2")] = "the answers differ"
    plane.settle()
    assert not plane.settle(), "m@2 was refused a moment ago"
    registry.set_alias(tx, "default", "m@3", "champion")
    assert plane.settle()
    assert _versions(shown(tx)) == (1, 3, None)


def test_who_asks_by_an_alias_is_answered_while_it_is_followed(
    tx: Connection, plane: DataPlane
) -> None:
    def labels() -> dict[str, int]:
        return service.plan(tx, "own").endpoints[0].labels

    registry.set_alias(tx, "default", "m@1", "champion")
    live(tx, plane, "m:champion")
    registry.set_alias(tx, "default", "m@2", "champion")
    assert labels() == {"champion": 1}, "m@2 is not there yet"
    plane.settle(3)
    assert labels() == {"champion": 2}
    plane.failed[digest("m@3")] = "the answers differ"
    registry.set_alias(tx, "default", "m@3", "champion")
    plane.settle(3)
    assert labels() == {"champion": 2}, "it serves on"
    registry.unset_alias(tx, "default", "m", "champion")
    assert labels() == {}


def test_the_plan_carries_keys_labels_and_signers_and_no_secret(
    tx: Connection, plane: DataPlane
) -> None:
    registry.set_alias(tx, "default", "m@1", "stable")
    live(tx, plane, "m@1")
    plan = service.plan(tx, "own")
    assert plan.endpoints[0].labels == {"stable": 1}
    assert "own" in plan.signers
    assert [key.rights for key in plan.keys] == [("*",)]
    assert plan.number == tenancy.revision(tx)


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "x" * 101, "é"])
def test_a_name_that_cannot_be_one_is_refused(tx: Connection, name: str) -> None:
    with pytest.raises(TapsterError, match="cannot be an endpoint's name"):
        service.deploy(tx, "default", name, "m")


def test_unknown_things_are_not_found(tx: Connection) -> None:
    for reference in ("nothing", "m@9", "m:nobody"):
        with pytest.raises(TapsterError) as caught:
            service.deploy(tx, "default", "e", reference)
        assert caught.value.code == "not_found"
    for verb in (service.show, service.rollback, service.delete):
        with pytest.raises(TapsterError, match="there is no endpoint 'ghost'"):
            verb(tx, "default", "ghost")


def test_deleting_ends_the_traffic_and_frees_the_package(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    version = registry.resolve(tx, "default", "m@1")
    assert service.in_use(tx, "default", version) == ["e"]
    assert service.in_use(tx, "default", replace(version, model="copy")) == []
    service.delete(tx, "default", "e")
    assert service.in_use(tx, "default", version) == []
    assert service.plan(tx, "key").endpoints == ()
    assert store.everywhere(tx) == []


def test_endpoints_of_another_tenant_do_not_exist(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    assert service.listing(tx, "other") == []
    with pytest.raises(TapsterError, match="there is no endpoint"):
        service.show(tx, "other", "e")
