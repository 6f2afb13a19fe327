"""Verbs over models that tenants share: publish and withdraw; find, list, and say what may be seen.

A name means the tenant's own model, else the one that is shared with it; `owner--name` means the
owner's. A model is shared as a whole: every version, those to come and its aliases among them.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.registry import service, store
from tapster.registry.references import parse, spell
from tapster.tenancy import service as tenancy
from tapster.tenancy.shares import service as shares
from tapster.tenancy.shares.service import ALL, MODEL

__all__ = [
    "ALL", "bare", "borrowers", "digest", "exactly", "find", "listing", "share", "versions",
    "withdraw",
]  # fmt: skip


def share(tx: Connection, tenant: str, model: str, consumers: Sequence[str]) -> ModelVersion:
    """Let other tenants, `*` for all, deploy a model; its newest version.

    Raises TapsterError(not_found) for the model, (invalid) for what cannot be a tenant.
    """
    newest = _whole(tx, tenant, model)
    if shares.add(tx, MODEL, tenant, model, consumers):
        tenancy.revise(tx, tenant, f"model {model} shared", kind="share", ref=model)
    return _own(tx, tenant, newest)


def withdraw(tx: Connection, tenant: str, model: str, consumers: Sequence[str]) -> ModelVersion:
    """Let tenants use a model no longer, nobody if none is named: what serves it stops at once.

    Raises TapsterError(not_found) for the model, (conflict) for a tenant that may because all may.
    """
    newest = _whole(tx, tenant, model)
    if shares.withdraw(tx, MODEL, tenant, model, consumers):
        tenancy.revise(tx, tenant, f"model {model} withdrawn", kind="share", ref=model)
    return _own(tx, tenant, newest)


def find(tx: Connection, tenant: str, ref: str) -> ModelVersion:
    """The version that a tenant means: of its own, else of one that is shared with it.

    Raises TapsterError as `service.resolve` does.
    """
    owner, model, rest = _meant(tx, tenant, ref)
    if owner == tenant:
        return _own(tx, tenant, service.resolve(tx, tenant, model + rest))
    return _of_others(tx, owner, model, ref)


def exactly(tx: Connection, tenant: str, owner: str, ref: str) -> ModelVersion:
    """The version that `ref` means to `owner`, "" for the tenant itself, if it is there for the
    tenant; under its full name.

    Raises TapsterError(not_found).
    """
    if not owner:
        return service.resolve(tx, tenant, ref)
    model, version, alias = parse(ref)
    called = shares.full(owner, model)
    if not shares.lends(tx, MODEL, owner, model, tenant):
        raise TapsterError("not_found", f"there is no model {called!r}")
    return _of_others(tx, owner, model, spell(called, version, alias))


def versions(tx: Connection, tenant: str, ref: str) -> list[ModelVersion]:
    """All versions of a model that a tenant may see, newest first. Raises as `find` does."""
    owner, model, _ = _meant(tx, tenant, ref)
    found = service.versions(tx, owner, model)
    called = parse(ref)[0]
    return [_own(tx, owner, v) if owner == tenant else _seen(v, owner, called) for v in found]


def listing(tx: Connection, tenant: str) -> list[ModelVersion]:
    """The newest version of each model of a tenant's, then of those that are shared with it."""
    own = store.newest(tx, tenant)
    consumers = shares.every(tx, MODEL, [tenant])
    found = [replace(v, shared=list(consumers.get((tenant, v.model), ()))) for v in own]
    names = shares.called(shares.offered(tx, MODEL, tenant), {v.model for v in own})
    for (owner, model), called in names.items():
        found += [_seen(v, owner, called) for v in store.of_model(tx, owner, model)[:1]]
    return found


def borrowers(tx: Connection, owner: str, model: str) -> list[str]:
    """Whom a model is shared with."""
    return shares.consumers(tx, MODEL, owner, model)


def digest(tx: Connection, owner: str, model: str, version: int) -> str:
    """The digest of a version; "" for one that is not there."""
    found = store.get(tx, owner, model, version)
    return found.digest if found is not None else ""


def bare(version: ModelVersion) -> str:
    """What its owner calls a version's model."""
    return version.model.rpartition(shares.BETWEEN)[2] if version.owner else version.model


def _meant(tx: Connection, tenant: str, ref: str) -> tuple[str, str, str]:
    """Whose model a reference means, what its owner calls it, and the rest of the reference."""
    model = parse(ref)[0]
    rest = ref.removeprefix(model)
    if store.of_model(tx, tenant, model):
        return tenant, model, rest
    owner, _, own = model.rpartition(shares.BETWEEN)
    if owner == tenant and store.of_model(tx, tenant, own):
        return tenant, own, rest
    found = shares.meant(tx, MODEL, tenant, model)
    return (*found[0], rest) if len(found) == 1 else (tenant, model, rest)


def _whole(tx: Connection, tenant: str, model: str) -> ModelVersion:
    """The newest version of a model. Raises TapsterError(invalid) for a reference to only one."""
    _, version, alias = parse(model)
    if version or alias:
        raise TapsterError(
            "invalid",
            "a model is shared with all of its versions",
            hint="name it without a version and an alias",
            field="model",
        )
    return service.resolve(tx, tenant, model)


def _own(tx: Connection, tenant: str, version: ModelVersion) -> ModelVersion:
    return replace(version, shared=shares.consumers(tx, MODEL, tenant, version.model))


def _of_others(tx: Connection, owner: str, model: str, ref: str) -> ModelVersion:
    """A version of another tenant's, which `ref` means to the one who asks."""
    called, version, alias = parse(ref)
    if alias:
        version = store.aliases(tx, owner, model).get(alias, -1)
    if version and (found := store.get(tx, owner, model, version)) is not None:
        return _seen(found, owner, called)
    known = store.of_model(tx, owner, model)
    if known and not version:
        return _seen(known[0], owner, called)
    what = f"alias {alias[:100]!r}" if alias else f"version {version}"
    numbers = ", ".join(str(each.version) for each in known[:10])
    raise TapsterError(
        "not_found",
        f"model {called} has no {what}" if known else f"there is no model {called!r}",
        hint=f"its versions are: {numbers}" if known else "see `tapster models list`",
    )


def _seen(version: ModelVersion, owner: str, called: str) -> ModelVersion:
    """A version as others see it: what it takes, gives and is worth, and nothing of its making."""
    return replace(version, model=called, owner=owner, lineage={}, tags={}, job="")
