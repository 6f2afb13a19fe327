"""Endpoints as the API gives them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError
from tapster.deployments import counts, options, rollouts
from tapster.deployments.counts import Totals
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.store import Row


def endpoint(
    row: Row, totals: Totals, shared: Sequence[str] = (), halted: TapsterError | None = None
) -> Endpoint:
    """An endpoint as its owner sees it, with what `totals` say of its versions.

    `halted` is why it answers nobody, though it has been deployed.
    """
    return Endpoint(
        name=row.name,
        tenant=row.tenant,
        status="failed" if halted is not None and row.status == "live" else row.status,
        serving=_shown(row.serving),
        pending=_shown(row.pending),
        previous=_shown(row.previous),
        error=row.error if halted is None else halted.as_dict(),
        created=row.created,
        updated=row.updated,
        options=msgspec.to_builtins(options.made(row.options or {})),
        rollout=rollouts.shown(row, totals),
        traffic=_traffic(row.serving, totals) if row.serving else [],
        shared=list(shared),
    )


def offered(row: Row, called: str) -> Endpoint:
    """An endpoint as those see it whom it is shared with: that it is there, and what to call it."""
    return Endpoint(
        name=called,
        tenant=row.tenant,
        status="live" if row.serving is not None else "idle",
        serving=None,
        pending=None,
        previous=None,
        error=None,
        created=row.created,
        updated=row.created,
    )


def _shown(serving: ServingSet | None) -> dict[str, Any] | None:
    return serving.shown() if serving is not None else None


def _traffic(serving: ServingSet, totals: Totals) -> list[dict[str, Any]]:
    """What the ensemble as a whole, and each version, have answered."""
    found = []
    if serving.kind == "ensemble":
        whole = counts.whole(totals, str(serving.number))
        found.append({"role": "ensemble", "version": serving.number, **counts.summary(whole)})
    for held in serving.variants:
        role = "member" if serving.kind == "ensemble" else "shadow" if held.shadow else "version"
        place = _place(held, role)
        line = {"role": role, "model": held.called, "version": held.version}
        line |= counts.summary(counts.whole(totals, place))
        if held.shadow:
            line |= _compared(totals, place)
        found.append(line)
    return found


def _place(held: Held, role: str) -> str:
    """Under which version the data plane counts what a version does there."""
    if role == "member":
        return f"member:{held.called}:{held.version}"
    return f"shadow:{held.version}" if role == "shadow" else str(held.version)


def _compared(totals: Totals, place: str) -> dict[str, int]:
    """A shadow's copies by what became of them."""
    lines = [versions[place] for versions in totals.values() if place in versions]
    return {
        name: sum(getattr(line, name) for line in lines)
        for name in ("same", "different", "broken", "dropped")
    }
