"""The table of erasures, and all SQL over it; and over every row of a tenant."""

import time
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Float,
    String,
    Table,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from tapster.core.db import metadata

# `found` is what is destroyed, by kind, as far as it is known; `ended` is null while it goes on.
erasures = Table(
    "erasures",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("asked_by", String(64), nullable=False),
    Column("found", JSON, nullable=False),
    Column("receipt", JSON),
    info={"unwitnessed": True},
)

# What stays when a tenant goes: the erasures themselves, and the numbers of plans.
_OURS: Final = frozenset({"erasures", "data_keys", "revisions", "tenants"})


def begin(tx: Connection, tenant: str, identifier: str, asked_by: str) -> None:
    """Insert an erasure."""
    values = {"id": identifier, "tenant": tenant, "asked_by": asked_by, "began": time.time()}
    tx.execute(insert(erasures).values(**values, found={}))


def note(tx: Connection, tenant: str, identifier: str, found: dict[str, Any]) -> None:
    """Write down what an erasure destroys."""
    mine = (erasures.c.tenant == tenant) & (erasures.c.id == identifier)
    tx.execute(update(erasures).where(mine).values(found=found))


def end(
    tx: Connection, tenant: str, identifier: str, ended: float, receipt: dict[str, Any]
) -> None:
    """Close an erasure."""
    mine = (erasures.c.tenant == tenant) & (erasures.c.id == identifier)
    tx.execute(update(erasures).where(mine).values(ended=ended, receipt=receipt))


def ending(tx: Connection, tenant: str) -> Any:
    """The erasure of a tenant that is under way, or None."""
    mine = (erasures.c.tenant == tenant) & erasures.c.ended.is_(None)
    return tx.execute(select(erasures).where(mine)).mappings().first()


def unfinished(tx: Connection) -> list[Any]:
    """Every erasure under way, of any tenant."""
    return list(tx.execute(select(erasures).where(erasures.c.ended.is_(None))).mappings())


def gone(tx: Connection, since: float) -> list[str]:
    """Tenants, any tenant, that were erased after a time and have not been made again."""
    table = metadata.tables["tenants"]
    query = select(erasures.c.tenant).where(
        erasures.c.ended > since, erasures.c.tenant.not_in(select(table.c.tenant))
    )
    return sorted(set(tx.execute(query).scalars()))


def of_tenant(tx: Connection, tenant: str) -> list[Any]:
    """A tenant's erasures, newest first; a name may be given again, and erased again."""
    mine = erasures.c.tenant == tenant
    return list(
        tx.execute(select(erasures).where(mine).order_by(erasures.c.began.desc())).mappings()
    )


def overwrite(tx: Connection) -> None:
    """Have SQLite overwrite with zeros what the transaction deletes, of any tenant."""
    if tx.dialect.name == "sqlite":
        tx.exec_driver_sql("PRAGMA secure_delete=ON")


def remove_rows(tx: Connection, tenant: str, kept: Collection[str]) -> dict[str, int]:
    """Delete a tenant's rows from every table that has a tenant; returns the counts by table.

    So are rows of others that name it as their owner or consumer. `kept` are tables whose rows
    stay. Rows that others point at go last.
    """
    counts = {}
    for table in reversed(_emptied(kept)):
        here = or_(table.c.tenant == tenant, *_naming(table, tenant))
        done = tx.execute(delete(table).where(here))
        if done.rowcount:
            counts[table.name] = int(done.rowcount)
    return counts


def left(tx: Connection, tenant: str, kept: Collection[str]) -> dict[str, int]:
    """Rows of a tenant that are still there, by table."""
    counts = {}
    for table in _emptied(kept):
        here = or_(table.c.tenant == tenant, *_naming(table, tenant))
        query = select(func.count()).select_from(table).where(here)
        if found := int(tx.execute(query).scalar_one()):
            counts[table.name] = found
    return counts


def remove_tenant(tx: Connection, tenant: str) -> None:
    """Delete the tenant itself: its name is free."""
    table = metadata.tables["tenants"]
    tx.execute(delete(table).where(table.c.tenant == tenant))


def _emptied(kept: Collection[str]) -> list[Table]:
    return [
        table
        for table in metadata.sorted_tables
        if "tenant" in table.c and table.name not in _OURS and table.name not in kept
    ]


def _naming(table: Table, tenant: str) -> list[ColumnElement[bool]]:
    """Rows that are another's and name the tenant."""
    return [table.c[name] == tenant for name in ("owner", "consumer") if name in table.c]
