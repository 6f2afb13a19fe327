"""Verbs over shares: share, withdraw; and which endpoint a tenant means by a name.

On every wire a name means the caller's own endpoint, else the one that is shared with it;
`owner--name` always means the owner's. A name that several owners share means none of them.
"""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.deployments import store as endpoints
from tapster.deployments.sets import ServingSet
from tapster.deployments.store import Row
from tapster.tenancy import service as tenancy
from tapster.tenancy.shares import service as shares

ALL: Final = shares.ALL
_ENDPOINT: Final = shares.ENDPOINT


def share(tx: Connection, tenant: str, name: str, consumers: Sequence[str]) -> list[str]:
    """Let other tenants call an endpoint, `*` for all of them; all that may from now on.

    Raises TapsterError(not_found) for the endpoint, (invalid) for what cannot be a tenant, and
    (conflict) while it serves another tenant's model, which is not the caller's to pass on.
    """
    endpoints.lock(tx)
    row = _known(tx, tenant, name)
    for each in row.sets:
        _check_own(row, each)
    if shares.add(tx, _ENDPOINT, tenant, name, consumers):
        tenancy.revise(tx, tenant, f"endpoint {name} shared", kind=_ENDPOINT, ref=row.id)
    return shares.consumers(tx, _ENDPOINT, tenant, name)


def withdraw(tx: Connection, tenant: str, name: str, consumers: Sequence[str]) -> list[str]:
    """Let tenants call an endpoint no longer, nobody if none is named; all that still may.

    Raises TapsterError(not_found) for the endpoint, (conflict) for a tenant that may because all
    may.
    """
    endpoints.lock(tx)
    row = _known(tx, tenant, name)
    if shares.withdraw(tx, _ENDPOINT, tenant, name, consumers):
        tenancy.revise(tx, tenant, f"endpoint {name} withdrawn", kind=_ENDPOINT, ref=row.id)
    return shares.consumers(tx, _ENDPOINT, tenant, name)


def forget(tx: Connection, tenant: str, name: str) -> None:
    """End every share of an endpoint that is about to go."""
    shares.forget(tx, _ENDPOINT, tenant, name)


def consumers(tx: Connection, tenant: str, name: str) -> list[str]:
    """Whom an endpoint is shared with."""
    return shares.consumers(tx, _ENDPOINT, tenant, name)


def every(
    tx: Connection, tenants: Collection[str] | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Whom endpoints are shared with, by owner and name, for the plan; of these owners only."""
    return shares.every(tx, _ENDPOINT, tenants)


def callee(tx: Connection, tenant: str, name: str) -> tuple[str, str] | None:
    """Owner and name of the endpoint that a tenant means by a name; None if it means none."""
    if endpoints.get(tx, tenant, name) is not None:
        return tenant, name
    owner, _, bare = name.rpartition(shares.BETWEEN)
    if owner == tenant and endpoints.get(tx, tenant, bare) is not None:
        return tenant, bare
    found = shares.meant(tx, _ENDPOINT, tenant, name)
    return found[0] if len(found) == 1 else None


def offered(tx: Connection, tenant: str) -> list[tuple[str, Row]]:
    """The endpoints that others share with a tenant, by the names that it calls them."""
    own = {row.name for row in endpoints.listing(tx, tenant)}
    names = shares.called(shares.offered(tx, _ENDPOINT, tenant), own)
    found = [(called, endpoints.get(tx, *place)) for place, called in names.items()]
    return [(called, row) for called, row in found if row is not None]


def check_own(tx: Connection, row: Row, pending: ServingSet) -> None:
    """Raise TapsterError(conflict) for another tenant's model at an endpoint that is shared."""
    if shares.consumers(tx, _ENDPOINT, row.tenant, row.name):
        _check_own(row, pending)


def _check_own(row: Row, pending: ServingSet) -> None:
    borrowed = next((held for held in pending.variants if held.owner), None)
    if borrowed is not None:
        raise TapsterError(
            "conflict",
            f"endpoint {row.name} cannot be shared and serve {borrowed.ref}, which is another"
            " tenant's",
            hint="only its owner says who may use a model; deploy it at an endpoint of its own",
            field="endpoint",
        )


def _known(tx: Connection, tenant: str, name: str) -> Row:
    row = endpoints.get(tx, tenant, name)
    if row is None:
        raise TapsterError(
            "not_found", f"there is no endpoint {name!r}", hint="see `tapster endpoints list`"
        )
    return row
