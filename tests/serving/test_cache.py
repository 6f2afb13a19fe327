"""Answers given again: to whom, for how long, within how many bytes, and how they are counted."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import Options
from tapster.serving.bills import Bill
from tapster.serving.cache import ENTRY_BYTES, Cache
from tapster.serving.slots import BATCHES, CACHE_HITS, CACHE_MISSES, OK, ROWS, Region, Slots
from tapster.serving.work import Answer, Inputs, Work
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant, wait_for
from tests.serving.doubles import Asked, Counted

BODY = {
    "inputs": [{"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]
}


class Model:
    """Doubles what it is asked, at once, alone or as rows 1 and on of a batch; or fails."""

    def __init__(self) -> None:
        self.ran = 0
        self.note: dict[str, Any] = {}
        self.fails = False
        self.among = False

    def submit(self, work: Work) -> None:
        self.ran += 1
        if self.fails:
            work.fail(TapsterError("invalid", "no"))
            return
        given = work.inputs
        rows = np.frombuffer(given, np.float32).reshape(-1, 1) if isinstance(given, bytes) else None
        output = 2 * (rows if rows is not None else given["x"])  # type: ignore[call-overload]
        if self.among:
            output = np.concatenate([np.zeros((1, 1), np.float32), output, output])
        answer = Answer([output], len(output), 3 if self.among else 1)
        answer.note = self.note
        work.succeed(work.render(answer, 1 if self.among else 0))


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    slots = Slots(tmp_path / "slots")
    yield slots.region(0)
    slots.close()


def ask(
    submit: Callable[[Work], None],
    region: Region,
    *values: float,
    tenant: str = "a",
    inputs: Inputs | None = None,
    bill: Bill | None = None,
) -> Asked:
    asked = Asked(*values)
    asked.tenant = tenant
    asked.inputs = asked.inputs if inputs is None else inputs
    asked.place, asked.account = region.nowhere, bill or asked.account
    submit(asked)
    return asked


def test_an_equal_request_is_answered_without_the_model(region: Region) -> None:
    model, bill = Model(), Counted()
    submit = Cache(1 << 20, region).before(model.submit, "package", ("x", 1), 60)
    for model.among in (False, True):
        value = 3.0 + model.among
        first, again = (ask(submit, region, value, 1, bill=bill) for _ in range(2))
        assert first.body == again.body == b"[%.1f, 2.0]" % (2 * value)
    assert model.ran == 2
    words = region.words
    assert words[region.nowhere + CACHE_HITS] == bill.cached == 2
    assert words[region.nowhere + CACHE_MISSES] == 2
    # A hit is served, and billed as any other answer; only the model has not run.
    assert words[region.nowhere + OK] == bill.requests == 2
    assert words[region.nowhere + ROWS] == bill.rows == 4
    assert words[region.nowhere + BATCHES] == 0


def test_how_a_wire_packs_its_inputs_makes_no_difference(region: Region) -> None:
    model = Model()
    submit = Cache(1 << 20, region).before(model.submit, "package", ("x", 1), 60)
    packed = np.array([1.5, 2.5], np.float32).tobytes()
    bodies = {
        ask(submit, region, 1.5, 2.5).body,
        ask(submit, region, 1.5, 2.5, inputs=packed).body,
    }
    assert bodies == {b"[3.0, 5.0]"}
    assert model.ran == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": np.array([[1.0]], np.float32)}, {"x": np.array([[1.0]], np.float64)}),
        ({"x": np.zeros((2, 1), np.float32)}, {"x": np.zeros((1, 2), np.float32)}),
        ({"x": np.zeros((1, 1), np.int32)}, {"x": np.zeros((1, 1), np.float32)}),
        ({"x": np.array([[1.0]], np.float32)}, {"x": np.array([[2.0]], np.float32)}),
        ({"x": np.array([[0.0]], np.float32)}, {"x": np.array([[-0.0]], np.float32)}),
        (
            {"x": np.array([["a", "bc"]], np.object_)},
            {"x": np.array([["ab", "c"]], np.object_)},
        ),
        (
            {"x": np.zeros((1, 1)), "y": np.ones((1, 1))},
            {"x": np.ones((1, 1)), "y": np.zeros((1, 1))},
        ),
    ],
)
def test_what_differs_in_anything_is_another_request(
    region: Region, one: dict[str, Any], other: dict[str, Any]
) -> None:
    model = Model()
    submit = Cache(1 << 20, region).before(model.submit, "package", None, 60)
    for inputs in (one, other, one, other):
        ask(submit, region, 1.0, inputs=inputs)
    assert model.ran == 2


def test_tenants_and_packages_share_nothing(region: Region) -> None:
    model = Model()
    cache = Cache(1 << 20, region)
    for package in ("p", "q"):
        submit = cache.before(model.submit, package, ("x", 1), 60)
        for tenant in ("a", "b", "a", "b"):
            ask(submit, region, 1.0, tenant=tenant)
    assert model.ran == 4
    assert len(cache) == 4


def test_answers_grow_old(region: Region) -> None:
    model = Model()
    submit = Cache(1 << 20, region).before(model.submit, "package", ("x", 1), 0.05)
    ask(submit, region, 1.0)
    began = time.monotonic()
    wait_for(lambda: ask(submit, region, 1.0) and model.ran > 1, "the answer to be forgotten")
    assert time.monotonic() - began > 0.04


def test_no_answer_is_older_than_the_endpoint_that_is_asked_allows(region: Region) -> None:
    """Whoever has kept it: another endpoint of the package, or this one before it was changed."""
    model, cache = Model(), Cache(1 << 20, region)
    patient = cache.before(model.submit, "package", ("x", 1), 60)
    strict = cache.before(model.submit, "package", ("x", 1), 0.05)
    ask(patient, region, 1)
    ask(strict, region, 1)
    assert model.ran == 1
    time.sleep(0.06)
    ask(strict, region, 1)
    ask(patient, region, 1)
    assert model.ran == 2


def test_errors_and_lesser_answers_are_not_kept(region: Region) -> None:
    model = Model()
    cache = Cache(1 << 20, region)
    submit = cache.before(model.submit, "package", ("x", 1), 60)
    model.fails = True
    assert isinstance(ask(submit, region, 1.0).error, TapsterError)
    model.fails, model.note = False, {"failed_members": "m"}
    ask(submit, region, 1.0)
    assert len(cache) == 0
    model.note = {}
    ask(submit, region, 1.0)
    ask(submit, region, 1.0)
    assert model.ran == 3


def test_the_least_recently_used_goes_first(region: Region) -> None:
    model = Model()
    cache = Cache(10 * (ENTRY_BYTES + 4), region)
    submit = cache.before(model.submit, "package", ("x", 1), 60)
    for number in range(10):
        ask(submit, region, number)
    ask(submit, region, 0)
    ask(submit, region, 10)
    assert model.ran == 11
    assert len(cache) == 10
    assert cache.size <= 10 * (ENTRY_BYTES + 4)
    ask(submit, region, 0)
    assert model.ran == 11
    ask(submit, region, 1)
    assert model.ran == 12


def test_what_is_too_large_is_not_kept(region: Region) -> None:
    model = Model()
    cache = Cache(16 << 10, region)
    submit = cache.before(model.submit, "package", ("x", 1), 60)
    for _ in range(2):
        ask(submit, region, *range(1000))
    assert model.ran == 2
    assert cache.size == len(cache) == 0


def test_an_endpoint_that_asks_for_it(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    one, two = packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0)
    keys = (grant(KEY), grant("second"))
    kept = Options(cache=60)
    plane.plan(
        endpoint("kept", one, options=kept), endpoint("plain", one), packages=(one,), keys=keys
    )
    plane.start()
    plane.applied()
    for name in ("kept", "plain"):
        for key in (KEY, "second", KEY):
            answer = plane.call("POST", f"/v2/models/{name}/infer", BODY, key=key)
            assert answer.json()["outputs"][0]["data"] == [7.0]
            assert answer.json()["model_name"] == name
    plane.plan(endpoint("kept", two, 2, options=kept), packages=(two,), keys=keys)
    plane.applied()
    answer = plane.call("POST", "/v2/models/kept/infer", BODY)
    assert answer.json()["outputs"][0]["data"] == [8.0]
    rows = plane.call("POST", "/v1/models/kept:predict", {"inputs": {"numeric": [[1, 2, 3]]}})
    assert rows.json() == {"outputs": [8.0]}  # one wire's miss is another's hit
    slots = Slots(plane.slots)
    totals = {
        (name, version): slots.totals(number)
        for number, _, _, name, version in slots.places()
        if version
    }
    slots.close()
    counted = {key: (t[CACHE_HITS], t[CACHE_MISSES], t[OK]) for key, t in totals.items()}
    assert counted == {
        ("kept", "1"): (2, 1, 3),
        ("plain", "1"): (0, 0, 3),
        ("kept", "2"): (1, 1, 2),
    }
