"""The table of endpoints and all SQL over it."""

import time
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)

from tapster.contract.control import Endpoint
from tapster.core.crypto import new_id
from tapster.core.db import metadata

# A deployment goes through two plans: `prepare` loads the new version everywhere beside the old
# one, `switch` moves the traffic. `revision` is the plan that the current phase waits for.
endpoints = Table(
    "endpoints",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("status", String(16), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("serving", JSON(none_as_null=True)),
    Column("pending", JSON(none_as_null=True)),
    Column("previous", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    UniqueConstraint("tenant", "name"),
)

_SHOWN = [column for column in endpoints.c if column.name not in {"id", "phase", "revision"}]


def add(tx: Connection, tenant: str, name: str) -> None:
    """Insert an idle endpoint."""
    now = time.time()
    tx.execute(
        insert(endpoints).values(
            id=new_id("ep"),
            tenant=tenant,
            name=name,
            status="idle",
            phase="",
            revision=0,
            created=now,
            updated=now,
        )
    )


def get(tx: Connection, tenant: str, name: str) -> Endpoint | None:
    """One endpoint of a tenant."""
    query = select(*_SHOWN).where(endpoints.c.tenant == tenant, endpoints.c.name == name)
    row = tx.execute(query).mappings().first()
    return Endpoint(**row) if row else None


def listing(tx: Connection, tenant: str) -> list[Endpoint]:
    """A tenant's endpoints by name."""
    query = select(*_SHOWN).where(endpoints.c.tenant == tenant).order_by(endpoints.c.name)
    return [Endpoint(**row) for row in tx.execute(query).mappings()]


def change(tx: Connection, tenant: str, name: str, **values: Any) -> None:
    """Change an endpoint."""
    tx.execute(
        update(endpoints)
        .where(endpoints.c.tenant == tenant, endpoints.c.name == name)
        .values(updated=time.time(), **values)
    )


def remove(tx: Connection, tenant: str, name: str) -> None:
    """Delete an endpoint."""
    tx.execute(delete(endpoints).where(endpoints.c.tenant == tenant, endpoints.c.name == name))


def everywhere(tx: Connection) -> list[Any]:
    """Every tenant's endpoints, for the plan."""
    return list(tx.execute(select(endpoints).order_by(endpoints.c.id)).mappings())
