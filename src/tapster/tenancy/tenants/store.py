"""The table of tenants, and all SQL over it."""

import time
from typing import Any

from sqlalchemy import Column, Connection, Float, String, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tapster.contract.control import Tenant
from tapster.core.db import metadata

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("title", String(200), nullable=False, server_default=""),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("weight", Float, nullable=False, server_default="1"),
    Column("created", Float, nullable=False),
)


def add(tx: Connection, tenant: str, title: str = "") -> bool:
    """Insert a tenant; False if it is there already, or somebody else is inserting it now."""
    if tx.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first():
        return False
    maker = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    made = maker(tenants).values(tenant=tenant, title=title, created=time.time())
    done = tx.execute(made.on_conflict_do_nothing().returning(tenants.c.tenant))
    return done.first() is not None


def get(tx: Connection, tenant: str) -> Tenant | None:
    """One tenant."""
    row = tx.execute(select(tenants).where(tenants.c.tenant == tenant)).mappings().first()
    return None if row is None else _tenant(row)


def listing(tx: Connection) -> list[Tenant]:
    """All tenants, by name."""
    return [
        _tenant(row) for row in tx.execute(select(tenants).order_by(tenants.c.tenant)).mappings()
    ]


def set_status(tx: Connection, tenant: str, status: str) -> None:
    """Change a tenant's status."""
    tx.execute(update(tenants).where(tenants.c.tenant == tenant).values(status=status))


def set_weight(tx: Connection, tenant: str, weight: float) -> None:
    """Change a tenant's weight."""
    tx.execute(update(tenants).where(tenants.c.tenant == tenant).values(weight=weight))


def weighed(tx: Connection) -> dict[str, float]:
    """The weights of all tenants that have one of their own."""
    query = select(tenants.c.tenant, tenants.c.weight).where(tenants.c.weight != 1.0)
    return {row.tenant: row.weight for row in tx.execute(query)}


def suspended(tx: Connection) -> set[str]:
    """All tenants that are suspended."""
    query = select(tenants.c.tenant).where(tenants.c.status == "suspended")
    return set(tx.execute(query).scalars())


def _tenant(row: Any) -> Tenant:
    return Tenant(row["tenant"], row["title"], row["status"], row["created"], row["weight"])
