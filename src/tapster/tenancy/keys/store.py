"""The table of API keys, and all SQL over it."""

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    String,
    Table,
    delete,
    insert,
    or_,
    select,
    update,
)

from tapster.core.db import metadata

_LIST = JSON(none_as_null=True)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("digest", String(64), nullable=False, unique=True, info={"secret": True}),
    Column("rights", JSON, nullable=False),
    Column("expires", Float),
    Column("created", Float, nullable=False),
    Column("name", String(100), nullable=False, server_default=""),
    Column("prefix", String(16), nullable=False, server_default=""),
    Column("role", String(64), nullable=False, server_default=""),
    Column("made_by", String(300), nullable=False, server_default=""),
    Column("endpoints", _LIST),
    Column("tenants", _LIST),
    Column("last_used", Float),
    Column("revoked", Float),
    Column("old_digest", String(64), unique=True, index=True, info={"secret": True}),
    Column("old_expires", Float),
)

# What data planes must know of a key.
_PLANNED: Final = (
    "id", "tenant", "digest", "rights", "role", "expires", "endpoints", "old_digest", "old_expires",
)  # fmt: skip


def add(tx: Connection, tenant: str, identifier: str, digest: str, **values: Any) -> None:
    """Insert a key."""
    row = {"id": identifier, "tenant": tenant, "digest": digest, "created": time.time()}
    tx.execute(insert(keys).values(**row, **values))


def change(tx: Connection, tenant: str, identifier: str, **values: Any) -> None:
    """Change columns of a key."""
    here = (keys.c.tenant == tenant, keys.c.id == identifier)
    tx.execute(update(keys).where(*here).values(**values))


def remove(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete a key, if it is there."""
    tx.execute(delete(keys).where(keys.c.tenant == tenant, keys.c.id == identifier))


def get(tx: Connection, tenant: str, identifier: str) -> Any:
    """One key's row, or None."""
    query = select(keys).where(keys.c.tenant == tenant, keys.c.id == identifier)
    return tx.execute(query).mappings().first()


def listing(tx: Connection, tenant: str) -> list[Any]:
    """A tenant's keys, newest first."""
    query = select(keys).where(keys.c.tenant == tenant)
    return list(tx.execute(query.order_by(keys.c.created.desc(), keys.c.id)).mappings())


def of_role(tx: Connection, tenant: str, role: str) -> list[str]:
    """Ids of a tenant's keys that have a role and are not revoked."""
    query = select(keys.c.id).where(
        keys.c.tenant == tenant, keys.c.role == role, keys.c.revoked.is_(None)
    )
    return list(tx.execute(query).scalars())


def find(tx: Connection, digest: str) -> Any:
    """The key with this digest, now or formerly, of whichever tenant: it names the tenant."""
    query = select(keys).where(or_(keys.c.digest == digest, keys.c.old_digest == digest))
    return tx.execute(query).mappings().first()


def valid(
    tx: Connection, now: float, only: Sequence[str] = (), after: str = "", most: int = 0
) -> list[Any]:
    """Keys of every tenant that are neither revoked nor expired, for the plan, in order of ids.

    `only` these ids; so many at `most`, those with ids beyond `after`.
    """
    query = select(*(keys.c[name] for name in _PLANNED)).where(
        keys.c.revoked.is_(None), or_(keys.c.expires.is_(None), keys.c.expires > now)
    )
    if only:
        query = query.where(keys.c.id.in_(only))
    if after:
        query = query.where(keys.c.id > after)
    if most:
        query = query.limit(most)
    return list(tx.execute(query.order_by(keys.c.id)).mappings())


def used(tx: Connection, identifier: str, at: float) -> None:
    """Remember that a key, of whichever tenant, was used at a time, if that is news."""
    news = or_(keys.c.last_used.is_(None), keys.c.last_used < at)
    tx.execute(update(keys).where(keys.c.id == identifier, news).values(last_used=at))
