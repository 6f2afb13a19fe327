"""Ensembles: the weighted mean, members that fail, are late or overloaded, and what is counted."""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import psutil

from tapster.contract.manifest import Signature, TensorSpec
from tapster.contract.plan import EndpointPlan, Options, PackageRef, Variant
from tapster.serving.ensemble import Ensemble
from tapster.serving.places import Hold
from tapster.serving.slots import CLIENT_ERRORS, COMPUTE, OK, ROWS, SERVER_ERRORS, Slots
from tapster.serving.traffic import Inner
from tapster.serving.work import Answer, deliver
from tests.serving import test_isolation, variations
from tests.serving.conftest import Plane, request, wait_for
from tests.serving.doubles import Asked, Counted, Double
from tests.serving.packages import NUMBERS, put
from tests.serving.talking import ask, billed, counters, infer, output
from tests.serving.variations import CLASSES

WEIGHTS = (0.6, 0.4)
# So many rows are some seconds of work for a slow model.
LARGE = 8000
DRAW = np.random.default_rng(7)


def _serve(
    plane: Plane, refs: list[PackageRef], weights: tuple[float, ...] = WEIGHTS, **options: Any
) -> None:
    variants = tuple(
        Variant(f"m{number}", number, ref.digest, weight)
        for number, (ref, weight) in enumerate(zip(refs, weights, strict=True), 1)
    )
    plan = EndpointPlan(
        "ep", "default", "sum", variants, kind="ensemble", version=5, options=Options(**options)
    )
    plane.plan(plan, packages=tuple(dict.fromkeys(refs)))
    plane.start()
    state = plane.applied()
    assert [package.error for package in state.packages] == [""] * len(set(refs))


def _values(rows: int) -> np.ndarray[Any, Any]:
    return DRAW.normal(size=(rows, 3)).astype(np.float32)


def test_regressors_give_the_weighted_mean(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    tables = [DRAW.normal(size=3).astype(np.float32) for _ in WEIGHTS]
    _serve(plane, [variations.linear(plane.home, table.tolist()) for table in tables])
    inputs = [_values(rows) for rows in (1, 2, 5, 1, 1, 3) * 20]
    answers = ask(plane, [infer(values.ravel().tolist()) for values in inputs])
    rows = 0
    for values, answer in zip(inputs, answers, strict=True):
        wanted = sum(
            w * (values @ t).astype(np.float64) for w, t in zip(WEIGHTS, tables, strict=True)
        )
        np.testing.assert_allclose(output(answer), wanted, rtol=1e-6, atol=1e-6)
        assert answer[1]["model_version"] == "5"
        assert "parameters" not in answer[1]
        rows += len(values)
    place = counters(plane, "sum", "5")
    assert (place[OK], place[ROWS]) == (len(inputs), rows)
    for member in ("member:m1:1", "member:m2:2"):
        counted = counters(plane, "sum", member)
        assert (counted[OK], counted[ROWS]) == (len(inputs), rows)
        assert 0 < counted[COMPUTE] < place[COMPUTE]
    assert billed(plane) == {"id-tap_test-key": len(inputs)}


def test_the_mean_is_that_of_the_members_own_answers_to_the_bit(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    tables = [DRAW.normal(size=(3, 3)) for _ in range(3)]
    refs = [variations.scores(plane.home, table) for table in tables]
    shares = (0.5, 0.3, 0.2)
    members = [_split(f"m{number}", ref) for number, ref in enumerate(refs)]
    variants = tuple(
        Variant(f"m{number}", 1, ref.digest, share)
        for number, (ref, share) in enumerate(zip(refs, shares, strict=True))
    )
    whole = EndpointPlan("ep", "default", "sum", variants, kind="ensemble", version=1)
    plane.plan(whole, *members, packages=tuple(refs))
    plane.start()
    plane.applied()
    for values in [_values(rows).ravel().tolist() for rows in (1, 4, 1, 9)]:
        (mean,) = ask(plane, [infer(values)])
        each = [ask(plane, [infer(values, f"m{number}")])[0] for number in range(3)]
        scores = [
            np.array(output(one, "probabilities"), np.float32).astype(np.float64) for one in each
        ]
        total = scores[0] * shares[0] + scores[1] * shares[1] + scores[2] * shares[2]
        assert np.array_equal(
            np.array(output(mean, "probabilities"), np.float32), total.astype(np.float32)
        )
        best = [CLASSES[row] for row in total.reshape(-1, 3).argmax(axis=1)]
        assert output(mean) == best


def _split(name: str, ref: PackageRef) -> EndpointPlan:
    return EndpointPlan(f"ep-{name}", "default", name, (Variant(name, 1, ref.digest),))


def test_every_wire_asks_an_ensemble(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    tables = ([1.0, 10.0, 100.0], [3.0, 30.0, 300.0])
    _serve(plane, [variations.linear(plane.home, table) for table in tables], (0.5, 0.5))
    row = {"alpha": 1, "beta": 2, "gamma": 3}
    plain = plane.call("POST", "/v1/endpoints/sum/predict", {"rows": [row]}).json()
    assert plain == {"predictions": [{"prediction": 642.0}]}
    flow = plane.call("POST", "/v1/models/sum:predict", {"instances": [[1, 2, 3]]}).json()
    assert flow == {"predictions": [642.0]}
    assert plane.call("GET", "/v2/models/sum/versions/5/ready").json()["ready"]
    described = plane.call("GET", "/v2/models/sum").json()
    assert (described["versions"], described["platform"]) == (["5"], "ensemble")
    assert described["parameters"]["members"] == {"m1@1": 0.5, "m2@2": 0.5}
    state = plane.call("GET", "/v1/models/sum").json()["model_version_status"]
    assert [one["version"] for one in state] == ["5"]
    assert plane.call("POST", "/v2/models/sum/versions/1/infer", {}).status == 404


def test_members_may_order_their_columns_differently(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [
        variations.linear(plane.home, [1.0, 10.0, 100.0]),
        variations.linear(plane.home, [300.0, 3.0, 30.0], ("gamma", "alpha", "beta")),
    ]
    _serve(plane, refs, (0.25, 0.75))
    # 0.25 * (1, 10, 100) + 0.75 * (3, 30, 300), by name.
    row = {"gamma": 3, "beta": 2, "alpha": 1}
    plain = plane.call("POST", "/v1/endpoints/sum/predict", {"rows": [row]}).json()
    assert plain["predictions"][0]["prediction"] == 802.5
    assert output(ask(plane, [infer([1, 2, 3, 1, 1, 1])])[0]) == [802.5, 277.5]


def test_a_member_that_fails_is_left_out_and_the_answer_says_so(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    refs = [variations.linear(plane.home, [1, 1, 1]), variations.picky(plane.home, 10.0)]
    _serve(plane, refs)
    bad = [variations.BOUND, 0, 0]
    answers = ask(plane, [infer([1, 2, 3]), infer(bad), infer([4, 5, 6])] * 10)
    plain = plane.call("POST", "/v1/endpoints/sum/predict", {"rows": [_row(bad)]}).json()
    assert plain["note"]["failed_members"] == "m2@2 (invalid)"
    flow = plane.call("POST", "/v1/models/sum:predict", {"instances": [bad]})
    assert flow.json() == {"predictions": [variations.BOUND]}
    assert json.loads(flow.headers["x-tapster-note"])["answered_by"] == "m1@1=1"
    for number, answer in enumerate(answers):
        if number % 3 == 1:
            assert output(answer) == [variations.BOUND]
            assert answer[1]["parameters"] == {
                "failed_members": "m2@2 (invalid)",
                "answered_by": "m1@1=1",
            }
        else:
            assert output(answer) == [10.0 if number % 3 == 0 else 19.0]
            assert "parameters" not in answer[1]
    assert counters(plane, "sum", "5")[OK] == 32
    assert counters(plane, "sum", "member:m2:2")[CLIENT_ERRORS] == 12
    assert counters(plane, "sum", "member:m1:1")[OK] == 32
    assert billed(plane) == {"id-tap_test-key": 32}
    page = plane.call("GET", "/metrics").body.decode()
    asked = [line for line in page.splitlines() if line.startswith("tapster_requests_total{")]
    total = sum(int(line.split()[1]) for line in asked if 'endpoint="sum"' in line)
    assert total == 32, "members are not counted among what callers asked"
    member = 'tapster_inner_requests_total{tenant="default",endpoint="sum",version="2"'
    assert f'{member},role="member",model="m2",code="4xx"}} 12' in page


def _row(values: list[float]) -> dict[str, float]:
    return dict(zip(NUMBERS, values, strict=True))


def test_the_error_is_the_members_when_all_fail(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [variations.picky(plane.home, bias) for bias in (1.0, 2.0)]
    _serve(plane, refs)
    (failed, good) = ask(plane, [infer([variations.BOUND, 0, 0]), infer([0, 0, 0])])
    assert failed[0] == 400
    assert "every member of the ensemble failed; m1@1: " in failed[1]["error"]
    np.testing.assert_allclose(output(good), [0.6 * 1 + 0.4 * 2])
    assert counters(plane, "sum", "5")[CLIENT_ERRORS] == 1


def test_a_member_whose_process_is_killed_is_missed_by_nobody(
    new_plane: Callable[..., Plane],
) -> None:
    """Two times x in a process of its own, and four times x here: three times x while both live."""
    plane = new_plane(python_models="true")
    twice = test_isolation.python_package(plane.home)
    wide = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, -1))
    signature = Signature(wide[:1], wide[1:])
    four = onnx.helper.make_node("Mul", ["x", "four"], ["y"])
    model = variations.graph([four], signature, four=np.array(4, np.float32))
    rows = {"x": np.ones((2, 2), np.float32)}
    refs = [put(plane.home, "other", model, signature, rows), twice]
    _serve(plane, refs, (0.5, 0.5))
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    one = request("/v2/models/sum/infer", json.dumps({"inputs": [tensor]}).encode())
    seen: set[tuple[float, str]] = set()

    def outcomes() -> set[tuple[float, str]]:
        for answer in ask(plane, [one] * 20):
            note = answer[1].get("parameters", {}).get("failed_members", "")
            seen.add((output(answer, "y")[0], note.partition(" ")[0]))
        return seen

    whole, alone = (3.0, ""), (4.0, "m2@2")
    assert outcomes() == {whole}
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            outcomes()

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(2):
            children = wait_for(lambda: test_isolation.children(plane), "the member's process")
            for child in children:
                child.kill()
            psutil.wait_procs(children)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert seen <= {whole, alone}
    seen.clear()
    wait_for(lambda: whole in outcomes(), "the process to be replaced")


def test_a_member_that_is_late_is_left_out_in_time(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [
        variations.linear(plane.home, [1, 1, 1]),
        variations.slow(plane.home, 10.0, layers=40),
    ]
    _serve(plane, refs)
    values = [1.0, 2.0, 3.0] * LARGE
    (answer,) = ask(plane, [infer(values, more="x-request-timeout: 0.4\r\n")])
    assert output(answer) == [6.0] * LARGE
    assert answer[1]["parameters"]["failed_members"] == "m2@2 (deadline)"
    assert counters(plane, "sum", "member:m2:2")[SERVER_ERRORS] == 1
    assert counters(plane, "sum", "5")[OK] == 1


def test_all_late_is_a_deadline_missed(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [variations.slow(plane.home, bias, layers=40) for bias in (10.0, 20.0)]
    _serve(plane, refs, deadline=0.3)
    (answer,) = ask(plane, [infer([1.0, 2.0, 3.0] * LARGE)])
    assert answer[0] == 504
    assert "no member of the ensemble answered in time" in answer[1]["error"]


def test_nothing_is_run_for_callers_who_have_left(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [variations.slow(plane.home, bias, layers=30) for bias in (10.0, 20.0)]
    _serve(plane, refs)
    with plane.connect() as line:
        line.sendall(infer([1.0, 2.0, 3.0] * 200) * 60)
        # The first have begun to run when the caller hangs up.
        wait_for(lambda: counters(plane, "sum", "member:m1:1")[OK] > 0, "the first answer")
    (answer,) = ask(plane, [infer([1, 2, 3])])
    assert output(answer) == [20.0]
    assert counters(plane, "sum", "member:m1:1")[OK] < 50
    assert counters(plane, "sum", "5")[SERVER_ERRORS] == 0


def test_who_asks_pays_for_what_members_computed_for_them(tmp_path: Path) -> None:
    """A member is done with a large request while another still runs it, and a small one comes."""

    async def scenario() -> tuple[Asked, Asked]:
        slots = Slots(tmp_path / "slots")
        region = slots.region(0)
        model = cast(Any, SimpleNamespace(signature=Double.signature))
        waiting: list[list[Any]] = [[], []]
        members = [
            Inner(f"m@{n}", model, 0.5, Hold(n, region.place(n), deque()), waiting[n - 1].append)
            for n in (1, 2)
        ]
        ensemble = Ensemble(members, region)

        def run(member: int, ask: int, seconds: int) -> None:
            part = waiting[member][ask]
            body = part.render(Answer([part.inputs["x"]], part.rows, 1), 0)
            deliver(region, [(part, body)], time.monotonic_ns(), seconds * 10**9)

        large, small, gone = (
            Asked(*[1.0] * rows, deadline=time.monotonic() + 60) for rows in (4, 1, 4)
        )
        for asked in (gone, large, small):
            asked.place = region.nowhere
            ensemble.submit(asked)
        run(0, 0, 100)
        gone.done = True
        run(0, 1, 50)
        run(0, 2, 1)
        run(1, 2, 2)
        await asyncio.sleep(0.01)
        assert (large.done, small.done) == (False, True)
        run(1, 1, 70)
        await asyncio.sleep(0.01)
        slots.close()
        return large, small

    large, small = asyncio.run(scenario())
    paid = [cast(Counted, asked.account).compute / 1e9 for asked in (large, small)]
    assert [round(seconds) for seconds in paid] == [120, 3]


def test_models_that_cannot_answer_as_one_change_nothing(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    good = variations.linear(plane.home, [1, 1, 1])
    odd = variations.scores(plane.home, np.eye(3))
    plane.plan(_split("sum", good), packages=(good, odd))
    plane.start()
    plane.applied()
    assert output(ask(plane, [infer()])[0]) == [6.0]
    variants = (Variant("a", 1, good.digest, 0.5), Variant("b", 1, odd.digest, 0.5))
    plan = EndpointPlan("ep-sum", "default", "sum", variants, kind="ensemble", version=2)
    plane.plan(plan, packages=(good, odd))
    plane.applied()
    assert output(ask(plane, [infer()])[0]) == [6.0]
    assert "cannot be as planned" in plane.log()


def test_a_package_that_is_two_members_goes_with_its_endpoint(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    package = variations.linear(plane.home, [1.0, 2.0, 3.0])
    _serve(plane, [package, package])
    assert output(ask(plane, [infer([1.0, 1.0, 1.0])])[0]) == [6.0]
    plane.plan()
    assert plane.applied().packages == ()
    assert plane.call("GET", "/v2/models/sum/ready").status == 404
