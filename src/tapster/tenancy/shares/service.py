"""Verbs over shares of any kind: add, withdraw, and what a tenant means by a name of others.

What is shared is called by its name, or by `owner--name`, which is always the owner's. A name that
several owners share means none of them. The slices whose things are shared tell the data plane.
"""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.tenancy.revisions import revise
from tapster.tenancy.shares import store
from tapster.tenancy.tenants import service as tenants

ENDPOINT: Final = "endpoint"
MODEL: Final = "model"
ALL: Final = "*"
BETWEEN: Final = "--"
MOST: Final = 1000
# What others' endpoints serve is billed under its full name, and there is no room for longer ones.
LONGEST: Final = 128
_A: Final = {ENDPOINT: "an endpoint", MODEL: "a model"}
_OTHERWISE: Final = {
    ENDPOINT: "deploy it under another name",
    MODEL: "export it and import it under another name",
}


def full(owner: str, name: str) -> str:
    """What others may always call an owner's."""
    return f"{owner}{BETWEEN}{name}"


def add(tx: Connection, kind: str, tenant: str, name: str, consumers: Sequence[str]) -> list[str]:
    """Let other tenants, `*` for all, use a tenant's; those that could not before.

    Nobody is told whether there is a tenant of a name: one that comes later is let in too. Raises
    TapsterError(invalid) for what cannot be a tenant, and for a name that others could not call.
    """
    _check_name(kind, tenant, name)
    _check(kind, tenant, consumers)
    before = store.consumers(tx, kind, tenant, name)
    more = sorted(set(consumers) - set(before))
    if len(before) + len(more) > MOST:
        raise TapsterError(
            "invalid",
            f"{_A[kind]} is shared with at most {MOST} tenants",
            hint="share it with all",
            field="tenants",
        )
    store.add(tx, kind, tenant, name, more)
    return more


def withdraw(
    tx: Connection, kind: str, tenant: str, name: str, consumers: Sequence[str]
) -> list[str]:
    """Let tenants use a tenant's no longer, nobody if none is named; those that could before.

    Raises TapsterError(conflict) for a tenant that may because all may, (invalid) for what cannot
    be a tenant.
    """
    _check_tenants(consumers)
    before = store.consumers(tx, kind, tenant, name)
    if consumers and ALL in before and ALL not in consumers:
        raise TapsterError(
            "conflict",
            f"{kind} {name} is shared with all",
            hint=f"withdraw it from all, then share it with some: tapster {kind}s share {name}",
            field="tenants",
        )
    gone = sorted(set(consumers or before) & set(before))
    store.remove(tx, kind, tenant, name, gone)
    return gone


def consumers(tx: Connection, kind: str, tenant: str, name: str) -> list[str]:
    """Whom a tenant's is shared with."""
    return store.consumers(tx, kind, tenant, name)


def every(
    tx: Connection, kind: str, tenants: Collection[str] | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Whom all is shared with, by owner and name; of these owners only."""
    return store.every(tx, kind, tenants)


def offered(tx: Connection, kind: str, tenant: str, name: str = "") -> list[tuple[str, str]]:
    """Owner and name of what others share with a tenant; of one name, if given."""
    return store.offered(tx, kind, tenant, name)


def meant(tx: Connection, kind: str, tenant: str, name: str) -> list[tuple[str, str]]:
    """Owner and name of all that a tenant could mean by a name; it means none of several."""
    owner, between, bare = name.rpartition(BETWEEN)
    found = store.offered(tx, kind, tenant, bare if between else name)
    return [each for each in found if not between or each[0] == owner]


def called(pairs: Sequence[tuple[str, str]], own: Collection[str]) -> dict[tuple[str, str], str]:
    """By which names a tenant with `own` names calls what others share with it; of those that one
    of its own hides, none."""
    names = [name for _, name in pairs]
    found = {}
    for owner, name in pairs:
        alone = names.count(name) == 1 and name not in own
        spelled = name if alone else full(owner, name)
        if spelled not in own:
            found[owner, name] = spelled
    return found


def lends(tx: Connection, kind: str, owner: str, name: str, tenant: str) -> bool:
    """Whether an owner's is there for a tenant now."""
    return bool({tenant, ALL} & set(store.consumers(tx, kind, owner, name)))


def forget(tx: Connection, kind: str, tenant: str, name: str) -> None:
    """End every share of what is about to go."""
    store.remove(tx, kind, tenant, name, store.consumers(tx, kind, tenant, name))


def stop(tx: Connection, tenant: str) -> int:
    """End all that a tenant shares, because the tenant ends; nothing of that goes on."""
    if store.end(tx, tenant):
        revise(tx, tenant, f"tenant {tenant} shares nothing any more")
    return 0


def erase(tx: Connection, tenant: str) -> None:
    """Forget what a tenant that is no more has shared, and what was shared with it."""
    store.erase(tx, tenant)


def _check_name(kind: str, tenant: str, name: str) -> None:
    if BETWEEN in name:
        raise TapsterError(
            "invalid",
            f"{_A[kind]} with {BETWEEN} in its name cannot be shared",
            hint=f"others would call it OWNER{BETWEEN}NAME; {_OTHERWISE[kind]}",
            field=kind,
        )
    if kind == MODEL and len(full(tenant, name)) > LONGEST:
        raise TapsterError(
            "invalid",
            "a model with so long a name cannot be shared",
            hint=f"OWNER{BETWEEN}NAME has at most {LONGEST} characters; {_OTHERWISE[kind]}",
            field=kind,
        )


def _check(kind: str, tenant: str, consumers: Sequence[str]) -> None:
    if not consumers:
        raise TapsterError("invalid", "name a tenant to share with, or all", field="tenants")
    _check_tenants(consumers)
    if tenant in consumers:
        raise TapsterError("invalid", f"the {kind} is yours already", field="tenants")


def _check_tenants(consumers: Sequence[str]) -> None:
    for each in consumers:
        if each != ALL and not tenants.proper(each):
            raise TapsterError(
                "invalid", f"{each[:100]!r} cannot be the name of a tenant", field="tenants"
            )
