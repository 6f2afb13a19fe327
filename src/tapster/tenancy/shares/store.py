"""The table of shares, and all SQL over it."""

import time
from collections.abc import Collection

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    PrimaryKeyConstraint,
    String,
    Table,
    delete,
    insert,
    select,
)

from tapster.core.db import metadata

# What of a tenant's (`kind` and name) is there for which other tenant; `*` stands for all.
shares = Table(
    "shares",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("consumer", String(64), nullable=False),
    Column("created", Float, nullable=False),
    PrimaryKeyConstraint("kind", "tenant", "name", "consumer"),
    Index("ix_shares_consumer", "consumer"),
)


def add(tx: Connection, kind: str, tenant: str, name: str, consumers: Collection[str]) -> None:
    """Insert shares that are not there yet."""
    row = {"kind": kind, "tenant": tenant, "name": name, "created": time.time()}
    rows = [{**row, "consumer": consumer} for consumer in consumers]
    if rows:
        tx.execute(insert(shares), rows)


def remove(tx: Connection, kind: str, tenant: str, name: str, consumers: Collection[str]) -> None:
    """Delete shares."""
    here = (shares.c.kind == kind, shares.c.tenant == tenant, shares.c.name == name)
    if consumers:
        tx.execute(delete(shares).where(*here, shares.c.consumer.in_(consumers)))


def consumers(tx: Connection, kind: str, tenant: str, name: str) -> list[str]:
    """Whom something of a tenant's is shared with."""
    here = (shares.c.kind == kind, shares.c.tenant == tenant, shares.c.name == name)
    query = select(shares.c.consumer).where(*here).order_by(shares.c.consumer)
    return list(tx.execute(query).scalars())


def every(
    tx: Connection, kind: str, tenants: Collection[str] | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Consumers by owner and name, of any tenant or of these owners."""
    query = select(shares).where(shares.c.kind == kind).order_by(shares.c.consumer)
    if tenants is not None:
        query = query.where(shares.c.tenant.in_(tenants))
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in tx.execute(query):
        key = (row.tenant, row.name)
        found[key] = (*found.get(key, ()), row.consumer)
    return found


def offered(tx: Connection, kind: str, tenant: str, name: str = "") -> list[tuple[str, str]]:
    """Owner and name of what other tenants share with one, or with all; of one name, if given."""
    query = (
        select(shares.c.tenant, shares.c.name)
        .where(
            shares.c.kind == kind, shares.c.consumer.in_([tenant, "*"]), shares.c.tenant != tenant
        )
        .distinct()
        .order_by(shares.c.name, shares.c.tenant)
    )
    if name:
        query = query.where(shares.c.name == name)
    return [(row.tenant, row.name) for row in tx.execute(query)]


def end(tx: Connection, tenant: str) -> int:
    """Delete what a tenant shares; how many shares that was."""
    return tx.execute(delete(shares).where(shares.c.tenant == tenant)).rowcount


def erase(tx: Connection, tenant: str) -> None:
    """Delete what a tenant shares, and what is shared with it."""
    tx.execute(delete(shares).where((shares.c.tenant == tenant) | (shares.c.consumer == tenant)))
