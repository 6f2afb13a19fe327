"""Reads a table or a query of an SQLite or PostgreSQL database, read-only, in batches."""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from uuid import UUID

import msgspec
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.datasets.columns import check_names, shown
from tapster.datasets.conversion import DTYPES, blank_to_null, convert
from tapster.datasets.locations import masked, sqlite_path
from tapster.datasets.tables import Advance, Table, safe_names

_CELLS: Final = 500_000
_LIMIT: Final = 1 << 63
# A comment ends at its first "*/": were it free to end later, many would be tried in every way.
_SELECT: Final = re.compile(
    r"\s*(--[^\n]*\n\s*|/\*((?!\*/).)*\*/\s*)*(select|with|values)\b", re.I | re.S
)
_KINDS: Final[dict[type, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    Decimal: "number",
    str: "text",
    date: "date",
    datetime: "datetime",
    UUID: "text",
    time: "text",
}
_ALLOWED: Final = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    getattr(sqlite3, "SQLITE_RECURSIVE", 33),
}


def open_database(
    url: str, *, table: str, query: str, folder: Path, options: dict[str, Any], advance: Advance
) -> Table:
    """The rows of `table` or of `query`, spooled to `folder`; the digest covers the rows.

    Raises TapsterError: unavailable if the database cannot be reached, invalid if the URL is not
    a database's, the table or a column is unknown or the query is not one reading statement.
    """
    _check_query(query)
    folder.mkdir(parents=True, exist_ok=True)
    rows = _sqlite if url.startswith("sqlite:") else _postgresql
    with rows(url, table, query) as (names, batches):
        spool = _Spool(folder, check_names(names, "the query" if query else f"table {table}"))
        for batch in batches:
            spool.add(batch)
            advance(0.0, f"{spool.rows:,} rows")
    result = spool.table(options)
    result.source = {"kind": "database", "url": masked(url)}
    result.source |= {"query": query} if query else {"table": table}
    return result


def _check_query(query: str) -> None:
    if query and not _SELECT.match(query):
        raise TapsterError(
            "invalid",
            "the query does not begin with SELECT, WITH or VALUES",
            hint="give one statement that only reads",
            field="query",
        )


Rows = tuple[list[str], Iterator[list[tuple[Any, ...]]]]


@contextmanager
def _sqlite(url: str, table: str, query: str) -> Iterator[Rows]:
    path = sqlite_path(url)
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)
    except sqlite3.Error:
        raise _unreachable(url, "it cannot be opened") from None
    try:
        connection.execute("PRAGMA query_only=ON")
        if table:
            _check_sqlite_table(connection, table)
        connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
        )
        cursor = connection.execute(query or f"SELECT * FROM {_quoted(table)}")  # noqa: S608
        names = [column[0] for column in cursor.description or ()]
        yield names, _fetch(cursor, len(names))
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _sqlite_error(url, query, error) from None
    finally:
        connection.close()


def _check_sqlite_table(connection: sqlite3.Connection, table: str) -> None:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    names = [name for (name,) in rows]
    if table not in names:
        raise _no_table(table, names)


def _no_table(table: str, names: Sequence[str]) -> TapsterError:
    listed = ", ".join(shown(name) for name in sorted(names)[:10]) or "none"
    return TapsterError(
        "not_found", f"there is no table {shown(table)}", hint=f"tables are {listed}", field="table"
    )


def _sqlite_error(url: str, query: str, error: Exception) -> TapsterError:
    text = str(error)
    if "not authorized" in text or "prohibited" in text or "one statement" in text:
        return TapsterError(
            "invalid",
            "the query does more than read, or is more than one statement",
            hint="give one SELECT",
            field="query",
        )
    if "not a database" in text or "malformed" in text:
        return _unreachable(url, "it is not a whole SQLite database")
    if "locked" in text:
        return _unreachable(url, "another program holds its lock")
    if "disk is full" in text:
        return storage_error(OSError(28, ""))
    field = "query" if query else "table"
    return TapsterError("invalid", f"the database refused the {field}: {text}", field=field)


@contextmanager
def _postgresql(url: str, table: str, query: str) -> Iterator[Rows]:
    import psycopg

    try:
        connection = psycopg.connect(url, connect_timeout=10, autocommit=False)
    except psycopg.ProgrammingError:  # libpq quotes what it could not parse: perhaps the password
        raise _unreachable(url, "the URL is malformed") from None
    except psycopg.Error as error:
        raise _unreachable(url, _first_line(error)) from None
    try:
        connection.read_only = True
        if table:
            query = f"SELECT * FROM {_postgresql_table(connection, table)}"  # noqa: S608
        query = query.rstrip().rstrip(";")
        # The extended protocol takes one statement only; a plain one could end the transaction.
        prepared = connection.pgconn.prepare(b"", query.encode())
        if prepared.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise _refused(prepared.error_message.decode(errors="replace"))
        with connection.cursor("tapster_import") as cursor:
            cursor.execute(query.encode())
            names = [column.name for column in cursor.description or ()]
            yield names, _fetch(cursor, len(names))
    except psycopg.OperationalError as error:
        raise _unreachable(url, _first_line(error)) from None
    except psycopg.Error as error:
        raise _refused(str(error)) from None
    finally:
        connection.close()


def _postgresql_table(connection: Any, table: str) -> str:
    """The quoted name of a table, `schema.table` or a bare name that may itself hold dots."""
    rows = connection.execute(
        "SELECT table_schema, table_name, table_schema = ANY(current_schemas(false)) "
        "FROM information_schema.tables "
        "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
    ).fetchall()
    for schema, name, in_path in rows:
        if (in_path and name == table) or f"{schema}.{name}" == table:
            return f"{_quoted(schema)}.{_quoted(name)}"
    raise _no_table(table, [name if path else f"{schema}.{name}" for schema, name, path in rows])


def _refused(message: str) -> TapsterError:
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    line = line.removeprefix("ERROR:").strip()
    if "multiple commands" in line or "read-only transaction" in line:
        return TapsterError(
            "invalid",
            "the query does more than read, or is more than one statement",
            hint="give one SELECT",
            field="query",
        )
    return TapsterError("invalid", f"the database refused the query: {line}", field="query")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else "no answer"


def _unreachable(url: str, why: str) -> TapsterError:
    password = urlsplit(url).password
    for secret in {password, unquote(password or "")} - {None, ""}:
        why = why.replace(str(secret), "***")
    return TapsterError(
        "unavailable",
        f"the database {masked(url)} cannot be read: {why}",
        hint="check the URL, and that the server can reach the database",
        field="url",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _fetch(cursor: Any, columns: int) -> Iterator[list[tuple[Any, ...]]]:
    size = max(1, min(50_000, _CELLS // max(1, columns)))
    while batch := cursor.fetchmany(size):
        yield batch


class _Spool:
    """Batches of rows as Arrow files, each in its own types, and the types that fit them all."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.rows = 0
        self._folder = folder
        self._names = names
        self._safe = safe_names(len(names))
        self._types: list[set[str]] = [set() for _ in names]
        self._parts: list[Path] = []
        self._digest = hashlib.sha256(msgspec.json.encode(names))

    def add(self, batch: list[tuple[Any, ...]]) -> None:
        """Store a batch. Raises TapsterError(invalid) on a value that no column can hold."""
        self._digest.update(repr(batch).encode())
        series = []
        for position, values in enumerate(zip(*batch, strict=True)):
            kind, plain = self._plain(position, list(values))
            series.append(pl.Series(self._safe[position], plain, dtype=DTYPES[kind]))
        path = self._folder / f"{len(self._parts):06}.arrow"
        try:
            pl.DataFrame(series).write_ipc(path, compression="lz4")
        except (OSError, pl.exceptions.ComputeError) as error:
            number = 28 if "No space" in str(error) else getattr(error, "errno", 0) or 5
            raise storage_error(OSError(number, "")) from error
        self._parts.append(path)
        self.rows += len(batch)

    def _plain(self, position: int, values: list[Any]) -> tuple[str, list[Any]]:
        types = {type(value) for value in values} - {type(None)}
        unknown = next((t for t in types if t not in _KINDS), None)
        if unknown is not None:
            raise TapsterError(
                "invalid",
                f"column {shown(self._names[position])} holds {unknown.__name__} values, "
                "which a dataset cannot",
                hint="leave it out with a query, or cast it to text there",
                field=self._names[position],
            )
        kinds = {_KINDS[t] for t in types}
        self._types[position] |= kinds
        kind = _widest(kinds)
        if kind == "integer" and any(v is not None and not -_LIMIT <= v < _LIMIT for v in values):
            kind = "number"
            self._types[position].add(kind)
        return kind, [_as(value, kind) for value in values]

    def table(self, options: dict[str, Any]) -> Table:
        """Everything stored, in the types that fit every batch."""
        if not self.rows:
            raise TapsterError(
                "invalid", "the table or query has no rows", hint="a dataset needs at least one"
            )
        kinds = dict(zip(self._safe, map(_widest, self._types), strict=True))
        parts = []
        for path in self._parts:
            frame = pl.scan_ipc(path, glob=False)
            schema = frame.collect_schema()
            parts.append(frame.select(_stored(c, schema[c], k) for c, k in kinds.items()))
        self._digest.update(msgspec.json.encode([options, list(kinds.values())]))
        texts = {c: False for c, kind in kinds.items() if kind == "text"}
        return Table(pl.concat(parts), self._names, self._digest.hexdigest(), self.rows, texts)


def _stored(column: str, dtype: pl.DataType, kind: str) -> pl.Expr:
    wide = convert(pl.col(column), dtype, kind)
    if kind == "number":
        wide = wide.fill_nan(None)
    return (blank_to_null(wide) if kind == "text" else wide).alias(column)


def _widest(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds and kinds <= {"integer", "number", "boolean"}:
        return "number" if "number" in kinds else "integer"
    return "datetime" if kinds == {"date", "datetime"} else "text"


def _as(value: Any, kind: str) -> Any:
    if value is None or kind in {"date", "boolean"}:
        return value
    if kind in {"integer", "number"}:
        return int(value) if kind == "integer" else float(value)
    if kind == "datetime":
        return _moment(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def _moment(value: date) -> datetime:
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
