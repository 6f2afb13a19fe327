"""The tables of sessions, of attempts to begin one and of sign-ins under way; all SQL over them."""

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.core.db import metadata

# The lock of whoever fills a bucket.
_TURNS: Final = 0x7A957E13

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("member", String(32), nullable=False),
    Column("digest", String(64), nullable=False, unique=True, info={"secret": True}),
    Column("how", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("last_used", Float),
    Index("ix_sessions_tenant", "tenant", "member"),
)

# How full the bucket of whoever tries (a member's name, an address) was at a time.
attempts = Table(
    "attempts",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("who", String(300), primary_key=True),
    Column("level", Float, nullable=False),
    Column("at", Float, nullable=False),
    info={"unwitnessed": True},
)

sign_ins = Table(
    "sign_ins",
    metadata,
    Column("state", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("secret", String(64), nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("verifier", String(128), nullable=False),
    Column("redirect", String(500), nullable=False),
    Column("expires", Float, nullable=False),
    info={"unwitnessed": True},
)


def add(tx: Connection, tenant: str, identifier: str, **values: Any) -> None:
    """Insert a session; those of its tenant that have ended are cleared away.

    Others' are not: whoever signs in would stand in their tenants' records.
    """
    ended = sessions.c.expires <= time.time()
    tx.execute(delete(sessions).where(sessions.c.tenant == tenant, ended))
    row = {"id": identifier, "tenant": tenant, "created": time.time()}
    tx.execute(insert(sessions).values(**row, **values))


def find(tx: Connection, digest: str) -> Any:
    """The session with this digest, of whichever tenant: the digest is what names the tenant."""
    return tx.execute(select(sessions).where(sessions.c.digest == digest)).mappings().first()


def get(tx: Connection, tenant: str, identifier: str) -> Any:
    """One session's row, or None."""
    query = select(sessions).where(sessions.c.tenant == tenant, sessions.c.id == identifier)
    return tx.execute(query).mappings().first()


def listing(tx: Connection, tenant: str, member: str = "") -> list[Any]:
    """A tenant's sessions, or those of a member (id), newest first."""
    query = select(sessions).where(sessions.c.tenant == tenant, sessions.c.expires > time.time())
    if member:
        query = query.where(sessions.c.member == member)
    return list(tx.execute(query.order_by(sessions.c.created.desc())).mappings())


def valid(tx: Connection, now: float, only: Sequence[str] = ()) -> list[Any]:
    """Sessions of every tenant that have not ended, for the plan; `only` these ids."""
    query = select(sessions).where(sessions.c.expires > now)
    if only:
        query = query.where(sessions.c.id.in_(only))
    return list(tx.execute(query.order_by(sessions.c.id)).mappings())


def remove(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete a session."""
    tx.execute(delete(sessions).where(sessions.c.tenant == tenant, sessions.c.id == identifier))


def used(tx: Connection, identifier: str, at: float) -> None:
    """Remember that a session, of whichever tenant, was used at a time."""
    tx.execute(update(sessions).where(sessions.c.id == identifier).values(last_used=at))


def in_turn(tx: Connection) -> None:
    """Let nobody else look at buckets of any tenant until this transaction ends."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_TURNS)))


def level(tx: Connection, tenant: str, who: str) -> tuple[float, float]:
    """How full a bucket was, and when (seconds since 1970)."""
    query = select(attempts.c.level, attempts.c.at).where(
        attempts.c.tenant == tenant, attempts.c.who == who
    )
    row = tx.execute(query).first()
    return (row.level, row.at) if row else (0.0, 0.0)


def fill(tx: Connection, tenant: str, who: str, level: float) -> None:
    """Set how full a bucket is now."""
    here = (attempts.c.tenant == tenant, attempts.c.who == who)
    values = {"level": level, "at": time.time()}
    if tx.execute(update(attempts).where(*here).values(**values)).rowcount == 0:
        tx.execute(insert(attempts).values(tenant=tenant, who=who, **values))


def empty(tx: Connection, tenant: str, who: str) -> None:
    """Forget a bucket."""
    tx.execute(delete(attempts).where(attempts.c.tenant == tenant, attempts.c.who == who))


def sweep(tx: Connection, before: float) -> None:
    """Forget buckets of any tenant that nobody has filled since a time, as they are empty."""
    tx.execute(delete(attempts).where(attempts.c.at < before))


def begin(tx: Connection, tenant: str, state: str, **values: Any) -> None:
    """Insert a sign-in; those of any tenant that took too long are cleared away."""
    tx.execute(delete(sign_ins).where(sign_ins.c.expires <= time.time()))
    tx.execute(insert(sign_ins).values(tenant=tenant, state=state, **values))


def take(tx: Connection, state: str) -> Any:
    """The sign-in of this state, of whichever tenant, which is gone from now on; or None."""
    row = tx.execute(select(sign_ins).where(sign_ins.c.state == state)).mappings().first()
    if row is not None and tx.execute(delete(sign_ins).where(sign_ins.c.state == state)).rowcount:
        return row if row["expires"] > time.time() else None
    return None
