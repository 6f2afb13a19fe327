"""The first step of every deployment: a set that may serve is written down to be prepared."""

from sqlalchemy import Connection

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.deployments import agreement, store
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.sharing import service as sharing
from tapster.deployments.store import Rollout, Row
from tapster.registry import service as registry
from tapster.registry import sharing as models
from tapster.tenancy import service as tenancy
from tapster.tenancy.limits import quotas


def begin(tx: Connection, row: Row, pending: ServingSet, rollout: Rollout | None = None) -> None:
    """Have a set prepared.

    Raises TapsterError(conflict) while another is under way, and (exhausted) when the tenant may
    not have so many versions behind its endpoints.
    """
    check_idle(row)
    sharing.check_own(tx, row, pending)
    _check_quota(tx, row, pending)
    main = pending.main.called
    store.change(
        tx,
        row,
        status="loading",
        phase="prepare",
        revision=tenancy.revise(
            tx, row.tenant, f"endpoint {row.name} prepares {main}", kind="endpoint", ref=row.id
        ),
        pending=pending,
        error=None,
        rollout=rollout,
    )


def versions(tx: Connection, tenant: str, instead: dict[str, ServingSet] | None = None) -> set[str]:
    """The versions behind a tenant's endpoints once what is under way has ended.

    `instead` are sets of endpoints, by their ids, in place of those that these have.
    """
    known = {row.id: row.pending or row.serving for row in store.listing(tx, tenant)}
    ends = {**known, **(instead or {})}.values()
    return {held.ref for one in ends if one is not None for held in one.variants}


def _check_quota(tx: Connection, row: Row, pending: ServingSet) -> None:
    """Raise TapsterError(exhausted) for more versions than the tenant may have, and had."""
    now, then = versions(tx, row.tenant), versions(tx, row.tenant, {row.id: pending})
    if len(then) > len(now):
        quotas.check(tx, row.tenant, "models", lambda: len(now), len(then) - len(now))


def check_idle(row: Row) -> None:
    """Raise TapsterError(conflict) while a deployment or a rollout is under way."""
    rolling = row.rolling
    if rolling is not None:
        raise TapsterError(
            "conflict",
            f"endpoint {row.name} is rolling {rolling.canary.ref} out"
            f" ({rolling.steps[rolling.step]:g}% now)",
            hint=f"wait until it has ended, or end it: tapster endpoints rollback {row.name}",
        )
    if row.status == "loading":
        raise TapsterError(
            "conflict",
            f"endpoint {row.name} is still switching",
            hint="wait until `tapster endpoints show` says live, then try again",
        )


def check(tx: Connection, tenant: str, pending: ServingSet) -> None:
    """Raise TapsterError unless every version may be served, and they may stand together.

    (not_found) for one that is gone, (unprocessable) for one that cannot be served, (conflict)
    for those that do not fit the others.
    """
    versions = {held.ref: _servable(tx, tenant, held) for held in pending.variants}
    answering = [versions[held.ref] for held in pending.answering]
    if pending.kind == "ensemble":
        agreement.check_ensemble(answering)
        return
    drawn = [versions[held.ref] for held in pending.answering if held.weight > 0]
    agreement.check_split(drawn)
    for version in answering:
        agreement.check_model(drawn[0], version)
    for held in pending.shadows:
        agreement.check_shadow(drawn, versions[held.ref])


def newest(row: Row) -> Held:
    """The version that a deployment is about: the one that does not serve yet, if there is one."""
    assert row.pending is not None
    known = row.serving.digests if row.serving else set()
    new = [held for held in row.pending.variants if held.digest not in known]
    return new[0] if new else row.pending.main


def _servable(tx: Connection, tenant: str, held: Held) -> ModelVersion:
    version = models.exactly(tx, tenant, held.owner, f"{held.model}@{held.version}")
    registry.check_servable(version)
    return version
