"""All SQL that reads the ledger's lines and sums; `../store.py` has the tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Column, Connection, Select, Table, case, func, select

from tapster.tenancy.ledger.store import AMOUNTS, LABEL, days, hours, lines

By = Literal["tenant", "key", "endpoint", "model", "hour", "day"]
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "tenant": ("tenant",),
    "key": ("tenant", "key"),
    "endpoint": ("owner", "name"),
    "model": ("owner", "model", "version"),
    "hour": ("period",),
    "day": ("period",),
}
# What no key, endpoint or model has: job time and storage.
_WHOLE: Final = frozenset({"tenant", "hour", "day"})


class Scope(msgspec.Struct, frozen=True):
    """Whose lines: `payer` and `owner` with "" for anybody, `others` for owners' lines that they do
    not pay themselves; from day `first` to day `last`.
    """

    first: str
    last: str
    payer: str = ""
    owner: str = ""
    others: bool = False


def usage(
    tx: Connection, scope: Scope, by: str, limit: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sums by group, and over all groups, of the tenants in `scope`; of any tenant if it has none.

    Times in order, anything else with the most expensive first. Of lines that others pay, their
    keys are nobody else's business.
    """
    table = hours if by == "hour" else days
    names = [name for name in GROUPS[by] if not (scope.others and name == "key")]
    query = _within(select(*[table.c[name] for name in names], *_sums(table)), table, scope, by)
    query = query.group_by(*[table.c[name] for name in names])
    order: list[Any] = [table.c.period]
    if "period" not in names:
        order = [func.sum(table.c.amount).desc(), func.sum(table.c.requests).desc()]
    rows = tx.execute(query.order_by(*order, *[table.c[n] for n in names]).limit(limit)).mappings()
    whole = tx.execute(_within(select(*_sums(table), _groups(table, names)), table, scope, by))
    return [_whole_numbers(row) for row in rows], _whole_numbers(whole.mappings().one())


def known(tx: Connection, tenant: str, owner: str = "") -> bool:
    """Whether a tenant has ever used anything, or anything of an owner."""
    query = select(days.c.period).where(days.c.tenant == tenant)
    if owner:
        query = query.where(days.c.owner == owner)
    return tx.execute(query.limit(1)).first() is not None


def months(tx: Connection, tenant: str) -> list[dict[str, Any]]:
    """The months in which a tenant has lines, the newest first, with what they come to."""
    query = (
        select(days.c.month, *_sums(days))
        .where(days.c.tenant == tenant)
        .group_by(days.c.month)
        .order_by(days.c.month.desc())
    )
    return [_whole_numbers(row) for row in tx.execute(query).mappings()]


def payers(tx: Connection, month: str) -> list[str]:
    """Every tenant that has lines on a month's bill."""
    query = select(days.c.tenant).where(days.c.month == month).distinct()
    return list(tx.execute(query.order_by(days.c.tenant)).scalars())


def bill(tx: Connection, tenant: str, month: str) -> list[dict[str, Any]]:
    """What a tenant's lines on a month's bill come to, by what they are for and at which price."""
    names = ("kind", "owner", "endpoint", "name", "model", "version", "price", "above")
    columns = [lines.c[name] for name in names]
    query = (
        select(*columns, *_numbers(lines))
        .where(lines.c.tenant == tenant, lines.c.month == month)
        .group_by(*columns)
        .order_by(*[lines.c[n] for n in ("kind", "owner", "name", "model", "version", "above")])
    )
    return [_whole_numbers(row) for row in tx.execute(query).mappings()]


def amount(
    tx: Connection,
    tenant: str,
    column: str,
    span: tuple[str, str],
    where: Mapping[str, str],
) -> int:
    """The sum of a counter over a tenant's days within `span`, of lines as `where` says."""
    counted = func.coalesce(func.sum(days.c[column]), 0)
    query = select(counted).where(
        days.c.tenant == tenant, days.c.period >= span[0], days.c.period <= span[1]
    )
    for name, value in where.items():
        query = query.where(days.c[name] == value)
    return int(tx.execute(query).scalar_one())


def differences(tx: Connection) -> list[str]:
    """Where the sums by hour or by day are not what all tenants' lines come to."""
    found = []
    for table, column in ((hours, lines.c.hour), (days, lines.c.day)):
        label = [table.c[name] for name in LABEL]
        kept = _exact(tx, select(table.c.period, *label, *_numbers(table)), table.c.period, label)
        names = [lines.c[name] for name in LABEL]
        true_ones = _exact(tx, select(column, *names, *_numbers(lines)), column, names)
        found += sorted(
            f"{table.name}: {' '.join(map(str, key))}"
            for key in kept.keys() | true_ones.keys()
            if kept.get(key) != true_ones.get(key)
        )
    return found


def _exact(
    tx: Connection, query: Select[Any], period: Any, label: Sequence[Any]
) -> dict[tuple[Any, ...], tuple[int, ...]]:
    rows = tx.execute(query.group_by(period, *label))
    size = len(label) + 1
    return {tuple(row[:size]): tuple(int(number) for number in row[size:]) for row in rows}


def _within(query: Select[Any], table: Table, scope: Scope, by: str) -> Select[Any]:
    hourly = by == "hour"
    first, last = (f"{scope.first}T00", f"{scope.last}T23") if hourly else (scope.first, scope.last)
    query = query.where(table.c.period >= first, table.c.period <= last)
    if scope.payer:
        query = query.where(table.c.tenant == scope.payer)
    if scope.owner:
        query = query.where(table.c.owner == scope.owner, table.c.kind == "calls")
    if scope.others:
        query = query.where(table.c.tenant != scope.owner)
    return query if by in _WHOLE else query.where(table.c.kind == "calls")


def _sums(table: Table) -> list[Any]:
    """Counters, `amount` of calls, and `showback`: what job time and storage would cost."""
    calls = table.c.kind == "calls"
    return [
        *_numbers(table)[:-1],
        func.coalesce(func.sum(case((calls, table.c.amount), else_=0)), 0).label("amount"),
        func.coalesce(func.sum(case((calls, 0), else_=table.c.amount)), 0).label("showback"),
    ]


def _numbers(table: Table) -> list[Any]:
    return [func.coalesce(func.sum(table.c[name]), 0).label(name) for name in AMOUNTS]


def _groups(table: Table, names: Sequence[str]) -> Any:
    """How many groups there are."""
    return func.count(func.distinct(_joined([table.c[name] for name in names]))).label("groups")


def _joined(columns: Sequence[Column[Any]]) -> Any:
    """Columns as one text that no two groups share: a name holds no control character."""
    first, *rest = columns
    found: Any = first
    for column in rest:
        found = found.concat("\x1f").concat(column)
    return found


def _whole_numbers(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with its sums as integers: PostgreSQL's are decimals."""
    return {
        str(name): value if isinstance(value, str) else int(value) for name, value in row.items()
    }
