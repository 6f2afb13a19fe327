"""Tables of data keys and of the changes of them, and all SQL over them."""

import time
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from tapster.core.db import metadata

# `wrapped` is by the master key called `master`. One of a tenant's is in force; of the former ones
# `retired` says since when.
data_keys = Table(
    "data_keys",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("master", String(16), nullable=False),
    Column("wrapped", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("retired", Float),
    Index(
        "uq_data_keys_current",
        "tenant",
        unique=True,
        sqlite_where=text("retired IS NULL"),
        postgresql_where=text("retired IS NULL"),
    ),
    info={"unwitnessed": True},
)

# A tenant is given another data key. `plan`: number of the plan that brings it to data planes;
# `objects` are what lies sealed, `resealed` those that are under the new key.
rekeyings = Table(
    "rekeyings",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("asked_by", String(64), nullable=False),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("key", String(32), nullable=False),
    Column("plan", Integer, nullable=False),
    Column("objects", Integer, nullable=False),
    Column("resealed", Integer, nullable=False),
    Column("problem", String(300), nullable=False),
    info={"unwitnessed": True},
)

# The lock of whoever adds, wraps or destroys keys, held until its transaction ends.
_CHANGING: Final = 0x7A957E15


def lock(tx: Connection) -> None:
    """Keep others from changing keys of any tenant until the transaction ends."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_CHANGING)))


def current(tx: Connection, tenant: str) -> str:
    """A tenant's data key in force, as a master key has wrapped it; "" if it has none."""
    query = select(data_keys.c.wrapped).where(
        data_keys.c.tenant == tenant, data_keys.c.retired.is_(None)
    )
    return str(tx.execute(query).scalar() or "")


def wrapped(tx: Connection, tenant: str, identifier: str) -> str:
    """One of a tenant's keys; "" if it is not there."""
    query = select(data_keys.c.wrapped).where(
        data_keys.c.tenant == tenant, data_keys.c.id == identifier
    )
    return str(tx.execute(query).scalar() or "")


def of_tenant(tx: Connection, tenant: str) -> list[str]:
    """The ids of a tenant's keys, the one in force first."""
    query = select(data_keys.c.id).where(data_keys.c.tenant == tenant)
    order = (data_keys.c.retired.is_not(None), data_keys.c.created.desc())
    return list(tx.execute(query.order_by(*order)).scalars())


def everything(tx: Connection) -> dict[str, tuple[str, ...]]:
    """The wrapped keys of every tenant, those in force first: for the plan."""
    query = select(data_keys.c.tenant, data_keys.c.wrapped)
    order = (data_keys.c.retired.is_not(None), data_keys.c.created.desc())
    found: dict[str, tuple[str, ...]] = {}
    for row in tx.execute(query.order_by(*order)):
        found[row.tenant] = (*found.get(row.tenant, ()), row.wrapped)
    return found


def masters(tx: Connection) -> dict[str, int]:
    """How many keys, of any tenant, each master key (its name) has wrapped."""
    query = select(data_keys.c.master, func.count()).group_by(data_keys.c.master)
    return {name: int(count) for name, count in tx.execute(query)}


def wrapped_by_others(tx: Connection, master: str) -> list[tuple[str, str, str]]:
    """(tenant, id, wrapped) of every tenant's keys that another master key has wrapped."""
    query = select(data_keys.c.tenant, data_keys.c.id, data_keys.c.wrapped)
    query = query.where(data_keys.c.master != master)
    return [(row.tenant, row.id, row.wrapped) for row in tx.execute(query)]


def any_key(tx: Connection) -> tuple[str, str] | None:
    """Tenant and wrapped key of any tenant, to try a master key on; None when there is none."""
    row = tx.execute(select(data_keys.c.tenant, data_keys.c.wrapped).limit(1)).first()
    return None if row is None else (row[0], row[1])


def add(tx: Connection, tenant: str, identifier: str, wrapped: str, master: str) -> None:
    """Insert a key, in force."""
    tx.execute(
        insert(data_keys).values(
            tenant=tenant, id=identifier, wrapped=wrapped, master=master, created=time.time()
        )
    )


def rewrap(tx: Connection, tenant: str, identifier: str, wrapped: str, master: str) -> None:
    """Put a key in another wrapping."""
    here = (data_keys.c.tenant == tenant, data_keys.c.id == identifier)
    tx.execute(update(data_keys).where(*here).values(wrapped=wrapped, master=master))


def retire(tx: Connection, tenant: str) -> None:
    """Have a tenant's key in force be a former one."""
    here = (data_keys.c.tenant == tenant, data_keys.c.retired.is_(None))
    tx.execute(update(data_keys).where(*here).values(retired=time.time()))


def destroy_former(tx: Connection, tenant: str) -> list[str]:
    """Delete a tenant's former keys; returns their ids."""
    _overwrite(tx)
    gone = of_tenant(tx, tenant)[1:]
    tx.execute(
        delete(data_keys).where(data_keys.c.tenant == tenant, data_keys.c.retired.is_not(None))
    )
    return gone


def destroy(tx: Connection, tenant: str) -> list[str]:
    """Delete all keys of a tenant; returns their ids, that in force first."""
    _overwrite(tx)
    gone = of_tenant(tx, tenant)
    tx.execute(delete(data_keys).where(data_keys.c.tenant == tenant))
    return gone


def _overwrite(tx: Connection) -> None:
    """Have SQLite overwrite what is deleted: the master key would open it in a copy of the file."""
    if tx.dialect.name == "sqlite":
        tx.exec_driver_sql("PRAGMA secure_delete=ON")


# -- another key for a tenant


def begin(tx: Connection, tenant: str, **values: Any) -> None:
    """Insert a change of a tenant's key."""
    fixed = {"tenant": tenant, "began": time.time(), "objects": 0, "resealed": 0, "problem": ""}
    tx.execute(insert(rekeyings).values(**fixed, **values))


def note(tx: Connection, tenant: str, identifier: str, **values: Any) -> None:
    """Write down how far one is."""
    mine = (rekeyings.c.tenant == tenant, rekeyings.c.id == identifier)
    tx.execute(update(rekeyings).where(*mine).values(**values))


def unfinished(tx: Connection) -> list[Any]:
    """Every change under way, of any tenant."""
    query = select(rekeyings).where(rekeyings.c.ended.is_(None)).order_by(rekeyings.c.began)
    return list(tx.execute(query).mappings())


def history(tx: Connection, tenant: str) -> list[Any]:
    """A tenant's changes, newest first."""
    query = select(rekeyings).where(rekeyings.c.tenant == tenant)
    return list(tx.execute(query.order_by(rekeyings.c.began.desc())).mappings())
