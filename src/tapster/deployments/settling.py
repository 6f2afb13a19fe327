"""How deployments move on, as far as workers' reports allow.

A deployment is two-phase. *Prepare*: the plan asks every worker to load the new packages, verify
them and replay their parity vectors. Only when all have, *switch*: the plan moves the endpoint.
One worker's refusal ends the deployment and leaves the old versions serving.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import Connection

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.contract.plan import WorkerState
from tapster.deployments import beginning, borrowing, counts, rollouts, sets, store
from tapster.deployments.counts import Totals
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.store import Row
from tapster.registry import service as registry
from tapster.registry import sharing as models
from tapster.tenancy import service as tenancy

PATIENCE: Final = 120.0


class Heard(Protocol):
    """What the data plane has reported."""

    def workers(self) -> Collection[WorkerState]:
        """Workers that somebody has heard of within the last seconds."""
        ...

    def totals(self, tenant: str, endpoint: str) -> Totals:
        """The counters of an endpoint's versions, by agent and version."""
        ...


def settle(tx: Connection, heard: Heard, expected: int, since: float = 0.0) -> bool:
    """Move every deployment on as far as the reports allow; True if anything changed.

    `since`: when this process began to listen; nobody could report to it before.
    """
    changed = False
    store.lock(tx)
    workers = heard.workers()
    everyone = max(expected, len(workers))  # other machines have workers too
    for row in store.everywhere(tx):
        totals = heard.totals(row.tenant, row.name)
        # A worker that has not applied this revision may still report what became of an earlier
        # try.
        current = [worker for worker in workers if worker.plan >= row.revision]
        if row.phase == "prepare":
            patient = time.time() - max(row.updated, since) <= PATIENCE
            prepared = _prepared(row, current, everyone, patient)
            if (lost := borrowing.lost(tx, row, row.pending)) is not None:
                prepared = _Preparation((lost, "its owner shares it no longer"), False)
            changed |= _settle_prepare(tx, row, prepared, totals)
        elif row.phase == "switch":
            changed |= len(current) >= everyone and _settle_switch(tx, row, totals)
        elif row.rolling is not None:
            changed |= _settle_rollout(tx, row, totals)
        else:
            changed |= _follow_alias(tx, row)
    return changed


def unsettled(tx: Connection, heard: Heard) -> bool:
    """Whether `settle` may have something to do: cheap, and without the write lock."""
    return any(
        row.phase or _due(row, heard.totals(row.tenant, row.name)) or _moved(tx, row) is not None
        for row in store.everywhere(tx)
    )


def _settle_prepare(tx: Connection, row: Row, now: "_Preparation", totals: Totals) -> bool:
    if now.refusal is not None:
        _refuse(tx, row, *now.refusal)
        return True
    if not now.ready:
        return False
    pending, rollout = row.pending, row.rolling
    assert pending is not None
    if rollout is not None:
        rollout = store.with_baseline(rollout, counts.taken(totals))
    kept = rollout is not None or pending.answers_as(row.serving)
    store.change(
        tx,
        row,
        phase="switch",
        revision=tenancy.revise(
            tx, row.tenant, f"endpoint {row.name} switches", kind="endpoint", ref=row.id
        ),
        serving=pending,
        pending=None,
        previous=row.previous if kept else row.serving,
        rollout=rollout,
    )
    return True


def _settle_switch(tx: Connection, row: Row, totals: Totals) -> bool:
    rollout = rollouts.started(row.rolling, totals) if row.rolling else row.rollout
    store.change(tx, row, phase="", status="live", rollout=rollout)
    return True


@dataclass(frozen=True)
class _Preparation:
    """How far workers are: a version that was refused and why, or whether all is ready."""

    refusal: tuple[Held, str] | None
    ready: bool


def _prepared(
    row: Row, current: Collection[WorkerState], everyone: int, patient: bool
) -> _Preparation:
    pending = row.pending
    assert pending is not None
    wanted = pending.digests
    states = [s for worker in current for s in worker.packages if s.digest in wanted]
    failed = next((state for state in states if state.state == "failed"), None)
    if failed is not None:
        return _Preparation((_of_digest(pending, failed.digest), failed.error), False)
    if not patient:
        late = (beginning.newest(row), "the data plane did not load it in time")
        return _Preparation(late, False)
    loaded = sum(state.state in {"ready", "cold"} for state in states)
    return _Preparation(None, len(current) >= everyone and loaded >= len(wanted) * len(current))


def _settle_rollout(tx: Connection, row: Row, totals: Totals) -> bool:
    if not _due(row, totals):
        return False
    found = rollouts.verdict(row, totals)
    assert found is not None
    rollouts.act(tx, row, found, totals)
    return True


def _due(row: Row, totals: Totals) -> bool:
    found = rollouts.verdict(row, totals)
    return found is not None and found.action != "wait"


def _follow_alias(tx: Connection, row: Row) -> bool:
    found = _moved(tx, row)
    if found is None or row.serving is None:
        return False
    before, after = found
    pending = sets.moved(row.serving, before, after)
    try:
        beginning.check(tx, row.tenant, pending)
        beginning.begin(tx, row, pending)
    except TapsterError as error:
        store.change(
            tx,
            row,
            serving=sets.refused(row.serving, before, after.digest),
            error={**error.as_dict(), "digest": after.digest},
        )
    return True


def _moved(tx: Connection, row: Row) -> tuple[Held, ModelVersion] | None:
    """A version whose alias has moved, and where to, unless that was refused."""
    if row.serving is None or row.rolling is not None:
        return None
    refused = (row.error or {}).get("digest")
    for held in row.serving.variants:
        if not held.alias:
            continue
        try:
            version = models.exactly(tx, row.tenant, held.owner, f"{held.model}:{held.alias}")
            registry.check_servable(version)
        except TapsterError:
            continue
        if version.digest not in {held.digest, held.refused, refused}:
            return held, version
    return None


def _of_digest(pending: ServingSet, digest: str) -> Held:
    return next(held for held in pending.variants if held.digest == digest)


def _refuse(tx: Connection, row: Row, refused: Held, reason: str) -> None:
    kept = row.serving
    error = TapsterError(
        "unprocessable",
        f"{refused.ref} was refused: {reason}",
        hint=f"{kept.main.ref} serves on" if kept else "nothing serves here yet",
    )
    rollout = row.rollout
    if row.rolling is not None:
        rollout = store.ended(row.rolling, "rolled back", error.message)
    store.change(
        tx,
        row,
        phase="",
        status="live" if kept else "failed",
        serving=sets.refused(kept, refused, refused.digest) if kept else None,
        pending=None,
        error={**error.as_dict(), "digest": refused.digest},
        rollout=rollout,
    )
    tenancy.revise(
        tx,
        row.tenant,
        f"endpoint {row.name}: {refused.called} refused",
        kind="endpoint",
        ref=row.id,
    )
