"""Canaries: steps, promotion, rolling back by itself and by hand, and what is remembered."""

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from tapster.contract.errors import TapsterError
from tapster.deployments import service, store
from tapster.deployments.judgement import Rules
from tapster.registry import service as registry
from tests.deployments.conftest import DataPlane, digest, live, shown, weights

RULES = Rules(interval=10, min_requests=20)


def _roll_out(tx: Connection, ref: str = "m@2", *steps: float, **rules: Any) -> None:
    service.roll_out(
        tx,
        "default",
        "e",
        ref,
        steps=steps or (5, 50, 100),
        rules=Rules(**rules) if rules else RULES,
    )


def _later(tx: Connection, seconds: float = 11.0) -> None:
    """So much time goes by: the step has begun so much earlier."""
    (row,) = store.everywhere(tx)
    rollout: Any = row.rollout
    moved = {**msgspec.to_builtins(rollout), "since": rollout.since - seconds}
    tx.execute(update(store.endpoints).values(rollout=moved))


def _state(tx: Connection) -> dict[str, Any]:
    rollout = shown(tx).rollout
    assert rollout is not None
    return rollout


def test_a_canary_that_does_well_is_promoted_by_itself(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    _roll_out(tx)
    assert weights(shown(tx).serving) == {"m@1": 100}, "nothing moves before it is loaded"
    plane.answer("1", ok=1000)
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@1": 95, "m@2": 5}
    (planned,) = service.plan(tx, "key").endpoints
    assert [variant.canary for variant in planned.variants] == [False, True]
    assert shown(tx).status == "live"
    for share in (5, 50):
        assert _state(tx)["weight"] == share
        assert not plane.settle(), "too early"
        _later(tx)
        assert not plane.settle(), "too few requests"
        plane.answer("1", ok=300)
        plane.answer("2", ok=30)
        assert service.unsettled(tx, plane)
        assert plane.settle(2)
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@2": 100}
    assert endpoint.previous is not None
    assert (endpoint.previous["version"], endpoint.error) == (1, None)
    state = _state(tx)
    assert (state["state"], [step["weight"] for step in state["history"]]) == ("promoted", [5, 50])
    assert [step["canary"]["requests"] for step in state["history"]] == [30, 30]
    assert [step["stable"]["requests"] for step in state["history"]] == [300, 300]
    assert not plane.settle()
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@1": 100}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"ok": 15, "errors": 15}, "50.00% of its answers are errors (15 of 30)"),
        ({"ok": 30, "seconds": 0.2}, "its p95 is"),
    ],
)
def test_a_worse_canary_is_rolled_back_by_itself(
    tx: Connection, plane: DataPlane, answers: dict[str, Any], words: str
) -> None:
    live(tx, plane, "m@3")
    live(tx, plane, "m@1")
    _roll_out(tx)
    plane.settle(2)
    plane.answer("1", ok=500)
    plane.answer("2", **answers)
    assert plane.settle()
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@1": 100}
    assert endpoint.error is not None
    assert endpoint.error["message"].startswith("m@2 was rolled back at 5%: ")
    assert words in endpoint.error["message"]
    assert "m@1 serves on" in endpoint.error["hint"]
    assert words in _state(tx)["reason"]
    assert _state(tx)["state"] == "rolled back"
    plane.settle()
    assert {p.digest for p in service.plan(tx, "key").packages} == {digest("m@1")}
    assert endpoint.previous is not None
    assert endpoint.previous["version"] == 3, "what the canary replaced was never left"
    # The next deployment starts afresh.
    assert weights(live(tx, plane, "m@2").serving) == {"m@2": 100}
    assert shown(tx).rollout is None


def test_recorded_answers_are_judged_from_the_moment_of_the_switch(
    tx: Connection, plane: DataPlane
) -> None:
    live(tx, plane, "m@1")
    plane.answer("2", ok=0)
    _golden(plane, 3)  # of an earlier try
    _roll_out(tx)
    plane.settle()
    _golden(plane, 1)  # a worker has switched and asked before all have
    plane.settle()
    assert plane.settle()
    assert "recorded answers do not come back" in _state(tx)["reason"]


def test_recorded_answers_of_a_version_that_never_served_are_judged_from_then_too(
    tx: Connection, plane: DataPlane
) -> None:
    live(tx, plane, "m@1")
    _roll_out(tx)
    plane.settle()
    plane.answer("2", ok=0)  # only now has it a place to be counted at
    _golden(plane, 1)
    plane.settle()
    assert plane.settle()
    assert "recorded answers do not come back" in _state(tx)["reason"]


def _golden(plane: DataPlane, different: int) -> None:
    held = plane.counters["one"]["2"]
    plane.counters["one"]["2"] = msgspec.structs.replace(
        held, golden_different=held.golden_different + different
    )


def test_answers_before_the_step_do_not_count(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    plane.answer("1", ok=1000)
    plane.answer("2", ok=0, errors=1000)
    _roll_out(tx)
    plane.settle(2)
    assert not plane.settle()
    assert _state(tx)["now"]["canary"]["requests"] == 0
    assert _state(tx)["waits_for"] == "0 of 20 requests"


def test_rollback_ends_a_rollout_at_once(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    for settled in (0, 1, 2):
        _roll_out(tx)
        plane.settle(settled)
        service.rollback(tx, "default", "e")
        assert weights(shown(tx).serving) == {"m@1": 100}
        assert shown(tx).status == "loading"
        plane.settle()
        endpoint = shown(tx)
        assert (endpoint.status, endpoint.pending, endpoint.error) == ("live", None, None)
        assert _state(tx)["state"] == "aborted"
        assert {p.digest for p in service.plan(tx, "key").packages} == {digest("m@1")}


def test_a_rollout_is_not_disturbed(tx: Connection, plane: DataPlane) -> None:
    registry.set_alias(tx, "default", "m@1", "champion")
    live(tx, plane, "m:champion")
    _roll_out(tx)
    plane.settle(2)
    verbs: tuple[tuple[Any, Any], ...] = (
        (service.deploy, "m@3"),
        (service.shadow, "m@3"),
        (service.set_shadows, ["m@3"]),
        (service.set_weights, {"m@1": 100}),
        (service.deploy_ensemble, {"m@1": 0.5, "m@3": 0.5}),
    )
    for verb, given in verbs:
        with pytest.raises(TapsterError, match="is rolling m@2 out") as caught:
            verb(tx, "default", "e", given)
        assert caught.value.code == "conflict"
        assert "tapster endpoints rollback e" in caught.value.hint
    with pytest.raises(TapsterError, match="is rolling m@2 out"):
        _roll_out(tx, "m@3")
    service.set_options(tx, "default", "e", {"deadline": 5})
    registry.set_alias(tx, "default", "m@3", "champion")
    assert not plane.settle(), "the alias waits"
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert plane.settle(2)
    assert weights(shown(tx).serving) == {"m@3": 100}


def test_a_canary_that_cannot_be_loaded_never_starts(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    _roll_out(tx)
    plane.failed[digest("m@2")] = "the answers differ"
    plane.settle()
    endpoint = shown(tx)
    assert (endpoint.status, weights(endpoint.serving)) == ("live", {"m@1": 100})
    assert _state(tx)["state"] == "rolled back"
    assert "m@2 was refused" in _state(tx)["reason"]


def test_a_canary_may_stand_beside_a_split_and_its_shadow(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    service.shadow(tx, "default", "e", "m@3")
    plane.settle(2)
    _roll_out(tx, "m@3", 10, 100)
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@1": 90, "m@3": 10}, "it is a shadow no more"
    _later(tx)
    plane.answer("1", ok=300)
    plane.answer("3", ok=30)
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@3": 100}


@pytest.mark.parametrize(
    ("steps", "rules", "words"),
    [
        ((5, 4, 100), {}, "must rise"),
        ((5, 50), {}, "to 100 percent"),
        ((0, 100), {}, "above 0"),
        ((100,), {}, "at least two"),
        ((5, 101), {}, "to 100 percent"),
        (tuple(range(1, 25)), {}, "must rise"),
        ((5, 100), {"interval": 0}, "interval must be"),
        ((5, 100), {"interval": float("nan")}, "interval must be"),
        ((5, 100), {"min_requests": 0}, "min_requests must be"),
        ((5, 100), {"max_error_rate": 2}, "max_error_rate must be"),
        ((5, 100), {"max_latency_ratio": 0.5}, "max_latency_ratio must be"),
    ],
)
def test_rollouts_that_make_no_sense_are_refused(
    tx: Connection, plane: DataPlane, steps: tuple[float, ...], rules: dict[str, Any], words: str
) -> None:
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError, match=words) as caught:
        _roll_out(tx, "m@2", *steps, **rules)
    assert caught.value.code == "invalid"


def test_there_must_be_something_to_stand_beside(tx: Connection, plane: DataPlane) -> None:
    with pytest.raises(TapsterError, match="serves nothing yet"):
        _roll_out(tx)
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError, match="m@1 answers all requests already"):
        _roll_out(tx, "m@1")


def test_a_control_process_that_dies_goes_on_where_it_was(tx: Connection, plane: DataPlane) -> None:
    """Whatever a new process knows is in the row: nothing is lost if the last one dies anywhere."""
    live(tx, plane, "m@1")
    _roll_out(tx)
    plane.settle(2)
    plane.answer("1", ok=300)
    plane.answer("2", ok=30)
    _later(tx)
    again = DataPlane(tx)
    again.counters = {}  # reports come to a new process; until then it knows of none
    assert not again.settle()
    assert weights(shown(tx).serving) == {"m@1": 95, "m@2": 5}
    again.counters = plane.counters
    assert again.settle(2)
    assert _state(tx)["weight"] == 50
    assert _state(tx)["since"] <= time.time()
