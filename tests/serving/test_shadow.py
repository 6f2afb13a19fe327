"""Shadows: copies compared and counted, on nobody's bill, and never in a caller's way."""

import time
from collections.abc import Callable

import numpy as np

from tapster.contract.plan import EndpointPlan, PackageRef, Variant
from tapster.serving.slots import (
    OK,
    SERVER_ERRORS,
    SHADOW_BROKEN,
    SHADOW_DIFFERENT,
    SHADOW_DROPPED,
    SHADOW_SAME,
)
from tests.serving import packages, variations
from tests.serving.conftest import Plane, wait_for
from tests.serving.talking import ask, billed, counters, infer, output
from tests.serving.variations import BOUND

WORDS = (SHADOW_SAME, SHADOW_DIFFERENT, SHADOW_BROKEN, SHADOW_DROPPED)


def _serve(plane: Plane, main: PackageRef, *shadows: PackageRef) -> None:
    variants = (
        Variant("made", 1, main.digest),
        *(
            Variant("made", number, ref.digest, 0.0, shadow=True)
            for number, ref in enumerate(shadows, 2)
        ),
    )
    plan = EndpointPlan("ep", "default", "sum", variants)
    plane.plan(plan, packages=(main, *shadows))
    if not plane.workers:
        plane.start()
    plane.applied()


def _outcomes(plane: Plane, version: int, total: int) -> tuple[int, ...]:
    """Copies that were the same, different, broken and dropped, once all are accounted for."""

    def counts() -> tuple[int, ...] | None:
        place = counters(plane, "sum", f"shadow:{version}")
        found = tuple(place[word] for word in WORDS)
        return found if sum(found) == total else None

    found: tuple[int, ...] = wait_for(counts, "copies")
    return found


def _calmly(plane: Plane, requests: list[bytes]) -> list[list[float]]:
    """Answers to requests that leave the worker time between them."""
    answers = []
    for one in requests:
        answers.append(output(ask(plane, [one])[0]))
        time.sleep(0.005)
    return answers


def test_copies_are_compared_and_callers_answered_by_the_version_they_asked(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    main = packages.regressor(plane.home, 1.0)
    close = packages.regressor(plane.home, 1.000001)
    _serve(plane, main, close, variations.picky(plane.home, 1.0))
    values = [[n, n, n] for n in range(10)] + [[BOUND + n, -BOUND, n] for n in range(5)]
    answers = _calmly(plane, [infer(each) for each in values])
    assert answers == [[sum(each) + 1.0] for each in values]
    same, different, broken, dropped = _outcomes(plane, 2, 15)
    assert (different, broken) == (0, 0)
    same, different, broken, more = _outcomes(plane, 3, 15)
    assert (different, same + more + broken) == (0, 15)
    assert broken >= 5 - more
    assert dropped == more, "copies are dropped for all shadows or for none"
    assert counters(plane, "sum", "1")[OK] == 15
    assert counters(plane, "sum", "shadow:2")[OK] == 15 - dropped
    assert billed(plane) == {"id-tap_test-key": 15}


def test_answers_that_differ_are_counted_as_such(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0))
    assert _calmly(plane, [infer()] * 20) == [[7.0]] * 20
    same, different, broken, dropped = _outcomes(plane, 2, 20)
    assert (same, broken, different + dropped) == (0, 0, 20)
    assert different > 0


def test_labels_and_scores_of_classifiers_are_compared(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    table = np.eye(3)
    _serve(plane, variations.scores(plane.home, table), variations.scores(plane.home, table * 1.5))
    for _ in range(20):
        assert output(ask(plane, [infer([3, 0, 0])])[0]) == ["cat"]
        time.sleep(0.005)
    same, different, _, _ = _outcomes(plane, 2, 20)
    assert same == 0, "the labels agree, the scores do not"
    assert different > 0


def test_a_shadow_may_order_its_columns_differently(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    main = variations.linear(plane.home, [1.0, 10.0, 100.0])
    other = variations.linear(plane.home, [100.0, 1.0, 10.0], ("gamma", "alpha", "beta"))
    _serve(plane, main, other)
    assert _calmly(plane, [infer([1, 2, 3])] * 10) == [[321.0]] * 10
    same, different, broken, _ = _outcomes(plane, 2, 10)
    assert (different, broken) == (0, 0)
    assert same > 0


def test_requests_that_fail_are_not_mirrored(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, variations.picky(plane.home, 1.0), packages.regressor(plane.home, 1.0))
    answers = ask(plane, [infer([BOUND, 0, 0]), infer([0, 0, 0])])
    assert [status for status, _ in answers] == [400, 200]
    assert sum(_outcomes(plane, 2, 1)) == 1


def test_a_busy_worker_drops_copies_instead_of_letting_callers_wait(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    main = packages.regressor(plane.home, 1.0)
    shadow = variations.slow(plane.home, 1.0, layers=40)
    _serve(plane, main, shadow)
    count = 4000
    answers = ask(plane, [infer()] * count)
    assert {output(answer)[0] for answer in answers} == {7.0}
    _, different, broken, dropped = _outcomes(plane, 2, count)
    assert (different, broken) == (0, 0)
    assert dropped > count / 2
    assert counters(plane, "sum", "1")[SERVER_ERRORS] == 0


def test_shadows_come_and_go_under_load(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    main = packages.regressor(plane.home, 1.0)
    other = packages.regressor(plane.home, 2.0)
    for shadows in ((), (other,), (), (other,), ()):
        _serve(plane, main, *shadows)
        answers = ask(plane, [infer()] * 300)
        assert {output(answer)[0] for answer in answers} == {7.0}
    place = counters(plane, "sum", "shadow:2")
    assert sum(place[word] for word in WORDS) == 600
    assert place[SHADOW_BROKEN] == 0
