"""The verbs: deploy, share, mirror, roll out, roll back, set, delete."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.control import Endpoint, ModelVersion
from tapster.contract.errors import TapsterError
from tapster.deployments import beginning, borrowing, options, rollouts, sets, showing, store
from tapster.deployments.counts import Totals
from tapster.deployments.judgement import Rules
from tapster.deployments.payloads import service as payloads
from tapster.deployments.planning import plan
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.settling import Heard, settle, unsettled
from tapster.deployments.sharing import service as sharing
from tapster.deployments.store import Row
from tapster.registry import service as registry
from tapster.registry import sharing as models
from tapster.tenancy import service as tenancy
from tapster.tenancy.limits import service as limits
from tapster.tenancy.shares import service as shares

__all__ = [
    "Heard", "Rules", "callee", "delete", "deploy", "deploy_ensemble", "in_use", "lent", "listing",
    "loaded", "plan", "roll_out", "rollback", "set_options", "set_shadows", "set_weights",
    "settle", "shadow", "show", "unsettled",
]  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def deploy(
    tx: Connection, tenant: str, name: str, reference: str, percent: float = 100.0
) -> Endpoint:
    """Begin to serve a model version under an endpoint's name, which is made if it is new.

    `percent` is its share beside what serves there, which keeps its proportions of the rest; 100
    replaces everything. Raises TapsterError(not_found) for the version, (unprocessable) for one
    that cannot be served, (invalid) for the name or the share, (conflict) for a version that does
    not fit the others and while another deployment is under way.
    """
    if not 0 <= percent <= 100:
        raise TapsterError(
            "invalid", "the weight must be between 0 and 100 percent", field="weight"
        )
    held = _held(tx, tenant, reference)
    row = _row(tx, tenant, name)
    if percent == 100:
        pending = sets.sole(held)
    else:
        pending = sets.with_share(_split(row, held), held, percent / 100)
    return _begin(tx, row, pending)


def shadow(tx: Connection, tenant: str, name: str, reference: str) -> Endpoint:
    """Begin to send a version copies of the requests. Raises TapsterError as `deploy` does."""
    held = _held(tx, tenant, reference)
    row = _row(tx, tenant, name)
    return _begin(tx, row, sets.with_shadow(_split(row, held), held))


def roll_out(
    tx: Connection,
    tenant: str,
    name: str,
    reference: str,
    *,
    steps: Sequence[float],
    rules: Rules,
) -> Endpoint:
    """Begin to give a version a share that grows in steps, if it proves no worse than the others.

    Raises TapsterError as `deploy` does.
    """
    held = _held(tx, tenant, reference)
    row = _row(tx, tenant, name)
    serving = _split(row, held)
    if all(each.ref == held.ref for each in serving.answering if each.weight > 0):
        raise TapsterError(
            "conflict",
            f"{held.ref} answers all requests already",
            hint="roll another version out",
            field="model",
        )
    rollout = rollouts.begun(serving, held, tuple(steps), rules)
    pending = rollouts.serving_at(rollout)
    beginning.check(tx, tenant, rollouts.serving_at(rollout))
    beginning.begin(tx, row, pending, rollout)
    return show(tx, tenant, name)


def deploy_ensemble(tx: Connection, tenant: str, name: str, members: dict[str, float]) -> Endpoint:
    """Begin to serve the weighted mean of versions; weights sum to one.

    Raises TapsterError as `deploy` does, and (conflict) for members that cannot answer as one.
    """
    factors = sets.shares(members, 1.0, "ensemble")
    held = {_held(tx, tenant, ref): factor for ref, factor in factors.items()}
    once = len({one.ref for one in held}) == len(factors)
    if len(factors) < 2 or not once or 0 in factors.values():
        raise TapsterError(
            "invalid",
            "an ensemble has at least two members, each once and with a weight above 0",
            hint="for example A@1=0.6 B@2=0.4",
            field="ensemble",
        )
    row = _row(tx, tenant, name)
    known = (row.serving, row.previous, row.pending)
    number = 1 + max((each.number for each in known if each is not None), default=0)
    return _begin(tx, row, sets.ensemble(held, number))


def rollback(tx: Connection, tenant: str, name: str) -> Endpoint:
    """Begin to serve what the endpoint served before; a rollout that is under way ends at once.

    Raises TapsterError(conflict) if there is nothing to go back to.
    """
    row = _changing(tx, tenant, name)
    if row.rolling is not None:
        rollouts.go_back(tx, row, row.rolling, "aborted", "it was rolled back by hand")
        return show(tx, tenant, name)
    if row.previous is None:
        raise TapsterError(
            "conflict", f"endpoint {name} has served nothing before", hint="deploy a version"
        )
    # Pinned: an endpoint rolled back from an alias's version must not follow the alias again.
    pinned = [msgspec.structs.replace(held, alias="") for held in row.previous.variants]
    return _begin(tx, row, msgspec.structs.replace(row.previous, variants=tuple(pinned)))


def set_weights(tx: Connection, tenant: str, name: str, weights: dict[str, float]) -> Endpoint:
    """Have exactly these versions answer: percent in a split, factors in an ensemble.

    Raises TapsterError as `deploy` does, and (invalid) for weights with another sum.
    """
    row = _changing(tx, tenant, name)
    serving = _serving(row)
    if serving.kind == "ensemble":
        return deploy_ensemble(tx, tenant, name, weights)
    given = sets.shares(weights, 100.0, "weights")
    aliases = {held.ref: held.alias for held in serving.variants}
    held: dict[Held, float] = {}
    for ref, share in given.items():
        one = _held(tx, tenant, ref)
        if not one.alias:
            one = msgspec.structs.replace(one, alias=aliases.get(one.ref, ""))
        held[one] = share
    if len({one.ref for one in held}) < len(given):
        raise TapsterError("invalid", "a version is named twice", field="weights")
    return _begin(tx, row, sets.with_weights(serving, held))


def set_shadows(tx: Connection, tenant: str, name: str, references: Sequence[str]) -> Endpoint:
    """Have exactly these versions get copies. Raises TapsterError as `deploy` does."""
    row = _changing(tx, tenant, name)
    serving = _serving(row)
    shadows = [_held(tx, tenant, ref) for ref in references]
    if shadows:
        _split(row, shadows[0])
    return _begin(tx, row, sets.with_shadows(serving, shadows))


def set_options(tx: Connection, tenant: str, name: str, given: dict[str, Any]) -> Endpoint:
    """Change how an endpoint is served, at once. Raises TapsterError(invalid)."""
    row = _changing(tx, tenant, name)
    store.change(tx, row, options=options.changed(row.options or {}, given))
    tenancy.revise(tx, tenant, f"endpoint {name}: options", kind="endpoint", ref=row.id)
    return show(tx, tenant, name)


def show(tx: Connection, tenant: str, name: str, totals: Totals | None = None) -> Endpoint:
    """The endpoint that a tenant means by a name, with what its versions have answered; of
    another tenant's only that it is shared. Raises TapsterError(not_found)."""
    owner, own = sharing.callee(tx, tenant, name) or (tenant, name)
    row = _known(tx, owner, own, name)
    if owner != tenant:
        return showing.offered(row, name)
    halted = borrowing.halted(tx, row, row.serving)
    seen = showing.endpoint(row, totals or {}, sharing.consumers(tx, owner, own), halted)
    return replace(seen, logging=payloads.shown(tx, owner, own))


def listing(tx: Connection, tenant: str) -> list[Endpoint]:
    """A tenant's endpoints by name, then those that are shared with it."""
    shared, logged = sharing.every(tx, [tenant]), payloads.every(tx, tenant)
    loans = borrowing.Loans(tx)
    own = (
        showing.endpoint(
            row, {}, shared.get((tenant, row.name), ()), loans.halted(row, row.serving)
        )
        for row in store.listing(tx, tenant)
    )
    return [
        *(replace(each, logging=logged.get(each.name)) for each in own),
        *(showing.offered(row, called) for called, row in sharing.offered(tx, tenant)),
    ]


def delete(tx: Connection, tenant: str, name: str) -> None:
    """Stop serving and forget the endpoint. Raises TapsterError(not_found)."""
    row = _changing(tx, tenant, name)
    sharing.forget(tx, tenant, name)
    payloads.forget(tx, tenant, name)
    store.remove(tx, tenant, name)
    tenancy.revise(tx, tenant, f"endpoint {name} deleted", kind="endpoint", ref=row.id)


def loaded(tx: Connection, tenant: str) -> int:
    """How many versions stand behind a tenant's endpoints."""
    return len(beginning.versions(tx, tenant))


def callee(tx: Connection, tenant: str, name: str) -> tuple[str, str] | None:
    """Owner and name of the endpoint that a tenant calls by `name`, None if there is none."""
    return sharing.callee(tx, tenant, name)


def in_use(tx: Connection, tenant: str, version: ModelVersion) -> list[str]:
    """Names of the endpoints that serve a version or are about to; none begins to until the
    transaction ends."""
    store.lock(tx)
    return [row.name for row in store.listing(tx, tenant) if _serves(row, "", version)]


def lent(tx: Connection, tenant: str, version: ModelVersion) -> bool:
    """Whether endpoints of others, which the model is shared with, serve a tenant's version."""
    consumers = shares.consumers(tx, shares.MODEL, tenant, version.model)
    return bool(consumers) and any(
        _serves(row, tenant, version) and (shares.ALL in consumers or row.tenant in consumers)
        for row in store.everywhere(tx)
    )


def _serves(row: Row, owner: str, version: ModelVersion) -> bool:
    """Whether an endpoint serves a version of `owner`, "" for its own tenant, or is about to."""
    wanted = (owner, version.model, version.version)
    return any(
        (held.owner, held.model, held.version) == wanted
        for serving in row.sets
        for held in serving.variants
    )


def _known(tx: Connection, tenant: str, name: str, called: str = "") -> Row:
    row = store.get(tx, tenant, name)
    if row is None:
        raise TapsterError(
            "not_found",
            f"there is no endpoint {(called or name)!r}",
            hint="see `tapster endpoints list`",
        )
    return row


def _changing(tx: Connection, tenant: str, name: str) -> Row:
    """An endpoint that nobody else changes until the transaction ends."""
    store.lock(tx)
    return _known(tx, tenant, name)


def _row(tx: Connection, tenant: str, name: str) -> Row:
    """The endpoint, made if it is new. Raises TapsterError(invalid) for its name."""
    if not _NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{name!r} cannot be an endpoint's name",
            hint="use up to 100 letters, digits, dots, dashes and underscores",
            field="endpoint",
        )
    store.lock(tx)
    if store.get(tx, tenant, name) is None:
        store.add(tx, tenant, name)
        limits.endpoint_made(tx, tenant, name)
    return _known(tx, tenant, name)


def _held(tx: Connection, tenant: str, reference: str) -> Held:
    version = models.find(tx, tenant, reference)
    registry.check_servable(version)
    return sets.held(version, reference)


def _serving(row: Row) -> ServingSet:
    if row.serving is None:
        raise TapsterError(
            "conflict",
            f"endpoint {row.name} serves nothing yet",
            hint=f"first: tapster deploy NAME --endpoint {row.name}",
        )
    return row.serving


def _split(row: Row, one: Held) -> ServingSet:
    """The set that a version is to stand in. Raises TapsterError(conflict) if there is none."""
    serving = _serving(row)
    if serving.kind == "ensemble":
        raise TapsterError(
            "conflict",
            f"endpoint {row.name} is an ensemble: {one.ref} cannot stand beside it",
            hint="deploy the ensemble again with other members, or the version by itself",
        )
    return serving


def _begin(tx: Connection, row: Row, pending: ServingSet) -> Endpoint:
    beginning.check_idle(row)
    beginning.check(tx, row.tenant, pending)
    beginning.begin(tx, row, pending)
    return show(tx, row.tenant, row.name)
