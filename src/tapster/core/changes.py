"""What a transaction changes, seen at the statements it executes: rows before and after.

A `Witness` of a `Database` decides which transactions are looked at and is told of them before
they commit, inside them, so that what it writes stands or falls with the change. A transaction
that nobody looks at costs nothing but the question.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Delete, Insert, Select, Table, Update, select

OPTION: Final = "tapster_changes"
HIDDEN: Final = "(hidden)"
_PASSING: Final = frozenset({"last_used", "last_seen"})
MOST_ROWS: Final = 20

# Names of columns, and of tables, whose texts are nobody's to see again.
_SECRET: Final = re.compile(
    r"(^|_)(passwords?|passphrase|secrets?|tokens?|credentials?|salt|wrapped|nonce|verifier|hash"
    r"|private_key|data_keys?)(_|$)",
    re.IGNORECASE,
)


@dataclass
class Row:
    """A row that is added (`before` is None), changed, or removed (`after` is None).

    Of a change only the row's identity and what is new of it; `tenant` as the row names it.
    """

    table: str
    tenant: str
    identity: dict[str, Any]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass
class Changes:
    """A transaction's rows, as far as they are `wanted`, and what services remark about them.

    `more` counts rows beyond the first twenty. `context` is the witness's own.
    """

    wanted: bool = False
    context: Any = None
    rows: list[Row] = field(default_factory=list)
    remarks: list[Any] = field(default_factory=list)
    more: int = 0

    def add(self, row: Row) -> None:
        """Note a row, or that there are more."""
        if len(self.rows) < MOST_ROWS:
            self.rows.append(row)
        else:
            self.more += 1


class Witness(Protocol):
    """Who is told of writing transactions."""

    def opened(self) -> Changes:
        """One begins: what is to be noted of it."""
        ...

    def closing(self, tx: Connection, changes: Changes) -> None:
        """It is about to commit."""
        ...

    def committed(self, changes: Changes) -> None:
        """It has."""
        ...


def changes_of(tx: Connection) -> Changes | None:
    """What is noted of a transaction; None if it has no witness."""
    found: Changes | None = tx.get_execution_options().get(OPTION)
    return found


def watch(
    connection: Connection,
    clause: Any,
    multiparams: Any,
    params: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """SQLAlchemy's `before_execute`: note the rows that a statement is about to change."""
    changes = changes_of(connection)
    if changes is None or not changes.wanted or not isinstance(clause, Insert | Update | Delete):
        return
    table = clause.table
    if not isinstance(table, Table) or table.info.get("unwitnessed"):
        return
    sets = list(multiparams or [params or {}])
    given = [_values(table, clause, each) for each in sets]
    if isinstance(clause, Insert):
        for values in [*_rows_given(clause), *given]:
            if values:
                changes.add(_row(table, values, None, _visible(table, values)))
    elif not _passing(given):
        new = isinstance(clause, Update)
        for values, parameters in list(zip(given, sets, strict=True))[:MOST_ROWS]:
            for held in _held(connection, table, clause, values, parameters):
                after = _visible(table, {**held, **values}) if new else None
                changes.add(_row(table, held, _visible(table, held), after))
        changes.more += max(0, len(sets) - MOST_ROWS)


def _held(
    connection: Connection,
    table: Table,
    clause: Update | Delete,
    given: dict[str, Any],
    params: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows that an update or a deletion is about, as they are; of an update what it names."""
    query = _query(table, frozenset(given) if isinstance(clause, Update) else None)
    if clause.whereclause is not None:
        query = query.where(clause.whereclause)
    found = connection.execute(query, dict(params or {}))
    return [dict(row) for row in found.mappings()]


@lru_cache(1000)
def _query(table: Table, names: frozenset[str] | None) -> Select[Any]:
    """Some rows of a table: their identity and the columns of these names, or all."""
    wanted = set(table.c.keys()) if names is None else _identity(table) | names
    chosen = [column for column in table.c if column.name in wanted]
    return select(*chosen).limit(MOST_ROWS + 1)


def _row(
    table: Table,
    values: dict[str, Any],
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> Row:
    identity = {name: values[name] for name in values if name in _identity(table)}
    tenant = values.get("tenant")
    identity.pop("tenant", None)
    shown = _visible(table, identity)
    return Row(table.name, tenant if isinstance(tenant, str) else "", shown, before, after)


@lru_cache(1000)
def _identity(table: Table) -> frozenset[str]:
    """The columns that tell a row from others."""
    keys = {column.name for column in table.primary_key}
    return frozenset(keys | ({"tenant", "id", "name"} & set(table.c.keys())))


@lru_cache(1000)
def _secret(table: Table) -> frozenset[str]:
    """The columns whose texts are nobody's to see again."""
    everything = _SECRET.search(table.name) is not None
    keys = {column.name for column in table.primary_key} | {"tenant"}
    return frozenset(
        column.name
        for column in table.c
        if column.info.get("secret")
        or _SECRET.search(column.name)
        or (everything and column.name not in keys)
    )


def _passing(given: list[dict[str, Any]]) -> bool:
    """Whether an update only says when something was last seen: that is no change of it."""
    return bool(given[0]) and all(name in _PASSING for values in given for name in values)


def _values(table: Table, clause: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Column to value, as a statement and its parameters give them."""
    fixed = getattr(clause, "_values", None) or {}
    found = {getattr(column, "name", str(column)): _value(v) for column, v in fixed.items()}
    return {**found, **{name: params[name] for name in params if name in table.c}}


def _rows_given(clause: Insert) -> list[dict[str, Any]]:
    """The rows of `insert(table).values([...])`."""
    return [
        {getattr(column, "name", str(column)): _value(value) for column, value in row.items()}
        for rows in getattr(clause, "_multi_values", ())
        for row in rows
        if isinstance(row, dict)
    ]


def _value(given: Any) -> Any:
    """What a bound parameter holds; an expression is not known here."""
    return getattr(given, "value", "(computed)")


def _visible(table: Table, values: dict[str, Any]) -> dict[str, Any]:
    """Values without secrets, and without bytes."""
    secret = _secret(table)
    shown = {}
    for name, value in values.items():
        if name in secret and not isinstance(value, int | float | None):
            shown[name] = HIDDEN
        elif isinstance(value, bytes | memoryview):
            shown[name] = f"({len(value)} bytes)"
        else:
            shown[name] = value
    return shown
