"""The table of revisions, and all SQL over it."""

import secrets
import time
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    delete,
    func,
    insert,
    select,
)

from tapster.core.db import metadata

# The lock of whoever adds a revision, held until its transaction ends.
_REVISING: Final = 0x7A957E12

# One line a change that the data plane must hear of; its number is the plan's number. `mark` is
# random: two histories that have the same number have another mark there.
revisions = Table(
    "revisions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False),
    Column("what", String(300), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False, server_default=""),
    Column("ref", String(100), nullable=False, server_default=""),
    Column("mark", String(16), nullable=False, server_default=""),
    sqlite_autoincrement=True,
    info={"unwitnessed": True},
)


def revise(tx: Connection, tenant: str, what: str, kind: str, ref: str) -> int:
    """Add a tenant's revision; returns its number. Numbers are given in the order of commits."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_REVISING)))
    done = tx.execute(
        insert(revisions).values(
            tenant=tenant,
            what=what[:300],
            at=time.time(),
            kind=kind,
            ref=ref,
            mark=secrets.token_hex(8),
        )
    )
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def revision(tx: Connection) -> int:
    """The newest revision's number, over all tenants; 0 before the first."""
    return int(tx.execute(select(func.coalesce(func.max(revisions.c.number), 0))).scalar_one())


def mark(tx: Connection, number: int) -> str:
    """The mark of a revision, of whichever tenant; "" for one that is not there or has none."""
    query = select(revisions.c.mark).where(revisions.c.number == number)
    return str(tx.execute(query).scalar_one_or_none() or "")


def history(tx: Connection, after: int, most: int) -> list[Any]:
    """The revisions of all tenants beyond a number, oldest first, at most so many."""
    query = select(revisions).where(revisions.c.number > after).order_by(revisions.c.number)
    return list(tx.execute(query.limit(most)).mappings())


def forget(tx: Connection, until: int) -> None:
    """Delete the revisions of all tenants up to a number."""
    tx.execute(delete(revisions).where(revisions.c.number <= until))
