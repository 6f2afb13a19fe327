"""Shares, shadows, ensembles and options of an endpoint."""

from typing import Any

import pytest
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.contract.plan import Options, VariantTotals
from tapster.deployments import service
from tapster.registry import service as registry
from tests.deployments.conftest import (
    NUMBERS,
    DataPlane,
    digest,
    labels,
    live,
    register,
    regression,
    shown,
    weights,
)


def test_a_version_takes_its_share_and_the_others_keep_their_proportions(
    tx: Connection, plane: DataPlane
) -> None:
    live(tx, plane, "m@1")
    assert weights(live(tx, plane, "m@2", 20).serving) == {"m@1": 80, "m@2": 20}
    assert weights(live(tx, plane, "m@3", 50).serving) == {"m@1": 40, "m@2": 10, "m@3": 50}
    endpoint = live(tx, plane, "m@1", 10)
    assert weights(endpoint.serving) == pytest.approx({"m@1": 10, "m@2": 15, "m@3": 75})
    assert endpoint.serving is not None
    assert endpoint.serving["version"] == 3, "the main version has the largest share"
    (planned,) = service.plan(tx, "key").endpoints
    assert [variant.weight for variant in planned.variants] == pytest.approx([0.1, 0.15, 0.75])
    assert weights(live(tx, plane, "m@2").serving) == {"m@2": 100}
    assert {package.digest for package in service.plan(tx, "key").packages} == {digest("m@2")}
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert weights(shown(tx).serving) == pytest.approx({"m@1": 10, "m@2": 15, "m@3": 75})


def test_a_share_of_nothing_is_still_there_to_be_called(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    assert weights(live(tx, plane, "m@2", 0).serving) == {"m@1": 100, "m@2": 0}
    with pytest.raises(TapsterError, match="no other version is there to take the remaining 70%"):
        service.deploy(tx, "default", "e", "m@1", 30)


def test_the_new_version_is_loaded_before_any_share_moves(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    service.deploy(tx, "default", "e", "m@2", 20)
    (planned,) = service.plan(tx, "key").endpoints
    assert [variant.version for variant in planned.variants] == [1]
    plane.failed[digest("m@2")] = "the answers differ"
    plane.settle(2)
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@1": 100}
    assert endpoint.error is not None
    assert endpoint.error["message"].startswith("m@2 was refused")


def test_weights_are_set_for_exactly_the_versions_named(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    live(tx, plane, "m@2", 20)
    service.set_weights(tx, "default", "e", {"m@2": 30, "m@3": 70})
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@2": 30, "m@3": 70}
    service.set_weights(tx, "default", "e", {"m@3": 100})
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@3": 100}
    assert {package.digest for package in service.plan(tx, "key").packages} == {digest("m@3")}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"m@1": 90, "m@2": 20}, "sum to 110, not to 100"),
        ({"m@1": 50, "m@2": 40}, "sum to 90"),
        ({"m@1": 150, "m@2": -50}, "between 0 and 100"),
        ({}, "no version is named"),
        ({"m@1": 50, "m": 50, "m@3": 0}, "named twice"),
    ],
)
def test_weights_that_make_no_sense_are_refused(
    tx: Connection, plane: DataPlane, given: dict[str, float], words: str
) -> None:
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError, match=words) as caught:
        service.set_weights(tx, "default", "e", given)
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("percent", [-1.0, 100.5])
def test_a_share_beyond_all_is_refused(tx: Connection, plane: DataPlane, percent: float) -> None:
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError, match="between 0 and 100"):
        service.deploy(tx, "default", "e", "m@2", percent)


def test_an_endpoint_serves_one_model_whose_versions_take_the_same(
    tx: Connection, plane: DataPlane
) -> None:
    register(tx, "other@1", regression(*NUMBERS))
    register(tx, "m@4", regression("a", "b", "d"))
    register(tx, "m@5", regression("c", "b", "a"))
    live(tx, plane, "m@1")
    for ref, words in (
        ("other@1", "an endpoint serves versions of one model, or is an ensemble"),
        ("m@4", "only m@1 takes the column 'c'"),
        ("m@5", "the same columns in another order"),
    ):
        with pytest.raises(TapsterError, match=words) as caught:
            service.deploy(tx, "default", "e", ref, 10)
        assert caught.value.code == "conflict"
    # What takes no request but from those who name it may differ, what replaces everything, too.
    live(tx, plane, "m@4", 0)
    assert weights(live(tx, plane, "other@1").serving) == {"other@1": 100}


def test_a_shadow_stands_beside_and_takes_no_share(tx: Connection, plane: DataPlane) -> None:
    register(tx, "m@4", regression("c", "b", "a"))
    register(tx, "m@5", regression("a", "b", "d"))
    with pytest.raises(TapsterError, match="serves nothing yet"):
        service.shadow(tx, "default", "e", "m@1")
    live(tx, plane, "m@1")
    live(tx, plane, "m@2")
    service.shadow(tx, "default", "e", "m@3")
    plane.settle(2)
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@2": 100, "m@3": None}
    assert endpoint.previous is not None
    assert endpoint.previous["version"] == 1, "who answers has not changed"
    (planned,) = service.plan(tx, "key").endpoints
    assert [(v.version, v.weight, v.shadow) for v in planned.variants] == [
        (2, 1.0, False),
        (3, 0.0, True),
    ]
    with pytest.raises(TapsterError, match="takes requests here"):
        service.shadow(tx, "default", "e", "m@2")
    with pytest.raises(TapsterError, match="cannot be a shadow of m@2: only m@2 takes"):
        service.shadow(tx, "default", "e", "m@5")
    service.set_shadows(tx, "default", "e", ["m@4"])
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@2": 100, "m@4": None}
    service.set_weights(tx, "default", "e", {"m@2": 60, "m@3": 40})
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@2": 60, "m@3": 40, "m@4": None}
    service.set_shadows(tx, "default", "e", [])
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@2": 60, "m@3": 40}


def test_an_ensemble_is_deployed_and_changed_and_rolled_back(
    tx: Connection, plane: DataPlane
) -> None:
    register(tx, "n@1", regression("c", "a", "b"))
    live(tx, plane, "m@1")
    service.deploy_ensemble(tx, "default", "e", {"m@1": 0.6, "n@1": 0.4})
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@1": 0.6, "n@1": 0.4}
    (planned,) = service.plan(tx, "key").endpoints
    assert (planned.kind, planned.version, planned.labels) == ("ensemble", 1, {})
    service.set_weights(tx, "default", "e", {"m@1": 0.5, "m@2": 0.25, "n@1": 0.25})
    plane.settle(2)
    (planned,) = service.plan(tx, "key").endpoints
    assert planned.version == 2
    for verb in (service.deploy, service.shadow):
        with pytest.raises(TapsterError, match="is an ensemble: m@3 cannot stand beside it"):
            verb(tx, "default", "e", "m@3", *((50.0,) if verb is service.deploy else ()))
    service.rollback(tx, "default", "e")
    plane.settle(2)
    assert weights(shown(tx).serving) == {"m@1": 0.6, "n@1": 0.4}
    assert live(tx, plane, "m@3").status == "live"


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({"m@1": 0.6, "m@2": 0.3}, "invalid", "sum to 0.9, not to 1"),
        ({"m@1": 60, "m@2": 40}, "invalid", "between 0 and 1"),
        ({"m@1": 1.0}, "invalid", "at least two members"),
        ({"m@3": 0.5, "m": 0.5}, "invalid", "at least two members, each once"),
        ({"m@1": 0.5, "m@3": 0.25, "m": 0.25}, "invalid", "at least two members, each once"),
        ({"m@1": 1.0, "m@2": 0.0}, "invalid", "above 0"),
        ({"m@1": 0.5, "ghost@1": 0.5}, "not_found", "there is no model 'ghost'"),
        ({"m@1": 0.5, "cats@1": 0.5}, "conflict", "their classes are none and cat, dog"),
        ({"cats@1": 0.5, "cats@2": 0.5}, "conflict", "classes are cat, dog and dog, cat"),
        ({"m@1": 0.5, "wide@1": 0.5}, "conflict", "only wide@1 takes the column 'd'"),
    ],
)
def test_members_that_cannot_answer_as_one_are_refused(
    tx: Connection, members: dict[str, float], code: str, words: str
) -> None:
    register(tx, "cats@1", labels("cat", "dog"))
    register(tx, "cats@2", labels("dog", "cat"))
    register(tx, "wide@1", regression(*NUMBERS, "d"))
    with pytest.raises(TapsterError, match=words) as caught:
        service.deploy_ensemble(tx, "default", "e", members)
    assert caught.value.code == code


def test_members_may_be_aliases_that_move(tx: Connection, plane: DataPlane) -> None:
    register(tx, "n@1", regression(*NUMBERS))
    register(tx, "n@2", regression(*NUMBERS, "d"))
    for ref in ("m@1", "n@1"):
        registry.set_alias(tx, "default", ref, "best")
    service.deploy_ensemble(tx, "default", "e", {"m:best": 0.5, "n:best": 0.5})
    plane.settle(2)
    registry.set_alias(tx, "default", "m@2", "best")
    plane.settle(3)
    assert weights(shown(tx).serving) == {"m@2": 0.5, "n@1": 0.5}
    (planned,) = service.plan(tx, "key").endpoints
    assert planned.version == 2
    registry.set_alias(tx, "default", "n@2", "best")
    plane.settle(3)
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@2": 0.5, "n@1": 0.5}
    assert endpoint.error is not None
    assert "cannot answer as one" in endpoint.error["message"]
    assert not plane.settle()


@pytest.mark.parametrize("where", ["here", "by the workers"])
def test_two_aliases_that_cannot_be_followed_are_tried_once_each(
    tx: Connection, plane: DataPlane, where: str
) -> None:
    wider = (*NUMBERS, "d") if where == "here" else NUMBERS
    register(tx, "n@1", regression(*NUMBERS))
    for ref in ("n@2", "m@4"):
        register(tx, ref, regression(*wider))
        plane.failed[digest(ref)] = "the answers differ"
    for ref in ("m@1", "n@1"):
        registry.set_alias(tx, "default", ref, "best")
    service.deploy_ensemble(tx, "default", "e", {"m:best": 0.5, "n:best": 0.5})
    plane.settle(2)
    for ref in ("m@4", "n@2"):
        registry.set_alias(tx, "default", ref, "best")
    plane.settle(4)
    assert not plane.settle()
    assert weights(shown(tx).serving) == {"m@1": 0.5, "n@1": 0.5}
    assert not service.unsettled(tx, plane)
    registry.set_alias(tx, "default", "m@2", "best")
    plane.settle(3)
    assert weights(shown(tx).serving) == {"m@2": 0.5, "n@1": 0.5}
    assert not plane.settle(), "n@2 was refused before"


def test_an_alias_that_moves_to_a_version_beside_it_joins_it(
    tx: Connection, plane: DataPlane
) -> None:
    registry.set_alias(tx, "default", "m@1", "champion")
    live(tx, plane, "m:champion")
    live(tx, plane, "m@2", 25)
    assert weights(shown(tx).serving) == {"m@1": 75, "m@2": 25}
    registry.set_alias(tx, "default", "m@2", "champion")
    plane.settle(3)
    endpoint = shown(tx)
    assert weights(endpoint.serving) == {"m@2": 100}
    assert endpoint.serving is not None
    assert endpoint.serving["alias"] == "champion"


def test_versions_that_stand_beside_cannot_be_deleted(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    live(tx, plane, "m@2", 0)
    service.shadow(tx, "default", "e", "m@3")
    plane.settle(2)
    for ref in ("m@1", "m@2", "m@3"):
        assert service.in_use(tx, "default", registry.resolve(tx, "default", ref)) == ["e"]


def test_options_are_checked_kept_and_planned(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    before = service.plan(tx, "key").number
    given: dict[str, Any] = {"deadline": 2, "queue": 100, "window": 0.005, "memory": 1 << 30}
    endpoint = service.set_options(tx, "default", "e", given)
    assert endpoint.options["deadline"] == 2.0
    assert endpoint.options["concurrency"] == Options().concurrency
    plan = service.plan(tx, "key")
    assert plan.number > before
    assert plan.endpoints[0].options == Options(
        deadline=2.0, queue=100, window=0.005, memory=1 << 30
    )
    service.set_options(tx, "default", "e", {"deadline": None, "window": None})
    options = service.plan(tx, "key").endpoints[0].options
    assert (options.deadline, options.window, options.queue) == (30.0, None, 100)
    assert shown(tx).status == "live"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline", 0), ("deadline", -1), ("deadline", 1e9), ("deadline", "2"),
        ("deadline", True), ("deadline", float("nan")), ("deadline", float("inf")),
        ("queue", 0), ("queue", 1.5), ("queue", 10**9), ("concurrency", 0), ("concurrency", 65),
        ("window", 2), ("cache", -1), ("idle", -1), ("memory", 1000), ("memory", -1),
        ("memory", 10**30), ("speed", 1), ("", 1),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(
    tx: Connection, plane: DataPlane, name: str, value: Any
) -> None:
    live(tx, plane, "m@1")
    with pytest.raises(TapsterError) as caught:
        service.set_options(tx, "default", "e", {name: value})
    assert caught.value.code == "invalid"
    assert caught.value.field == f"options.{name}"


def test_what_versions_have_answered_is_shown(tx: Connection, plane: DataPlane) -> None:
    live(tx, plane, "m@1")
    live(tx, plane, "m@2", 10)
    service.shadow(tx, "default", "e", "m@3")
    plane.settle(2)
    plane.answer("1", ok=90, errors=10, seconds=0.004)
    plane.answer("1", ok=100, seconds=0.004, agent="two")
    plane.answer("2", ok=10, seconds=40.0)
    plane.counters["two"]["shadow:3"] = VariantTotals(
        "default", "e", "shadow:3", 5, 0, 1, 0, (0, 6, *(0,) * 14), 4, 1, 1, dropped=7
    )
    lines = service.show(tx, "default", "e", plane.counters).traffic
    by_version = {line["version"]: line for line in lines}
    assert (by_version[1]["requests"], by_version[1]["errors"]) == (200, 10)
    assert 0.0025 < by_version[1]["p50"] <= by_version[1]["p99"] <= 0.005
    assert by_version[2]["p99"] == 30.0, "beyond the last bound nothing is known"
    assert by_version[3]["role"] == "shadow"
    compared = [by_version[3][name] for name in ("same", "different", "broken", "dropped")]
    assert compared == [4, 1, 1, 7]
