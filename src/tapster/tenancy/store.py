"""Tables of tenants, keys and revisions, and all SQL over them."""

import secrets
import time
from typing import Any, Final

from sqlalchemy import (
    JSON,
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

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("created", Float, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("rights", JSON, nullable=False),
    Column("expires", Float),
    Column("created", Float, nullable=False),
)

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
)


def add_tenant(tx: Connection, tenant: str) -> bool:
    """Insert a tenant; False if it is there already."""
    if tx.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first():
        return False
    tx.execute(insert(tenants).values(tenant=tenant, created=time.time()))
    return True


def add_key(tx: Connection, tenant: str, identifier: str, digest: str, rights: list[str]) -> None:
    """Insert a key."""
    tx.execute(
        insert(keys).values(
            id=identifier, tenant=tenant, digest=digest, rights=rights, created=time.time()
        )
    )


def remove_key(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete a key, if it is there."""
    tx.execute(delete(keys).where(keys.c.tenant == tenant, keys.c.id == identifier))


def find_key(tx: Connection, digest: str) -> Any:
    """The key with this digest, of whichever tenant: the digest is what names the tenant."""
    return tx.execute(select(keys).where(keys.c.digest == digest)).mappings().first()


def all_keys(tx: Connection) -> list[Any]:
    """Keys of all tenants, for the plan."""
    return list(tx.execute(select(keys).order_by(keys.c.id)).mappings())


def revise(tx: Connection, tenant: str, what: str, kind: str, ref: str) -> int:
    """Add a revision; returns its number. Numbers are given in the order of commits."""
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
