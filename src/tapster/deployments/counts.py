"""What versions have answered, as their counters tell: differences, rates, quantiles."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from tapster.contract.plan import LATENCY_SECONDS, VariantTotals

# Totals of one endpoint's versions, by agent (machine), then by version.
Totals = Mapping[str, Mapping[str, VariantTotals]]


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """Answers of a version: totals since the counters were made, or within a time."""

    ok: int = 0
    client_errors: int = 0
    server_errors: int = 0
    latency_ns: int = 0
    golden_same: int = 0
    golden_different: int = 0
    buckets: tuple[int, ...] = (0,) * (len(LATENCY_SECONDS) + 1)

    @property
    def requests(self) -> int:
        """Everything that was answered."""
        return self.ok + self.errors

    @property
    def errors(self) -> int:
        """What was answered with an error, whoever's fault it was."""
        return self.client_errors + self.server_errors

    @property
    def mean(self) -> float:
        """Seconds from arrival to answer."""
        return self.latency_ns / 1e9 / self.requests if self.requests else 0.0

    def plus(self, other: "Counts", sign: int = 1) -> "Counts":
        """The sum; with `sign` -1 the difference, never below zero."""
        numbers = {
            name: max(getattr(self, name) + sign * getattr(other, name), 0)
            for name in self.__struct_fields__[:-1]
        }
        pairs = zip(self.buckets, other.buckets, strict=True)
        return Counts(**numbers, buckets=tuple([max(a + sign * b, 0) for a, b in pairs]))


# Counts by agent, then by version: what a step of a rollout began with.
Baseline = dict[str, dict[str, Counts]]


def taken(totals: Totals, golden: Baseline | None = None) -> Baseline:
    """The counters as they are now; those of recorded answers as they were in `golden`, where a
    version that no machine had counted anything of had none."""
    found: Baseline = {}
    for agent, versions in totals.items():
        earlier = (golden or {}).get(agent)
        found[agent] = {
            version: _counts(each)
            if earlier is None
            else _since_then(_counts(each), earlier.get(version, Counts()))
            for version, each in versions.items()
        }
    return found


def since(baseline: Baseline, totals: Totals, versions: Iterable[str]) -> Counts:
    """What versions have answered since; of machines that were there then and are now.

    Counters that are lower than they were have begun anew.
    """
    found = Counts()
    for agent, before in baseline.items():
        now = totals.get(agent, {})
        for version in versions:
            if version in now:
                found = found.plus(_grown(_counts(now[version]), before.get(version, Counts())))
    return found


def whole(totals: Totals, version: str) -> Counts:
    """What a version has answered since the counters were made."""
    found = Counts()
    for versions in totals.values():
        if version in versions:
            found = found.plus(_counts(versions[version]))
    return found


def summary(counts: Counts) -> dict[str, Any]:
    """Requests, errors, and latencies in seconds; no latencies of no requests."""
    shown: dict[str, Any] = {"requests": counts.requests, "errors": counts.errors}
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        shown[name] = round(quantile(counts.buckets, share)[0], 6) if counts.requests else None
    return shown


def quantile(buckets: tuple[int, ...], share: float) -> tuple[float, float, float]:
    """A quantile of latencies in seconds, and the edges of the bucket that it lies in.

    Within a bucket it is interpolated; beyond the last bound it is that bound.
    """
    goal, below = share * sum(buckets), 0
    for count, (low, high) in zip(buckets, _edges(), strict=True):
        if count and below + count >= goal:
            return low + (high - low) * (goal - below) / count, low, high
        below += count
    return 0.0, 0.0, 0.0


def share_above(buckets: tuple[int, ...], limit: float) -> float:
    """The share of answers that took longer than `limit` seconds, interpolated in its bucket."""
    total, above = sum(buckets), 0.0
    for count, (low, high) in zip(buckets, _edges(), strict=True):
        if limit <= low:
            above += count
        elif limit < high:
            above += count * (high - limit) / (high - low)
    return above / total if total else 0.0


def _edges() -> list[tuple[float, float]]:
    bounds = [0.0, *LATENCY_SECONDS]
    return [*pairwise(bounds), (bounds[-1], bounds[-1])]


def _counts(totals: VariantTotals) -> Counts:
    return Counts(
        totals.ok,
        totals.client_errors,
        totals.server_errors,
        totals.latency_ns,
        totals.golden_same,
        totals.golden_different,
        totals.buckets,
    )


def _since_then(now: Counts, earlier: Counts) -> Counts:
    return msgspec.structs.replace(
        now, golden_same=earlier.golden_same, golden_different=earlier.golden_different
    )


def _grown(now: Counts, before: Counts) -> Counts:
    return now if now.requests < before.requests else now.plus(before, -1)
