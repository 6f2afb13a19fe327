"""Verbs over shares: share, withdraw; and which endpoint a tenant means by a name.

On every wire a name means the caller's own endpoint, else the one that is shared with it;
`owner--name` always means the owner's. A name that several owners share means none of them.
"""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.deployments import store as endpoints
from tapster.deployments.sharing import store
from tapster.deployments.store import Row
from tapster.tenancy import service as tenancy
from tapster.tenancy.tenants import service as tenants

ALL: Final = "*"
BETWEEN: Final = "--"
MOST: Final = 1000
_ENDPOINT: Final = "endpoint"


def share(tx: Connection, tenant: str, name: str, consumers: Sequence[str]) -> list[str]:
    """Let other tenants call an endpoint, `*` for all of them; all that may from now on.

    Nobody is told whether there is a tenant of a name: one that comes later is let in too. Raises
    TapsterError(not_found) for the endpoint, (invalid) for what cannot be a tenant.
    """
    row = _known(tx, tenant, name)
    if BETWEEN in name:
        raise TapsterError(
            "invalid",
            f"an endpoint with {BETWEEN} in its name cannot be shared",
            hint=f"others would call it OWNER{BETWEEN}NAME; deploy it under another name",
            field="endpoint",
        )
    _check(tenant, consumers)
    before = store.consumers(tx, _ENDPOINT, tenant, name)
    more = sorted(set(consumers) - set(before))
    if len(before) + len(more) > MOST:
        raise TapsterError(
            "invalid",
            f"an endpoint is shared with at most {MOST} tenants",
            hint="share it with all",
            field="tenants",
        )
    if more:
        store.add(tx, _ENDPOINT, tenant, name, more)
        tenancy.revise(tx, tenant, f"endpoint {name} shared", kind=_ENDPOINT, ref=row.id)
    return sorted({*before, *more})


def withdraw(tx: Connection, tenant: str, name: str, consumers: Sequence[str]) -> list[str]:
    """Let tenants call an endpoint no longer, nobody if none is named; all that still may.

    Raises TapsterError(not_found) for the endpoint, (conflict) for a tenant that may because all
    may.
    """
    row = _known(tx, tenant, name)
    before = store.consumers(tx, _ENDPOINT, tenant, name)
    if consumers and ALL in before and ALL not in consumers:
        raise TapsterError(
            "conflict",
            f"endpoint {name} is shared with all",
            hint=f"withdraw it from all, then share it with some: tapster endpoints share {name}",
            field="tenants",
        )
    gone = sorted(set(consumers or before) & set(before))
    if gone:
        store.remove(tx, _ENDPOINT, tenant, name, gone)
        tenancy.revise(tx, tenant, f"endpoint {name} withdrawn", kind=_ENDPOINT, ref=row.id)
    return [each for each in before if each not in gone]


def forget(tx: Connection, tenant: str, name: str) -> None:
    """End every share of an endpoint that is about to go."""
    store.remove(tx, _ENDPOINT, tenant, name, store.consumers(tx, _ENDPOINT, tenant, name))


def erase(tx: Connection, tenant: str) -> None:
    """Forget what a tenant that is no more has shared, and what was shared with it."""
    store.erase(tx, tenant)


def consumers(tx: Connection, tenant: str, name: str) -> list[str]:
    """Whom an endpoint is shared with."""
    return store.consumers(tx, _ENDPOINT, tenant, name)


def every(
    tx: Connection, tenants: Collection[str] | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Whom endpoints are shared with, by owner and name, for the plan; of these owners only."""
    return store.every(tx, _ENDPOINT, tenants)


def callee(tx: Connection, tenant: str, name: str) -> tuple[str, str] | None:
    """Owner and name of the endpoint that a tenant means by a name; None if it means none."""
    if endpoints.get(tx, tenant, name) is not None:
        return tenant, name
    owner, between, bare = name.rpartition(BETWEEN)
    found = store.offered(tx, _ENDPOINT, tenant, bare if between else name)
    if between:
        own = owner == tenant and endpoints.get(tx, tenant, bare) is not None
        found = [(tenant, bare)] if own else [each for each in found if each[0] == owner]
    return found[0] if len(found) == 1 else None


def offered(tx: Connection, tenant: str) -> list[tuple[str, Row]]:
    """The endpoints that others share with a tenant, by the names that it calls them."""
    pairs = store.offered(tx, _ENDPOINT, tenant)
    names = [name for _, name in pairs]
    own = {row.name for row in endpoints.listing(tx, tenant)}
    found = []
    for owner, name in pairs:
        row = endpoints.get(tx, owner, name)
        alone = names.count(name) == 1 and name not in own
        called = name if alone else f"{owner}{BETWEEN}{name}"
        if row is not None and called not in own:
            found.append((called, row))
    return found


def _check(tenant: str, consumers: Sequence[str]) -> None:
    if not consumers:
        raise TapsterError("invalid", "name a tenant to share with, or all", field="tenants")
    for each in consumers:
        if each != ALL and not tenants.proper(each):
            raise TapsterError(
                "invalid", f"{each[:100]!r} cannot be the name of a tenant", field="tenants"
            )
        if each == tenant:
            raise TapsterError("invalid", "the endpoint is yours already", field="tenants")


def _known(tx: Connection, tenant: str, name: str) -> Row:
    row = endpoints.get(tx, tenant, name)
    if row is None:
        raise TapsterError(
            "not_found", f"there is no endpoint {name!r}", hint="see `tapster endpoints list`"
        )
    return row
