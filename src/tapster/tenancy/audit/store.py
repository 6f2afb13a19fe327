"""Tables of the chain, and all SQL over them. Nothing here changes or deletes a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError

from tapster.contract.audit import ERASED, GENESIS, WHOLE, AuditLine
from tapster.core.db import metadata

# In SQLite an INTEGER key is the row itself; another type would be an index beside it.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

lines = Table(
    "audit_lines",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=False),
    Column("tenant", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),  # microseconds
    Column("who", String(64), nullable=False),
    Column("action", String(200), nullable=False),
    Column("status", Integer, nullable=False),
    Column("code", String(32), nullable=False),
    Column("count", Integer, nullable=False),
    Column("details", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("own_previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_lines_tenant_number", "tenant", "number"),
    info={"unwitnessed": True},
)

# What lines tell of persons and things; a tenant's can be destroyed, and the chain still holds.
details = Table(
    "audit_details",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=False),
    Column("tenant", String(64), nullable=False),
    Column("salt", String(32), nullable=False),
    Column("body", Text, nullable=False),
    info={"unwitnessed": True},
)

# One row, of the view `*`: the newest line. Whoever appends holds it until the commit.
heads = Table(
    "audit_heads",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    info={"unwitnessed": True},
)

WINDOW: Final = 20_000
_HEAD: Final = select(heads.c.number, heads.c.hash).where(heads.c.tenant == WHOLE)
# Every change pays for these, so they are spelled here: `?` is what the driver calls a parameter.
_LOCKED: Final = "SELECT number, hash FROM audit_heads WHERE tenant = '*'"
_OWN: Final = "SELECT number, hash FROM audit_lines WHERE tenant = ? ORDER BY number DESC LIMIT 1"
_ADD_LINE: Final = (
    "INSERT INTO audit_lines (number, at, tenant, who, action, status, code, count, details,"
    " own_previous, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ADD_DETAILS: Final = "INSERT INTO audit_details (number, tenant, salt, body) VALUES (?, ?, ?, ?)"
_MOVE: Final = "UPDATE audit_heads SET number = ?, hash = ? WHERE tenant = '*'"


@dataclass(frozen=True)
class Selection:
    """Which lines: of a `tenant` ("" for any), within times (microseconds), by act and person."""

    tenant: str = ""
    since: int | None = None
    until: int | None = None
    action: str = ""
    who: str = ""

    @property
    def narrow(self) -> bool:
        """Whether it leaves out lines of the tenant, or of all."""
        return bool(self.action or self.who) or (self.since, self.until) != (None, None)


def lock_head(tx: Connection) -> tuple[int, str]:
    """The newest line of all tenants, number and hash, held against others until the commit."""
    held = "" if tx.dialect.name == "sqlite" else " FOR UPDATE"
    row = _run(tx, _LOCKED + held, ()).fetchone()
    return (0, GENESIS) if row is None else (row[0], row[1])


def head(tx: Connection) -> tuple[int, str]:
    """The newest line of all tenants: number and hash."""
    row = tx.execute(_HEAD).first()
    return (0, GENESIS) if row is None else (row[0], row[1])


def highest(tx: Connection) -> int:
    """The highest number that a line of any tenant has; 0 before the first."""
    return int(tx.execute(select(func.coalesce(func.max(lines.c.number), 0))).scalar_one())


def newest(tx: Connection, tenant: str) -> tuple[int, str]:
    """A tenant's newest line: number and hash; 0 and the hash of nothing before the first."""
    row = _run(tx, _OWN, (tenant,)).fetchone()
    return (0, GENESIS) if row is None else (row[0], row[1])


def append(
    tx: Connection, made: Sequence[tuple[Any, ...]], kept: Sequence[tuple[Any, ...]]
) -> None:
    """Add lines, of any tenant, with their details; the last one is the new head."""
    _run(tx, _ADD_LINE, *made)
    _run(tx, _ADD_DETAILS, *kept)
    _run(tx, _MOVE, (made[-1][0], made[-1][-1]))


def _run(tx: Connection, statement: str, *rows: tuple[Any, ...]) -> Any:
    """Have the driver run a statement, of any tenant, for each of some parameters; its cursor.

    Raises what SQLAlchemy raises for the driver's errors.
    """
    sqlite = tx.dialect.name == "sqlite"
    text = statement if sqlite else statement.replace("?", "%s")
    try:
        cursor = tx.connection.cursor()
        if len(rows) == 1:
            cursor.execute(text, rows[0])
        else:
            cursor.executemany(text, rows)
    except tx.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(
            statement, None, error, tx.dialect.loaded_dbapi.Error, dialect=tx.dialect
        ) from error
    return cursor


def page(
    tx: Connection, wanted: Selection, after: int, last: int, count: int
) -> tuple[list[tuple[AuditLine, str]], int]:
    """Up to `count` lines (of any tenant, if none is wanted), each with its spelled details.

    They have numbers above `after`, up to `last`, rising; the other value is the number to go on
    after. One call looks at 20,000 numbers at most, so that it keeps nobody waiting for long.
    """
    end = min(after + WINDOW, last)
    query = _selected(wanted).where(lines.c.number > after, lines.c.number <= end)
    rows = tx.execute(query.order_by(lines.c.number).limit(count)).all()
    return [_line(row) for row in rows], rows[-1].number if len(rows) == count else end


def page_back(
    tx: Connection, wanted: Selection, before: int, count: int
) -> tuple[list[tuple[AuditLine, str]], int]:
    """As `page`, downwards: numbers below `before`; the other value is where to go on before."""
    end = max(before - WINDOW, 1)
    query = _selected(wanted).where(lines.c.number < before, lines.c.number >= end)
    rows = tx.execute(query.order_by(lines.c.number.desc()).limit(count)).all()
    return [_line(row) for row in rows], rows[-1].number if len(rows) == count else end


def destroy_details(tx: Connection, tenant: str) -> int:
    """Delete what a tenant's lines tell; returns of how many."""
    own = select(lines.c.number).where(lines.c.tenant == tenant, lines.c.action != ERASED)
    return int(tx.execute(delete(details).where(details.c.number.in_(own))).rowcount)


def _selected(wanted: Selection) -> Any:
    """The query of a selection, over any tenant if it names none."""
    told = (details.c.salt, details.c.body, details.c.tenant.label("whose"))
    query = select(lines, *told).outerjoin(details, details.c.number == lines.c.number)
    if wanted.tenant:
        query = query.where(lines.c.tenant == wanted.tenant)
    if wanted.since is not None:
        query = query.where(lines.c.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(lines.c.at < wanted.until)
    if wanted.action:
        query = query.where(lines.c.action.contains(wanted.action, autoescape=True))
    if wanted.who:
        query = query.where(lines.c.who == wanted.who)
    return query


def _line(row: Any) -> tuple[AuditLine, str]:
    line = AuditLine(
        number=row.number,
        at=row.at / 1_000_000,
        tenant=row.tenant,
        who=row.who,
        action=row.action,
        status=row.status,
        code=row.code,
        count=row.count,
        details=row.details,
        previous=row.previous,
        own_previous=row.own_previous,
        hash=row.hash,
        salt=row.salt or "",
    )
    return line, row.body if row.body and row.whose == row.tenant else ""
