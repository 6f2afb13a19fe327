"""When a canary is worse: errors, latencies, and chance."""

import math
import random
from itertools import accumulate, pairwise

import pytest

from tapster.contract.plan import LATENCY_SECONDS, VariantTotals
from tapster.deployments import counts
from tapster.deployments.counts import Counts
from tapster.deployments.judgement import Rules, judge, least_difference, wilson

RULES = Rules(interval=60, min_requests=100, max_error_rate=0.01, max_latency_ratio=1.5)


def _counts(requests: int, errors: int = 0, seconds: float = 0.002, golden: int = 0) -> Counts:
    return Counts(
        ok=requests - errors,
        client_errors=errors,
        latency_ns=int(requests * seconds * 1e9),
        golden_different=golden,
        buckets=tuple(
            requests * (low < seconds <= high)
            for low, high in pairwise([0.0, *LATENCY_SECONDS, math.inf])
        ),
    )


def _spread(seconds: list[float]) -> Counts:
    buckets = [0] * (len(LATENCY_SECONDS) + 1)
    for one in seconds:
        buckets[sum(bound < one for bound in LATENCY_SECONDS)] += 1
    return Counts(
        ok=len(seconds),
        latency_ns=int(sum(seconds) * 1e9),
        buckets=tuple(buckets),
    )


def _judged(canary: Counts, stable: Counts, seconds: float = 60.0) -> str:
    return judge(RULES, canary, stable, seconds).action


def test_intervals_are_those_of_the_books() -> None:
    # Wilson's for z = 3: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n).
    assert wilson(0, 100) == pytest.approx((0.0, 9 / 109))
    assert wilson(100, 100) == pytest.approx((100 / 109, 1.0))
    low, high = wilson(50, 100)
    assert low == pytest.approx(1 - high)
    assert low == pytest.approx((0.5 + 0.045 - 3 * (0.0025 + 0.000225) ** 0.5) / 1.09)
    # Newcombe's: d - sqrt((p1 - l1)^2 + (u2 - p2)^2).
    assert least_difference((100, 100), (0, 100)) == pytest.approx(1 - 2**0.5 * 9 / 109)


def test_a_canary_that_does_as_well_goes_on_after_its_time_and_its_requests() -> None:
    good, stable = _counts(150, errors=1), _counts(3000, errors=15)
    assert _judged(good, stable) == "advance"
    assert _judged(good, stable, seconds=59) == "wait"
    assert _judged(_counts(99), stable) == "wait"
    assert "99 of 100 requests" in judge(RULES, _counts(99), stable, 60).reason


def test_errors_beyond_chance_end_it_at_once() -> None:
    stable = _counts(2000, errors=2)
    assert _judged(_counts(20, errors=10), stable, seconds=1) == "roll back"
    assert _judged(_counts(150, errors=15), stable, seconds=1) == "roll back"
    assert _judged(_counts(9, errors=9), stable, seconds=1) == "wait", "so few say nothing"
    reason = judge(RULES, _counts(150, errors=15), stable, 1).reason
    assert "10.00% of its answers are errors (15 of 150), against 0.10% (2 of 2000)" in reason


def test_errors_that_may_be_chance_are_waited_out() -> None:
    stable = _counts(2000, errors=2)
    assert _judged(_counts(150, errors=3), stable) == "wait"
    assert "more requests, because 2.00%" in judge(RULES, _counts(150, errors=3), stable, 60).reason
    assert _judged(_counts(1500, errors=6), stable) == "advance"


def test_a_canary_that_only_fails_does_not_go_on_however_few_requests_are_enough() -> None:
    few, stable = Rules(interval=60, min_requests=5), _counts(1000)
    assert judge(few, _counts(5, errors=5), stable, 60).action == "wait"
    assert judge(few, _counts(5), stable, 60).action == "advance"
    assert judge(few, _counts(10, errors=10), stable, 60).action == "roll back"


def test_errors_that_callers_make_everywhere_do_not_count_against_it() -> None:
    assert _judged(_counts(500, errors=100), _counts(5000, errors=1000)) == "advance"


def test_without_a_stable_request_errors_are_compared_with_none() -> None:
    assert _judged(_counts(50, errors=25), Counts(), seconds=1) == "roll back"
    assert _judged(_counts(200), Counts()) == "advance"


def test_a_slower_canary_is_rolled_back() -> None:
    stable = _counts(3000, seconds=0.002)
    assert _judged(_counts(200, seconds=0.02), stable, seconds=1) == "roll back"
    assert "its p95 is" in judge(RULES, _counts(200, seconds=0.02), stable, 1).reason
    tail = _spread([0.002] * 900 + [0.3] * 100)
    assert _judged(tail, stable, seconds=1) == "roll back"
    far = _spread([0.002] * 960 + [0.3] * 40)
    reason = judge(RULES, far, stable, 1).reason
    assert "its p99 is" in reason


def test_the_width_of_a_bucket_is_no_slowness() -> None:
    # 2.4 and 2.6 ms lie in neighbouring buckets, whose interpolated p95 are 2 apart.
    stable, canary = _counts(3000, seconds=0.0024), _counts(300, seconds=0.0026)
    assert _judged(canary, stable) == "advance"
    assert _judged(_counts(300, seconds=0.0049), stable) == "roll back"


def test_a_few_slow_answers_are_no_slowness() -> None:
    stable = _counts(3000, seconds=0.002)
    assert _judged(_spread([0.002] * 98 + [0.1] * 2), stable) in {"advance", "wait"}
    assert _judged(_spread([0.002] * 950 + [0.002] * 45 + [0.1] * 5), stable) == "advance"


def test_recorded_answers_that_differ_end_it_whatever_else() -> None:
    assert _judged(_counts(5, golden=1), _counts(100), seconds=0) == "roll back"


def test_equal_versions_are_seldom_told_apart() -> None:
    """Looked at after each of 60 seconds, 300 canaries with the stable version's own errors."""
    random.seed(3)
    wrong = 0
    for _ in range(300):
        mine = list(accumulate(random.random() < 0.02 for _ in range(600)))
        theirs = list(accumulate(random.random() < 0.02 for _ in range(6000)))
        wrong += any(
            _judged(
                _counts(10 * second, mine[10 * second - 1]),
                _counts(100 * second, theirs[100 * second - 1]),
                second,
            )
            == "roll back"
            for second in range(1, 61)
        )
    assert wrong <= 3


def test_quantiles_lie_in_their_bucket() -> None:
    even = _spread([0.0001 * n for n in range(1, 101)]).buckets  # 0.1 ms to 10 ms
    for share in (0.1, 0.5, 0.9, 0.99):
        value, low, high = counts.quantile(even, share)
        assert low <= value <= high
        assert value == pytest.approx(0.01 * share, rel=0.05)
    assert counts.quantile((0,) * 16, 0.5) == (0.0, 0.0, 0.0)
    assert counts.quantile((*(0,) * 15, 3), 0.5)[0] == 30.0
    assert counts.share_above(even, 0.006) == pytest.approx(0.4, abs=0.01)
    assert counts.share_above(even, 100.0) == 0.0
    assert counts.share_above((0,) * 16, 1.0) == 0.0


def _totals(ok: int, version: str = "2") -> dict[str, VariantTotals]:
    buckets = (ok, *(0,) * 15)
    return {version: VariantTotals("t", "e", version, ok, 0, 0, ok * 1000, buckets)}


def test_differences_survive_new_machines_and_counters_that_began_anew() -> None:
    baseline = counts.taken({"one": _totals(100), "two": _totals(50), "three": _totals(10)})
    now = {"one": _totals(130), "two": _totals(5), "new": _totals(999)}
    found = counts.since(baseline, now, ["2", "9"])
    # 30 more at one; two counted anew; three is gone; what a new machine counted before is unknown.
    assert found.requests == 30 + 5
    assert found.buckets[0] == 35
    assert counts.since(baseline, {}, ["2"]) == Counts()
