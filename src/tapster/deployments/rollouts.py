"""Canaries: a version's share grows in steps, as long as it is no worse than what it replaces.

A step begins when every worker has applied it. The counters of that moment are stored; what the
versions have answered since is judged (see judgement.py) at every report. State is in the row
alone, and time is the row's, so a control process that dies goes on where it was.
"""

import time
from itertools import pairwise
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.deployments import counts, judgement, sets, store
from tapster.deployments.counts import Counts, Totals
from tapster.deployments.judgement import Rules, Verdict
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.store import Rollout, Row
from tapster.tenancy import service as tenancy
from tapster.tenancy.audit.acts import remark

STEPS: Final = (5.0, 25.0, 50.0, 100.0)
MOST_STEPS: Final = 20


def begun(serving: ServingSet, canary: Held, steps: tuple[float, ...], rules: Rules) -> Rollout:
    """A rollout that is to be prepared. Raises TapsterError(invalid)."""
    _check(steps, rules)
    return Rollout(canary, steps, rules, serving)


def serving_at(rollout: Rollout) -> ServingSet:
    """What serves at the rollout's current step."""
    share = rollout.steps[rollout.step] / 100
    return sets.with_share(rollout.stable, rollout.canary, share)


def started(rollout: Rollout, totals: Totals) -> Rollout:
    """The current step has begun to take traffic everywhere.

    Recorded answers were asked for from the moment the first worker switched.
    """
    baseline = counts.taken(totals, golden=rollout.baseline)
    return msgspec.structs.replace(rollout, since=time.time(), baseline=baseline)


def verdict(row: Row, totals: Totals) -> Verdict | None:
    """What to do about an endpoint's rollout now; None while it is in no step."""
    rollout = row.rolling
    if rollout is None or rollout.since is None or row.phase:
        return None
    canary, stable = answered(rollout, totals)
    return judgement.judge(rollout.rules, canary, stable, time.time() - rollout.since)


def answered(rollout: Rollout, totals: Totals) -> tuple[Counts, Counts]:
    """What the canary, and what it stands beside, have answered in this step."""
    stable = [str(held.version) for held in rollout.stable.answering]
    mine = str(rollout.canary.version)
    return (
        counts.since(rollout.baseline, totals, [mine]),
        counts.since(rollout.baseline, totals, [each for each in stable if each != mine]),
    )


def act(tx: Connection, row: Row, found: Verdict, totals: Totals) -> None:
    """Go a step on, or back."""
    rollout = row.rolling
    assert rollout is not None
    rollout = _recorded(rollout, found, totals)
    if found.action == "roll back":
        go_back(tx, row, rollout, "rolled back", found.reason)
        return
    rollout = msgspec.structs.replace(
        rollout, step=rollout.step + 1, since=None, baseline=counts.taken(totals)
    )
    previous, last = row.previous, rollout.steps[rollout.step] == 100
    if last:
        rollout = msgspec.structs.replace(rollout, state="promoted", baseline={})
        previous = rollout.stable
    percent = f"{rollout.steps[rollout.step]:g}%"
    store.change(
        tx,
        row,
        status="loading" if last else row.status,
        phase="switch",
        revision=tenancy.revise(
            tx, row.tenant, f"endpoint {row.name}: canary at {percent}", kind="endpoint", ref=row.id
        ),
        serving=serving_at(rollout),
        previous=previous,
        rollout=rollout,
    )


def go_back(tx: Connection, row: Row, rollout: Rollout, state: str, reason: str) -> None:
    """Everything to the versions that served before, at once: they are still loaded."""
    percent = rollout.steps[rollout.step]
    error = TapsterError(
        "unprocessable",
        f"{rollout.canary.ref} was rolled back at {percent:g}%: {reason}",
        hint=f"{rollout.stable.main.ref} serves on",
    )
    failed = state == "rolled back"
    told = {"canary": rollout.canary.ref, "weight": percent, "reason": reason}
    remark(tx, row.tenant, "deployments.rollback", f"endpoint={row.name}", after=told)
    store.change(
        tx,
        row,
        status="loading",
        phase="switch",
        revision=tenancy.revise(
            tx, row.tenant, f"endpoint {row.name}: canary {state}", kind="endpoint", ref=row.id
        ),
        serving=rollout.stable,
        pending=None,
        rollout=store.ended(rollout, state, reason),
        error={**error.as_dict(), "digest": rollout.canary.digest} if failed else None,
    )


def shown(row: Row, totals: Totals) -> dict[str, Any] | None:
    """A rollout as the API gives it."""
    rollout = row.rollout
    if rollout is None:
        return None
    found: dict[str, Any] = {
        "model": rollout.canary.called,
        "version": rollout.canary.version,
        "state": rollout.state,
        "reason": rollout.reason,
        "steps": list(rollout.steps),
        "weight": rollout.steps[rollout.step],
        "rules": msgspec.to_builtins(rollout.rules),
        "stable": rollout.stable.shown(),
        "since": rollout.since,
        "waits_for": "",
        "history": list(rollout.history),
    }
    if rollout.running:
        judged = verdict(row, totals)
        canary, stable = answered(rollout, totals)
        found["waits_for"] = judged.reason if judged else "every worker to load and switch"
        found["now"] = {"canary": counts.summary(canary), "stable": counts.summary(stable)}
    return found


def _recorded(rollout: Rollout, found: Verdict, totals: Totals) -> Rollout:
    """The rollout with its current step written into its history."""
    canary, stable = answered(rollout, totals)
    step = {
        "weight": rollout.steps[rollout.step],
        "since": rollout.since,
        "until": time.time(),
        "canary": counts.summary(canary),
        "stable": counts.summary(stable),
        "verdict": found.action,
    }
    return msgspec.structs.replace(rollout, history=(*rollout.history, step))


def _check(steps: tuple[float, ...], rules: Rules) -> None:
    rising = all(low < high for low, high in pairwise(steps))
    # The first is below 100: a canary that answers everybody stands beside nothing.
    many = 2 <= len(steps) <= MOST_STEPS
    if not many or not rising or steps[0] <= 0 or steps[-1] != 100:
        raise TapsterError(
            "invalid",
            "the steps of a canary, at least two, must rise from above 0 to 100 percent",
            hint="for example 5,25,50,100",
            field="canary.steps",
        )
    for name, good, text in (
        ("interval", 0 < rules.interval <= 86_400 * 7, "seconds above 0, at most a week"),
        ("min_requests", 1 <= rules.min_requests <= 10**9, "at least 1"),
        ("max_error_rate", 0 <= rules.max_error_rate <= 1, "between 0 and 1"),
        ("max_latency_ratio", 1 <= rules.max_latency_ratio <= 1000, "between 1 and 1000"),
    ):
        if not good:
            raise TapsterError("invalid", f"{name} must be {text}", field=f"canary.{name}")
