"""The table of members, and all SQL over it."""

import time
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    String,
    Table,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)

from tapster.core.db import metadata

members = Table(
    "members",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("role", String(64), nullable=False),
    Column("tenants", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("password", String(200)),
    Column("subject", String(700)),
    Column("created", Float, nullable=False),
    Column("last_seen", Float),
    UniqueConstraint("tenant", "name", name="uq_members_tenant"),
)


def add(tx: Connection, tenant: str, identifier: str, **values: Any) -> None:
    """Insert a member."""
    row = {"id": identifier, "tenant": tenant, "status": "active", "created": time.time()}
    tx.execute(insert(members).values(**row, **values))


def change(tx: Connection, tenant: str, identifier: str, **values: Any) -> None:
    """Change columns of a member."""
    here = (members.c.tenant == tenant, members.c.id == identifier)
    tx.execute(update(members).where(*here).values(**values))


def remove(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete a member."""
    tx.execute(delete(members).where(members.c.tenant == tenant, members.c.id == identifier))


def get(tx: Connection, tenant: str, identifier: str, *, lock: bool = False) -> Any:
    """A member's row by id, or None; with `lock` nobody else changes it until the end of `tx`."""
    query = select(members).where(members.c.tenant == tenant, members.c.id == identifier)
    query = query.with_for_update() if lock else query
    return tx.execute(query).mappings().first()


def named(tx: Connection, tenant: str, name: str) -> Any:
    """A member's row by name, or None."""
    query = select(members).where(members.c.tenant == tenant, members.c.name == name)
    return tx.execute(query).mappings().first()


def of_subject(tx: Connection, tenant: str, subject: str) -> Any:
    """The row of the member whom a provider calls so, or None."""
    query = select(members).where(members.c.tenant == tenant, members.c.subject == subject)
    return tx.execute(query).mappings().first()


def locked(tx: Connection, tenant: str, role: str) -> list[str]:
    """Ids of a tenant's members who have a role and may sign in, theirs until the end of `tx`."""
    query = select(members.c.id).where(
        members.c.tenant == tenant, members.c.role == role, members.c.status == "active"
    )
    return list(tx.execute(query.order_by(members.c.id).with_for_update()).scalars())


def listing(tx: Connection, tenant: str) -> list[Any]:
    """A tenant's members, by name."""
    query = select(members).where(members.c.tenant == tenant).order_by(members.c.name)
    return list(tx.execute(query).mappings())
