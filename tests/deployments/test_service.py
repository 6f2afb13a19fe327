"""A deployment's two phases, decided by what workers report."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from tapster.app import open_parts
from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest, Signature, Tolerance
from tapster.contract.plan import PackageState, WorkerState
from tapster.core.settings import load
from tapster.deployments import service, store
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Connection]:
    """A transaction over a database with three versions of model m."""
    parts = open_parts(load({}, home=tmp_path))
    with parts.db.write() as tx:
        for number in (1, 2, 3):
            manifest = Manifest(
                name="m",
                task="regression",
                runtime="onnx",
                model_file="model.onnx",
                signature=Signature((), ()),
                tolerance=Tolerance(0, 0),
                files={},
            )
            registry.register(
                tx,
                "default",
                model="m",
                digest=_digest(number),
                manifest=manifest,
                bytes=1,
                signer=parts.signer.public,
                job="",
            )
        yield tx
    parts.db.close()


def _digest(version: int) -> str:
    return str(version) * 64


def _worker(tx: Connection, version: int, state: str = "ready", index: int = 0) -> WorkerState:
    """A worker that has applied the newest plan."""
    return _lagging(tenancy.revision(tx), version, state, index)


def _lagging(plan: int, version: int, state: str = "ready", index: int = 0) -> WorkerState:
    package = PackageState(_digest(version), state, "the answers differ" * (state == "failed"))
    return WorkerState(index, 1, plan, (package,))


def _live(tx: Connection, version: int) -> Endpoint:
    service.deploy(tx, "default", "e", f"m@{version}")
    assert service.settle(tx, [_worker(tx, version)], 1)
    assert service.settle(tx, [_worker(tx, version)], 1)
    endpoint = service.show(tx, "default", "e")
    assert endpoint.status == "live"
    return endpoint


def _versions(endpoint: Endpoint) -> tuple[int | None, ...]:
    held = (endpoint.serving, endpoint.pending, endpoint.previous)
    return tuple(None if one is None else one["version"] for one in held)


def test_traffic_moves_only_when_every_worker_is_ready(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    assert [e.name for e in service.plan(tx, "key").endpoints] == []
    assert [p.digest for p in service.plan(tx, "key").packages] == [_digest(1)]
    assert not service.settle(tx, [], 2)
    assert not service.settle(tx, [_worker(tx, 1)], 2)
    assert not service.settle(tx, [_worker(tx, 1), _worker(tx, 1, "loading", 1)], 2)
    both = [_worker(tx, 1), _worker(tx, 1, index=1)]
    assert service.settle(tx, both, 2)
    assert service.show(tx, "default", "e").status == "loading"
    assert [e.name for e in service.plan(tx, "key").endpoints] == ["e"]
    assert not service.settle(tx, both, 2), "these have not applied the switch yet"
    assert service.settle(tx, [_worker(tx, 1), _worker(tx, 1, index=1)], 2)
    assert service.show(tx, "default", "e").status == "live"
    assert not service.unsettled(tx)


def test_one_refusal_leaves_the_old_version_serving(tx: Connection) -> None:
    _live(tx, 1)
    service.deploy(tx, "default", "e", "m@2")
    workers = [_worker(tx, 2), _worker(tx, 2, "failed", 1)]
    assert service.settle(tx, workers, 2)
    endpoint = service.show(tx, "default", "e")
    assert (endpoint.status, _versions(endpoint)) == ("live", (1, None, None))
    assert endpoint.error is not None
    assert "the answers differ" in endpoint.error["message"]
    assert "m@1 serves on" in endpoint.error["hint"]
    assert [p.digest for p in service.plan(tx, "key").packages] == [_digest(1)]


def test_a_report_of_an_earlier_try_does_not_count(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    stale = _lagging(tenancy.revision(tx) - 1, 1, "failed")
    assert not service.settle(tx, [stale], 1)
    assert service.show(tx, "default", "e").status == "loading"


def test_a_first_deployment_that_fails_serves_nothing(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    service.settle(tx, [_worker(tx, 1, "failed")], 1)
    endpoint = service.show(tx, "default", "e")
    assert (endpoint.status, _versions(endpoint)) == ("failed", (None, None, None))


def test_a_data_plane_that_never_answers_is_not_waited_for_for_ever(
    tx: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.deploy(tx, "default", "e", "m@1")
    monkeypatch.setattr(service, "PATIENCE", -1.0)
    assert service.settle(tx, [], 1)
    error = service.show(tx, "default", "e").error
    assert error is not None
    assert "did not load it in time" in error["message"]


def test_a_deployment_outlives_an_outage_of_the_control_plane(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    long_ago = time.time() - 10 * service.PATIENCE
    tx.execute(update(store.endpoints).values(updated=long_ago))
    assert not service.settle(tx, [], 1, since=time.time())
    assert service.show(tx, "default", "e").status == "loading"
    assert service.settle(tx, [], 1, since=long_ago)
    assert service.show(tx, "default", "e").status == "failed"


def test_rollback_swaps_and_swaps_back(tx: Connection) -> None:
    _live(tx, 1)
    with pytest.raises(TapsterError, match="served nothing before"):
        service.rollback(tx, "default", "e")
    assert _versions(_live(tx, 2)) == (2, None, 1)
    service.rollback(tx, "default", "e")
    for _ in range(2):
        service.settle(tx, [_worker(tx, 1)], 1)
    assert _versions(service.show(tx, "default", "e")) == (1, None, 2)


def test_what_was_deleted_cannot_be_rolled_back_to(tx: Connection) -> None:
    _live(tx, 1)
    _live(tx, 2)
    registry.delete(tx, "default", "m@1", service.in_use)
    with pytest.raises(TapsterError, match="no version 1"):
        service.rollback(tx, "default", "e")


def test_deploying_while_deploying_is_a_conflict(tx: Connection) -> None:
    service.deploy(tx, "default", "e", "m@1")
    with pytest.raises(TapsterError, match="still switching") as caught:
        service.deploy(tx, "default", "e", "m@2")
    assert caught.value.code == "conflict"


def test_an_alias_is_followed_once_and_not_after_a_refusal(tx: Connection) -> None:
    registry.set_alias(tx, "default", "m@1", "champion")
    service.deploy(tx, "default", "e", "m:champion")
    for _ in range(2):
        service.settle(tx, [_worker(tx, 1)], 1)
    assert not service.settle(tx, [_worker(tx, 1)], 1)
    registry.set_alias(tx, "default", "m@2", "champion")
    assert service.settle(tx, [_worker(tx, 1)], 1)
    assert _versions(service.show(tx, "default", "e")) == (1, 2, None)
    service.settle(tx, [_worker(tx, 2, "failed")], 1)
    assert not service.settle(tx, [_worker(tx, 1)], 1), "m@2 was refused a moment ago"
    registry.set_alias(tx, "default", "m@3", "champion")
    assert service.settle(tx, [_worker(tx, 1)], 1)
    assert _versions(service.show(tx, "default", "e")) == (1, 3, None)


def test_the_plan_carries_keys_labels_and_signers_and_no_secret(tx: Connection) -> None:
    registry.set_alias(tx, "default", "m@1", "stable")
    _live(tx, 1)
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


def test_deleting_ends_the_traffic_and_frees_the_package(tx: Connection) -> None:
    _live(tx, 1)
    version = registry.resolve(tx, "default", "m@1")
    assert service.in_use(tx, "default", version) == ["e"]
    assert service.in_use(tx, "default", replace(version, model="copy")) == []
    service.delete(tx, "default", "e")
    assert service.in_use(tx, "default", version) == []
    assert service.plan(tx, "key").endpoints == ()
    assert store.everywhere(tx) == []


def test_endpoints_of_another_tenant_do_not_exist(tx: Connection) -> None:
    _live(tx, 1)
    assert service.listing(tx, "other") == []
    with pytest.raises(TapsterError, match="there is no endpoint"):
        service.show(tx, "other", "e")
