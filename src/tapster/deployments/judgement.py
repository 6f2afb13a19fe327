"""Whether a canary is worse than the versions beside it. Pure arithmetic on counters.

Errors: Newcombe's hybrid score interval for the difference of two proportions (1998, method 10),
from Wilson's intervals. The canary is worse when even the interval's lower end exceeds the allowed
difference. It is looked at every second, so the intervals are wide: z = 3 (99.87 %, one-sided).

Latency: p95 and p99 from the histograms. The canary is slower when its quantile exceeds the allowed
multiple of the others', when significantly many of its answers do (Wilson, z = 3), and when the
width of a bucket does not explain it: the quantiles are a bucket or more apart beyond the allowed
multiple, or the means, which are exact, differ by more than it, too.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tapster.deployments.counts import Counts, quantile, share_above

Z: Final = 3.0
# Fewer requests end nothing, whatever became of them.
FEWEST: Final = 10


class Rules(msgspec.Struct, frozen=True):
    """When a canary goes on and when it goes back.

    Each step lasts `interval` seconds and `min_requests` of the canary's at least. Its error rate
    may exceed the others' by `max_error_rate`, its p95 and p99 be `max_latency_ratio` times theirs.
    """

    interval: float = 60.0
    min_requests: int = 100
    max_error_rate: float = 0.01
    max_latency_ratio: float = 1.5


@dataclass(frozen=True)
class Verdict:
    """What to do, and why (or what is waited for)."""

    action: Literal["wait", "advance", "roll back"]
    reason: str


def judge(rules: Rules, canary: Counts, stable: Counts, seconds: float) -> Verdict:
    """The verdict on what both have answered in a step that began `seconds` ago."""
    if canary.golden_different:
        return Verdict("roll back", "its recorded answers do not come back where it serves")
    errors = _errors(rules, canary, stable)
    latency = _latency(rules, canary, stable)
    for found in (errors, latency):
        if found.action == "roll back":
            return found
    if canary.requests < rules.min_requests:
        return Verdict("wait", f"{canary.requests} of {rules.min_requests} requests")
    if seconds < rules.interval:
        return Verdict("wait", f"{seconds:.0f} of {rules.interval:g} seconds")
    for found in (errors, latency):
        if found.action == "wait":
            return found
    return Verdict("advance", "its errors and latencies are as they should be")


def wilson(count: float, total: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, for z = 3."""
    if not total:
        return 0.0, 1.0
    share = count / total
    centre = share + Z * Z / (2 * total)
    spread = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)


def least_difference(mine: tuple[int, int], theirs: tuple[int, int]) -> float:
    """The lower end of Newcombe's interval for the difference of (count, total) and another.

    Nothing on the other side counts as a rate of zero that is known for sure.
    """
    share = mine[0] / mine[1]
    low = wilson(*mine)[0]
    other = theirs[0] / theirs[1] if theirs[1] else 0.0
    high = wilson(*theirs)[1] if theirs[1] else 0.0
    return share - other - math.hypot(share - low, high - other)


def _errors(rules: Rules, canary: Counts, stable: Counts) -> Verdict:
    if not canary.requests:
        return Verdict("advance", "")
    mine, theirs = canary.errors / canary.requests, stable.errors / max(stable.requests, 1)
    text = (
        f"{mine:.2%} of its answers are errors ({canary.errors} of {canary.requests}), against"
        f" {theirs:.2%} ({stable.errors} of {stable.requests}) of the version it stands beside;"
        f" {rules.max_error_rate:.2%} more are allowed"
    )
    pairs = ((canary.errors, canary.requests), (stable.errors, stable.requests))
    if canary.requests >= FEWEST and least_difference(*pairs) > rules.max_error_rate:
        return Verdict("roll back", text)
    if mine - theirs > rules.max_error_rate:
        return Verdict("wait", f"more requests, because {text}")
    return Verdict("advance", "")


def _latency(rules: Rules, canary: Counts, stable: Counts) -> Verdict:
    if min(canary.requests, stable.requests) < rules.min_requests:
        return Verdict("advance", "")
    ratio = rules.max_latency_ratio
    doubtful = ""
    for name, share in (("p95", 0.95), ("p99", 0.99)):
        mine, low, _ = quantile(canary.buckets, share)
        theirs, _, high = quantile(stable.buckets, share)
        if mine <= ratio * theirs or not (low >= ratio * high or canary.mean > ratio * stable.mean):
            continue
        text = (
            f"its {name} is {1000 * mine:.3g} ms, against {1000 * theirs:.3g} ms of the version"
            f" it stands beside; {ratio:g} times that is allowed"
        )
        slow = share_above(canary.buckets, ratio * theirs) * canary.requests
        if wilson(slow, canary.requests)[0] > 1 - share:
            return Verdict("roll back", text)
        doubtful = doubtful or f"more requests, because {text}"
    return Verdict("wait", doubtful) if doubtful else Verdict("advance", "")
