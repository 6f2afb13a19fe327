"""Which version answers: shares, sticky keys, versions without a share."""

import math
import random
from collections import Counter
from collections.abc import Callable

from tapster.contract.plan import EndpointPlan, PackageRef, Variant
from tapster.serving.slots import GOLDEN_DIFFERENT, GOLDEN_SAME, OK
from tapster.serving.traffic import Split
from tests.serving import packages
from tests.serving.conftest import Plane, wait_for
from tests.serving.talking import ask, billed, counters, infer

KEYS = [f"caller-{number}".encode() for number in range(5000)]


def _split(**weights: float) -> Split[str]:
    return Split(list(weights), list(weights.values()), list(weights), "endpoint")


def _within(count: int, total: int, share: float) -> bool:
    """Whether a count is one that a share gives but once in a billion tries (6 sigma)."""
    return abs(count - total * share) <= 6 * math.sqrt(total * share * (1 - share))


def test_shares_are_those_of_the_weights() -> None:
    random.seed(1)
    split = _split(a=1, b=2, c=7)
    drawn = Counter(split.choose() for _ in range(20_000))
    stuck = Counter(split.choose(key) for key in KEYS)
    for name, share in (("a", 0.1), ("b", 0.2), ("c", 0.7)):
        assert _within(drawn[name], 20_000, share)
        assert _within(stuck[name], len(KEYS), share)


def test_keys_move_only_to_the_version_that_grows() -> None:
    before = [_split(old=60, older=40).choose(key) for key in KEYS]
    home = before
    for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.99):
        rest = 1 - share
        split = _split(new=share, old=0.6 * rest, older=0.4 * rest)
        now = [split.choose(key) for key in KEYS]
        for was, first, found in zip(before, home, now, strict=True):
            assert found in {"new", first}, "the canary gives a caller back where it came from"
            assert found == "new" or was != "new", "a caller who has the canary keeps it"
        assert _within(now.count("new"), len(KEYS), share)
        before = now


def test_endpoints_give_a_key_to_different_shares() -> None:
    first, second = (Split(["a", "b"], [1, 9], ["a", "b"], salt) for salt in ("one", "two"))
    both = [(first.choose(key), second.choose(key)) for key in KEYS]
    assert _within(both.count(("a", "a")), len(KEYS), 0.01)


def _plan(refs: list[PackageRef], *weights: float, **more: bool) -> EndpointPlan:
    variants = tuple(
        Variant("made", number, ref.digest, weight, **(more if number == 2 else {}))
        for number, (ref, weight) in enumerate(zip(refs, weights, strict=True), 1)
    )
    return EndpointPlan("ep", "default", "sum", variants, labels={"beta": 2})


def test_a_split_shares_requests_and_counts_them_by_version(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    refs = [packages.regressor(plane.home, float(bias)) for bias in (1, 2, 3)]
    plane.plan(_plan(refs, 0.7, 0.3, 0.0), packages=tuple(refs))
    plane.start()
    plane.applied()
    count = 4000
    answers = ask(plane, [infer()] * count)
    seen = Counter((body["model_version"], body["outputs"][0]["data"][0]) for _, body in answers)
    assert set(seen) == {("1", 7.0), ("2", 8.0)}
    assert _within(seen["2", 8.0], count, 0.3)
    assert counters(plane, "sum", "1")[OK] == seen["1", 7.0]
    assert counters(plane, "sum", "2")[OK] == seen["2", 8.0]
    # What has no share answers whoever names it.
    (third,) = ask(plane, [infer(version=3)])
    assert (third[0], third[1]["model_version"]) == (200, "3")
    assert billed(plane) == {"id-tap_test-key": count + 1}


def test_sticky_callers_keep_the_canary_while_it_grows(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    refs = [packages.regressor(plane.home, float(bias)) for bias in (1, 2)]
    keys = [f"x-sticky-key: caller-{number}\r\n" for number in range(400)]
    plane.plan(_plan(refs, 0.95, 0.05), packages=tuple(refs))
    plane.start()
    had: set[int] = set()
    for share in (0.05, 0.25, 0.5, 0.9):
        plane.plan(_plan(refs, 1 - share, share), packages=tuple(refs))
        plane.applied()
        answers = ask(plane, [infer(more=key) for key in keys] * 2)
        versions = [body["model_version"] for _, body in answers]
        assert versions[: len(keys)] == versions[len(keys) :]
        has = {number for number in range(len(keys)) if versions[number] == "2"}
        assert had <= has
        assert _within(len(has), len(keys), share)
        had = has


def test_a_canary_is_asked_for_its_recorded_answers_at_every_step(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    refs = [packages.regressor(plane.home, float(bias)) for bias in (1, 2)]
    plane.plan(_plan(refs, 0.9, 0.1, canary=True), packages=tuple(refs))
    plane.start()
    for step, share in enumerate((0.1, 0.5), 1):
        plane.plan(_plan(refs, 1 - share, share, canary=True), packages=tuple(refs))
        plane.applied()
        wait_for(lambda: counters(plane, "sum", "2")[GOLDEN_SAME] >= step, "recorded answers")  # noqa: B023
    assert counters(plane, "sum", "2")[GOLDEN_DIFFERENT] == 0
    assert counters(plane, "sum", "2")[OK] == 0, "nobody has called"
    assert billed(plane) == {}
