"""The plan that follows from the rows: what every data plane must make true."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.contract.plan import (
    EndpointPlan,
    Need,
    PackageRef,
    Price,
    ServingPlan,
    TenantGrant,
    Variant,
)
from tapster.deployments import borrowing, options, store
from tapster.deployments.payloads import service as payloads
from tapster.deployments.sets import ServingSet
from tapster.deployments.sharing import service as sharing
from tapster.deployments.store import Row
from tapster.registry import service as registry
from tapster.tenancy import revisions
from tapster.tenancy import service as tenancy
from tapster.tenancy.datakeys import service as datakeys
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.limits import service as limits
from tapster.tenancy.tenants import service as tenants


class Part(NamedTuple):
    """What follows from some endpoints: they, the packages they need, and who may have signed."""

    endpoints: tuple[EndpointPlan, ...] = ()
    packages: tuple[PackageRef, ...] = ()
    needs: tuple[Need, ...] = ()
    signers: tuple[str, ...] = ()


def plan(tx: Connection, public_key: str) -> ServingPlan:
    """All that data planes must know."""
    return msgspec.structs.replace(without_keys(tx, public_key), keys=tenancy.grants(tx))


def without_keys(tx: Connection, public_key: str) -> ServingPlan:
    """Endpoints that serve, packages that they need now or next, tenants and trusted signers."""
    number = tenancy.revision(tx)  # first: what changes from here on comes again as a delta
    found = part(tx, store.everywhere(tx), public_key)
    return ServingPlan(
        number=number,
        endpoints=found.endpoints,
        packages=found.packages,
        signers=found.signers,
        tenants=standings(tx),
        mark=revisions.mark(tx, number),
        needs=found.needs,
    )


def standings(tx: Connection, only: Collection[str] | None = None) -> tuple[TenantGrant, ...]:
    """Tenants that are not as all others are; `only` these."""
    found = {each.tenant: each for each in limits.tenant_grants(tx, store.ids(tx), only)}
    unlike: dict[str, dict[str, Any]] = {}
    for tenant in tenants.suspended(tx):
        unlike.setdefault(tenant, {})["suspended"] = True
    for tenant, weight in tenants.weighed(tx).items():
        unlike.setdefault(tenant, {})["weight"] = weight
    for tenant, more in unlike.items():
        if only is None or tenant in only:
            standing = found.get(tenant, TenantGrant(tenant))
            found[tenant] = msgspec.structs.replace(standing, **more)
    return tuple(found.values())


def part(tx: Connection, rows: Iterable[Row], public_key: str) -> Part:
    """What data planes must know of these endpoints."""
    packages: dict[str, PackageRef] = {}
    endpoints = []
    needs = []
    signers = {public_key}
    rows = list(rows)
    owners = {row.tenant for row in rows}
    prices = ledger.planned(tx, owners)
    secrets = datakeys.wrapped_keys(tx)
    shared = sharing.every(tx, sorted(owners))
    loans = borrowing.Loans(tx)
    lenders: set[str] = set()
    logged = payloads.planned(tx, owners, secrets)
    for row in rows:
        usable = [each for each in row.sets if loans.lost(row, each) is None]
        held = {one.digest: one.owner or row.tenant for each in usable for one in each.variants}
        lenders.update(held.values())
        for digest, owner in sorted(held.items()):
            secret, *former = secrets.get(owner, ("",))
            if not secret and digest in packages and packages[digest].secret:
                continue  # a tenant that is being erased has it too, and its copy opens no more
            key = f"{owner}/packages/{digest}"
            packages[digest] = PackageRef(digest, key, secret, tuple(former))
        needs.append(Need(row.id, tuple(sorted(held))))
        if row.serving is not None:
            place = (row.tenant, row.name)
            asked = prices.get(place, ledger.unpriced())
            halted = loans.halted(row, row.serving)
            planned = _endpoint(tx, row, halted, asked, shared.get(place, ()))
            endpoints.append(msgspec.structs.replace(planned, payloads=logged.get(place)))
    for owner in sorted(lenders):
        signers.update(registry.trusted(tx, owner))
    return Part(tuple(endpoints), tuple(packages.values()), tuple(needs), tuple(sorted(signers)))


def _endpoint(
    tx: Connection,
    row: Row,
    halted: TapsterError | None,
    prices: tuple[Price, ...],
    shared: tuple[str, ...],
) -> EndpointPlan:
    serving = row.serving
    assert serving is not None
    canary = row.rolling.canary.ref if row.rolling else ""
    split = serving.kind == "split" or halted is not None
    return EndpointPlan(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        variants=tuple(
            Variant(
                held.called,
                held.version,
                held.digest,
                held.weight,
                shadow=held.shadow,
                canary=held.ref == canary,
            )
            for held in (serving.variants if halted is None else ())
        ),
        labels=_labels(tx, row.tenant, serving) if split and halted is None else {},
        kind="split" if split else "ensemble",
        options=options.made(row.options or {}),
        version=serving.number,
        shared=shared,
        prices=prices,
        halted=halted.message if halted is not None else "",
    )


def _labels(tx: Connection, tenant: str, serving: ServingSet) -> dict[str, int]:
    """The aliases of the model; one that has moved, and is to be followed, stays until it is."""
    main = serving.main
    found = registry.aliases(tx, main.owner or tenant, main.model)
    there = {held.version for held in serving.answering}
    for held in serving.answering:
        if held.alias in found and found[held.alias] not in there:
            found[held.alias] = held.version
    return found
