"""The tables of the ledger and all SQL that writes to them; `reading/store.py` reads them.

`usage_totals` is what was last heard of each record of a journal, `usage_segments` which journals
there are and whether they are in whole: together they make a report count once, however often it
is sent. `usage_lines` only grows: triggers of the database refuse anything else, except that names
give way to a pseudonym. `usage_hours` and `usage_days` are its sums.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from tapster.core.db import metadata
from tapster.tenancy.erasure.store import erasures
from tapster.tenancy.ledger.tariffs import COUNTERS
from tapster.tenancy.tenants.store import tenants

Key = tuple[str, str, str]
AMOUNTS: Final = (*COUNTERS, "amount")
# What lines of one sum have in common.
LABEL: Final = (
    "kind", "month", "tenant", "key", "owner", "endpoint", "name", "model", "version", "machine",
    "price", "above",
)  # fmt: skip
# Counting is nobody's act: it leaves no line in the audit.
_COUNTS: Final = {"unwitnessed": True}
# One report at a time, where a database has many writers.
_LOCK: Final = 0x7A9_1ED6E4


def _label() -> list[Column[Any]]:
    """`kind` is calls, training or storage; `month` is the bill's; `above` the tier's bound."""
    return [
        Column("kind", String(16), nullable=False),
        Column("month", String(7), nullable=False),
        Column("tenant", String(64), nullable=False),
        Column("key", String(64), nullable=False),
        Column("owner", String(64), nullable=False),
        Column("endpoint", String(64), nullable=False),
        Column("name", String(128), nullable=False),
        Column("model", String(128), nullable=False),
        Column("version", String(128), nullable=False),
        Column("machine", String(255), nullable=False),
        Column("price", String(32), nullable=False),
        Column("above", BigInteger, nullable=False),
    ]


def _counters(*more: str) -> list[Column[Any]]:
    return [Column(name, BigInteger, nullable=False) for name in (*COUNTERS, *more)]


lines = Table(
    "usage_lines",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Float, nullable=False),
    Column("hour", String(13), nullable=False),
    Column("day", String(10), nullable=False),
    *_label(),
    *_counters("amount"),
    Index("ix_usage_lines_tenant_day", "tenant", "day"),
    Index("ix_usage_lines_owner_day", "owner", "day"),
    sqlite_autoincrement=True,
    info=_COUNTS,
)


def _sums(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("period", String(13), primary_key=True),
        Column("series", String(32), primary_key=True),
        *_label(),
        *_counters("amount"),
        Index(f"ix_{name}_tenant_period", "tenant", "period"),
        Index(f"ix_{name}_owner_period", "owner", "period"),
        info=_COUNTS,
    )


hours = _sums("usage_hours")
days = _sums("usage_days")

totals = Table(
    "usage_totals",
    metadata,
    Column("machine", String(255), primary_key=True),
    Column("segment", String(64), primary_key=True),
    Column("record", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", String(64), nullable=False),
    Column("label", String(32), nullable=False),
    *[Column(name, BigInteger, nullable=False) for name in COUNTERS[:6]],
    info=_COUNTS,
)

# A journal, or anything else that may be counted once only: a job, an hour's sample of storage.
segments = Table(
    "usage_segments",
    metadata,
    Column("machine", String(255), primary_key=True),
    Column("segment", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("day", String(10), nullable=False),
    Column("state", String(8), nullable=False),
    Column("at", Float, nullable=False),
    Index("ix_usage_segments_machine_day", "machine", "day"),
    info=_COUNTS,
)

machines = Table(
    "usage_machines",
    metadata,
    Column("machine", String(255), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("open_days", Text, nullable=False),
    Column("at", Float, nullable=False),
    info=_COUNTS,
)

# What a payer has used under a price in a month: where in its tiers it stands.
meters = Table(
    "usage_meters",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("price", String(32), primary_key=True),
    Column("month", String(7), primary_key=True),
    *_counters("amount"),
    info=_COUNTS,
)


def lock(tx: Connection) -> None:
    """Wait until nobody else writes to the ledger. SQLite's transactions are alone anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(func.pg_advisory_xact_lock(_LOCK).select())


def known_segments(tx: Connection, machine: str, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(day, state) of a machine's segments, which count what any tenant used."""
    query = select(segments.c.segment, segments.c.day, segments.c.state).where(
        segments.c.machine == machine, segments.c.segment.in_(list(ids))
    )
    return {row.segment: (row.day, row.state) for row in tx.execute(query)}


def known_totals(
    tx: Connection, machine: str, ids: Iterable[str], span: tuple[int, int]
) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
    """Label and counters of the records from one to another of some segments, of any tenant."""
    query = select(totals).where(
        totals.c.machine == machine,
        totals.c.segment.in_(list(ids)),
        totals.c.record.between(*span),
    )
    return {(row[1], row[2]): (row[4], tuple(row[5:])) for row in tx.execute(query)}


def keep_totals(tx: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remember what was last heard of records, of any tenant."""
    _put(tx, totals, rows, replace=COUNTERS[:6])


def keep_segments(tx: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remember segments, which count what any tenant used; totals of those taken whole may go."""
    _put(tx, segments, rows, replace=("state", "at"))
    for row in rows:
        if row["state"] == "taken":
            tx.execute(
                delete(totals).where(
                    totals.c.machine == row["machine"], totals.c.segment == row["segment"]
                )
            )


def once(tx: Connection, tenant: str, segment: str, day: str, at: float) -> bool:
    """Note that something of a tenant is counted; False if it has been."""
    row = {"machine": "", "segment": segment, "tenant": tenant, "day": day, "state": "taken"}
    made = _insert(tx, segments).values(**row, at=at)
    done = tx.execute(made.on_conflict_do_nothing().returning(segments.c.segment))
    return done.first() is not None


def counted(tx: Connection, segment: str) -> bool:
    """Whether something of any tenant that may be counted once has been."""
    query = select(segments.c.segment).where(
        segments.c.machine == "", segments.c.segment == segment
    )
    return tx.execute(query).first() is not None


def keep_open_days(tx: Connection, machine: str, tenant: str, open_days: str, at: float) -> None:
    """Remember which days a machine may still count on."""
    row = {"machine": machine, "tenant": tenant, "open_days": open_days, "at": at}
    _put(tx, machines, [row], replace=("open_days", "at"))


def open_days(tx: Connection, machine: str) -> str | None:
    """The days that a machine may still count on, for any tenant; None of one never heard of."""
    query = select(machines.c.open_days).where(machines.c.machine == machine)
    return tx.execute(query).scalar()


def mark(tx: Connection, machine: str) -> str:
    """What another report of a machine changes, for any tenant; empty of one never heard of."""
    at = tx.execute(select(machines.c.at).where(machines.c.machine == machine)).scalar()
    return "" if at is None else repr(at)


def untaken(tx: Connection, machine: str, day: str) -> int:
    """How many segments of a machine's day, with what any tenant used, are not in whole."""
    query = select(func.count()).where(
        segments.c.machine == machine, segments.c.day == day, segments.c.state != "taken"
    )
    return int(tx.execute(query).scalar_one())


def metered(
    tx: Connection, tenants: Iterable[str], prices: Iterable[str]
) -> dict[Key, dict[str, int]]:
    """Where every tenant named stands under prices: by (tenant, price, month)."""
    query = select(meters).where(
        meters.c.tenant.in_(list(tenants)), meters.c.price.in_(list(prices))
    )
    return {
        (row["tenant"], row["price"], row["month"]): {name: row[name] for name in AMOUNTS}
        for row in tx.execute(query).mappings()
    }


def due(
    tx: Connection, tenants: Iterable[str], months: Iterable[str]
) -> dict[tuple[str, str], int]:
    """What every tenant named is to pay for months, under all prices: by (tenant, month)."""
    query = select(meters.c.tenant, meters.c.month, meters.c.amount).where(
        meters.c.tenant.in_(list(tenants)), meters.c.month.in_(list(months))
    )
    found: dict[tuple[str, str], int] = {}
    for row in tx.execute(query):
        found[row.tenant, row.month] = found.get((row.tenant, row.month), 0) + row.amount
    return found


def keep_meters(tx: Connection, found: Mapping[Key, Mapping[str, int]]) -> None:
    """Remember where tenants stand under prices, of all tenants that there are in `found`."""
    rows = [
        {"tenant": key[0], "price": key[1], "month": key[2], **dict(counts)}
        for key, counts in sorted(found.items())
    ]
    _put(tx, meters, rows, replace=AMOUNTS)


def add_lines(tx: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append lines of any tenant."""
    tx.execute(insert(lines), [dict(row) for row in rows])


def add_sums(tx: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add to sums of any tenant."""
    _put(tx, table, rows, add=AMOUNTS)


def erased(tx: Connection, names: Iterable[str]) -> dict[str, float | None]:
    """Which of some tenants, of whichever tenants there were, have been erased, and since when
    another has the name; None while nobody has."""
    both = erasures.outerjoin(tenants, tenants.c.tenant == erasures.c.tenant)
    gone = select(erasures.c.tenant, tenants.c.created).select_from(both)
    here = (erasures.c.tenant.in_(list(names)), erasures.c.ended.is_not(None))
    return {row.tenant: row.created for row in tx.execute(gone.where(*here))}


def rename(tx: Connection, tenant: str, pseudonym: str) -> int:
    """Give a tenant another name in every line, and forget its keys and names; how many lines.

    The amounts and whom else a line concerns stay.
    """
    blank = {"endpoint": "", "name": "", "model": "", "version": ""}
    done = tx.execute(
        update(lines).where(lines.c.tenant == tenant).values(tenant=pseudonym, key="")
    ).rowcount
    done += tx.execute(
        update(lines).where(lines.c.owner == tenant).values(owner=pseudonym, **blank)
    ).rowcount
    for table in (totals, segments, machines):
        tx.execute(update(table).where(table.c.tenant == tenant).values(tenant=pseudonym))
    tx.execute(update(meters).where(meters.c.tenant == tenant).values(tenant=pseudonym))
    for table in (hours, days):
        tx.execute(delete(table).where((table.c.tenant == tenant) | (table.c.owner == tenant)))
    return int(done)


def lines_of(tx: Connection, tenant: str) -> Iterable[Mapping[str, Any]]:
    """Every line that a tenant pays or is paid."""
    query = select(lines).where((lines.c.tenant == tenant) | (lines.c.owner == tenant))
    return [dict(row) for row in tx.execute(query).mappings()]


def _put(
    tx: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    replace: Iterable[str] = (),
    add: Iterable[str] = (),
) -> None:
    """Insert rows; where the key is there, replace columns or add to them."""
    if not rows:
        return
    statement = _insert(tx, table)
    changes = {name: statement.excluded[name] for name in replace}
    changes |= {name: table.c[name] + statement.excluded[name] for name in add}
    keys = [column.name for column in table.primary_key]
    tx.execute(
        statement.on_conflict_do_update(index_elements=keys, set_=changes),
        [dict(row) for row in rows],
    )


def _insert(tx: Connection, table: Table) -> Any:
    maker = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    return maker(table)
