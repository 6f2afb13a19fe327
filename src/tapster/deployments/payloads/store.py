"""The tables of rules, of who agrees, and of files of payloads; all SQL over them."""

import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.core.db import metadata

# What an endpoint's owner wants written down; `active` if it still is. Files live on by `keep`
# (seconds) after it is switched off; what is older than `since` is not taken in any more.
logging = Table(
    "payload_rules",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("rules", JSON, nullable=False),
    Column("keep", Float, nullable=False),
    Column("salt", String(64), nullable=False),
    Column("since", Float, nullable=False),
    PrimaryKeyConstraint("tenant", "endpoint"),
)
# That a tenant lets its own requests to another's endpoint be written down, for the owner.
agreements = Table(
    "payload_agreements",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("created", Float, nullable=False),
    PrimaryKeyConstraint("tenant", "owner", "endpoint"),
)
# Blobs of payloads, by day (UTC); those that are `gone` are shown to nobody and removed soon.
files = Table(
    "payload_files",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("day", String(10), nullable=False),
    Column("first", Float, nullable=False),
    Column("last", Float, nullable=False),
    Column("records", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("gone", Boolean, nullable=False),
    Index("ix_payload_files_endpoint", "tenant", "endpoint"),
)


def put(
    tx: Connection, tenant: str, endpoint: str, *, rules: Mapping[str, Any], keep: float, salt: str
) -> None:
    """Write an endpoint's rules down, and that they are in force."""
    values = {"active": True, "rules": dict(rules), "keep": keep}
    here = (logging.c.tenant == tenant, logging.c.endpoint == endpoint)
    if tx.execute(update(logging).where(*here).values(**values)).rowcount == 0:
        tx.execute(
            insert(logging).values(tenant=tenant, endpoint=endpoint, salt=salt, since=0.0, **values)
        )


def stop(tx: Connection, tenant: str, endpoint: str) -> bool:
    """Put rules out of force; whether they were in force."""
    here = (
        logging.c.tenant == tenant,
        logging.c.endpoint == endpoint,
        logging.c.active,
    )
    changed = update(logging).where(*here).values(active=False)
    return tx.execute(changed).rowcount > 0


def get(tx: Connection, tenant: str, endpoint: str) -> Mapping[str, Any] | None:
    """An endpoint's rules, in force or not."""
    here = (logging.c.tenant == tenant, logging.c.endpoint == endpoint)
    query = select(logging).where(*here)
    row = tx.execute(query).mappings().first()
    return _named(row) if row else None


def active(tx: Connection, tenants: Collection[str]) -> list[Mapping[str, Any]]:
    """The rules in force of any tenant's endpoints, of any tenant of these."""
    query = select(logging).where(logging.c.tenant.in_(tenants), logging.c.active)
    return [
        {str(name): value for name, value in row.items()} for row in tx.execute(query).mappings()
    ]


def agree(tx: Connection, tenant: str, owner: str, endpoint: str) -> bool:
    """Note that a tenant agrees; whether it is new."""
    if owner in agreed(tx, tenant, endpoint):
        return False
    row = {"tenant": tenant, "owner": owner, "endpoint": endpoint, "created": time.time()}
    tx.execute(insert(agreements).values(**row))
    return True


def disagree(tx: Connection, tenant: str, owner: str, endpoint: str) -> bool:
    """Forget that a tenant agrees; whether it did."""
    here = (
        agreements.c.tenant == tenant,
        agreements.c.owner == owner,
        agreements.c.endpoint == endpoint,
    )
    return tx.execute(delete(agreements).where(*here)).rowcount > 0


def agreed(tx: Connection, tenant: str, endpoint: str) -> list[str]:
    """The owners with whose endpoint of this name a tenant agrees."""
    query = select(agreements.c.owner).where(
        agreements.c.tenant == tenant, agreements.c.endpoint == endpoint
    )
    return list(tx.execute(query).scalars())


def consumers(tx: Connection, owners: Collection[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Who agrees, of any tenant, by owner and endpoint, of these owners'."""
    query = select(agreements).where(agreements.c.owner.in_(owners)).order_by(agreements.c.tenant)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in tx.execute(query):
        key = (row.owner, row.endpoint)
        found[key] = (*found.get(key, ()), row.tenant)
    return found


def forget(tx: Connection, tenant: str, endpoint: str) -> None:
    """Forget an endpoint's rules and who agrees with them, any tenant; its files are gone."""
    tx.execute(delete(logging).where(logging.c.tenant == tenant, logging.c.endpoint == endpoint))
    here = (agreements.c.owner == tenant, agreements.c.endpoint == endpoint)
    tx.execute(delete(agreements).where(*here))
    drop_all(tx, tenant, endpoint)


def add(tx: Connection, tenant: str, row: Mapping[str, Any]) -> None:
    """Insert a tenant's file."""
    tx.execute(insert(files).values(tenant=tenant, gone=False, **row))


def of_endpoint(tx: Connection, tenant: str, endpoint: str, since: float) -> list[Any]:
    """The files of an endpoint that hold something from `since` on, oldest first."""
    query = select(files).where(
        files.c.tenant == tenant,
        files.c.endpoint == endpoint,
        files.c.last >= since,
        ~files.c.gone,
    )
    return list(tx.execute(query.order_by(files.c.first, files.c.id)))


def newest(tx: Connection, tenant: str, endpoint: str, day: str) -> Any:
    """The newest file of an endpoint's day; None if there is none."""
    query = select(files).where(
        files.c.tenant == tenant, files.c.endpoint == endpoint, files.c.day == day, ~files.c.gone
    )
    return tx.execute(query.order_by(files.c.last.desc(), files.c.id).limit(1)).first()


def drop(tx: Connection, tenant: str, identifiers: Collection[str]) -> int:
    """Let a tenant's files be gone; how many were not."""
    here = (files.c.tenant == tenant, files.c.id.in_(identifiers), ~files.c.gone)
    return tx.execute(update(files).where(*here).values(gone=True)).rowcount


def drop_all(tx: Connection, tenant: str, endpoint: str) -> int:
    """Let an endpoint's files be gone, and what is still to come of before; how many payloads the
    files held."""
    mine = (logging.c.tenant == tenant, logging.c.endpoint == endpoint)
    tx.execute(update(logging).where(*mine).values(since=time.time()))
    here = (files.c.tenant == tenant, files.c.endpoint == endpoint, ~files.c.gone)
    count = tx.execute(select(func.sum(files.c.records)).where(*here)).scalar()
    tx.execute(update(files).where(*here).values(gone=True))
    return int(count or 0)


def expired(tx: Connection, now: float) -> list[Any]:
    """The files of any tenant whose newest payload is older than its endpoint keeps them, and
    those of endpoints without rules."""
    joined = files.outerjoin(
        logging,
        (logging.c.tenant == files.c.tenant) & (logging.c.endpoint == files.c.endpoint),
    )
    query = select(files.c.tenant, files.c.id).select_from(joined)
    old = (logging.c.keep.is_(None)) | (files.c.last < now - logging.c.keep)
    return list(tx.execute(query.where(~files.c.gone, old)))


def by_age(tx: Connection, tenant: str) -> list[Any]:
    """A tenant's files, newest first."""
    query = select(files.c.id, files.c.bytes).where(files.c.tenant == tenant, ~files.c.gone)
    return list(tx.execute(query.order_by(files.c.last.desc(), files.c.id)))


def gone(tx: Connection) -> list[Any]:
    """The files of any tenant that nobody is to see any more."""
    return list(tx.execute(select(files.c.tenant, files.c.id).where(files.c.gone)))


def remove(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete the row of a tenant's file."""
    tx.execute(delete(files).where(files.c.tenant == tenant, files.c.id == identifier))


def sizes(tx: Connection) -> dict[str, int]:
    """Bytes of payloads of any tenant, by tenant."""
    query = select(files.c.tenant, func.sum(files.c.bytes)).group_by(files.c.tenant)
    return {tenant: int(size) for tenant, size in tx.execute(query)}


def blob_keys(tx: Connection) -> set[str]:
    """The blobs of all tenants' files."""
    query = select(files.c.tenant, files.c.id)
    return {f"{row.tenant}/payloads/{row.id}" for row in tx.execute(query)}


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}
