"""The table of roles that tenants made, and all SQL over it."""

import time
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from tapster.contract.control import Role
from tapster.core.db import metadata

roles = Table(
    "roles",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("role", String(64), primary_key=True),
    Column("rights", JSON, nullable=False),
    Column("description", String(300), nullable=False),
    Column("created", Float, nullable=False),
)


def get(tx: Connection, tenant: str, role: str) -> Role | None:
    """One role."""
    query = select(roles).where(roles.c.tenant == tenant, roles.c.role == role)
    row = tx.execute(query).mappings().first()
    return None if row is None else _role(row)


def listing(tx: Connection, tenant: str) -> list[Role]:
    """A tenant's own roles, by name."""
    query = select(roles).where(roles.c.tenant == tenant).order_by(roles.c.role)
    return [_role(row) for row in tx.execute(query).mappings()]


def everywhere(tx: Connection) -> dict[tuple[str, str], list[str]]:
    """Rights by tenant and role, of every tenant, for the plan."""
    rows = tx.execute(select(roles.c.tenant, roles.c.role, roles.c.rights))
    return {(row.tenant, row.role): list(row.rights) for row in rows}


def put(tx: Connection, tenant: str, role: str, rights: list[str], description: str) -> None:
    """Insert or change a role."""
    here = (roles.c.tenant == tenant, roles.c.role == role)
    values = {"rights": rights, "description": description}
    if tx.execute(update(roles).where(*here).values(**values)).rowcount == 0:
        tx.execute(insert(roles).values(tenant=tenant, role=role, created=time.time(), **values))


def remove(tx: Connection, tenant: str, role: str) -> bool:
    """Delete a role; False if there was none."""
    gone = tx.execute(delete(roles).where(roles.c.tenant == tenant, roles.c.role == role))
    return gone.rowcount > 0


def _role(row: Any) -> Role:
    return Role(row["role"], sorted(row["rights"]), row["description"], custom=True)
