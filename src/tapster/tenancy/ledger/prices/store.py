"""The table of prices and all SQL over it. A price that no longer holds has an `until`."""

from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    Index,
    String,
    Table,
    func,
    insert,
    select,
    update,
)

from tapster.core.db import metadata
from tapster.tenancy.ledger.tariffs import Tariff, Tier

# More than so many names are not written into a query.
_FEW: Final = 1000

# `tenant` asks for the price: who owns the endpoint, or the installation, whose own have no name.
# `caller` pays it; "" is everybody who has no price of their own.
prices = Table(
    "prices",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("endpoint", String(128), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("tiers", JSON, nullable=False),
    Column("since", Float, nullable=False),
    Column("until", Float),
    Index("ix_prices_tenant_endpoint", "tenant", "endpoint"),
    Index("ix_prices_caller", "caller"),
)


class PriceRow(msgspec.Struct, frozen=True):
    """A price as it is stored."""

    id: str
    tenant: str
    endpoint: str
    caller: str
    tariff: Tariff
    since: float
    until: float | None


def add(tx: Connection, tenant: str, row: PriceRow) -> None:
    """Insert a price."""
    tx.execute(
        insert(prices).values(
            id=row.id,
            tenant=tenant,
            endpoint=row.endpoint,
            caller=row.caller,
            tiers=msgspec.to_builtins(row.tariff),
            since=row.since,
            until=row.until,
        )
    )


def end(tx: Connection, tenant: str, identifier: str, at: float) -> bool:
    """Let a price hold no longer; False if it does not hold, or is not this tenant's."""
    done = tx.execute(
        update(prices)
        .where(prices.c.tenant == tenant, prices.c.id == identifier, prices.c.until.is_(None))
        .values(until=at)
    )
    return done.rowcount > 0


def get(tx: Connection, tenant: str, identifier: str) -> PriceRow | None:
    """One price that a tenant asks for."""
    query = select(prices).where(prices.c.tenant == tenant, prices.c.id == identifier)
    row = tx.execute(query).mappings().first()
    return _row(row) if row else None


def holding(tx: Connection, tenant: str, endpoint: str) -> list[PriceRow]:
    """The prices that hold now for an endpoint, or the installation's own."""
    query = select(prices).where(
        prices.c.tenant == tenant, prices.c.endpoint == endpoint, prices.c.until.is_(None)
    )
    return [_row(row) for row in tx.execute(query).mappings()]


def listing(tx: Connection, tenant: str, *, ended: bool) -> list[PriceRow]:
    """Prices that a tenant asks for, and those that others ask of it by name."""
    query = select(prices).where((prices.c.tenant == tenant) | (prices.c.caller == tenant))
    if not ended:
        query = query.where(prices.c.until.is_(None))
    query = query.order_by(prices.c.tenant, prices.c.endpoint, prices.c.caller, prices.c.since)
    return [_row(row) for row in tx.execute(query).mappings()]


def of_owners(
    tx: Connection, owners: Iterable[str], after: float, named: Iterable[str] = ()
) -> list[PriceRow]:
    """Prices of every tenant named that held at some time after `after`, or whose id is `named`."""
    late = (prices.c.until.is_(None)) | (prices.c.until > after)
    query = select(prices).where(
        prices.c.tenant.in_(list(owners)), late | prices.c.id.in_(list(named))
    )
    return [_row(row) for row in tx.execute(query).mappings()]


def by_ids(tx: Connection, ids: Iterable[str]) -> list[PriceRow]:
    """The prices that lines name, of whichever tenant."""
    query = select(prices).where(prices.c.id.in_(list(ids)))
    return [_row(row) for row in tx.execute(query).mappings()]


def everywhere(tx: Connection, owners: Collection[str] | None) -> list[PriceRow]:
    """Every tenant's prices that hold now, for the plan; of `owners` where they are few."""
    query = select(prices).where(prices.c.until.is_(None)).order_by(prices.c.id)
    if owners is not None and len(owners) <= _FEW:
        query = query.where(prices.c.tenant.in_(list(owners)))
    return [_row(row) for row in tx.execute(query).mappings()]


def rename(tx: Connection, tenant: str, pseudonym: str, at: float) -> None:
    """End the prices that a tenant asks for and those it pays, and give it another name there."""
    until = func.coalesce(prices.c.until, at)
    asked = update(prices).where(prices.c.tenant == tenant)
    tx.execute(asked.values(tenant=pseudonym, endpoint=prices.c.id, until=until))
    paid = update(prices).where(prices.c.caller == tenant)
    tx.execute(paid.values(caller=pseudonym, until=until))


def _row(row: Any) -> PriceRow:
    values = dict(row)
    tariff = msgspec.convert(values.pop("tiers"), tuple[Tier, ...])
    return PriceRow(tariff=tariff, **values)
