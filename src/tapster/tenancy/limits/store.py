"""The tables of limits, grants and training time, and all SQL over them."""

import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    String,
    Table,
    UniqueConstraint,
    case,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.contract.usage import Metric, Period
from tapster.core.crypto import new_id
from tapster.core.db import metadata
from tapster.tenancy.ledger.store import days
from tapster.tenancy.limits.account import Place

# `owner` and `endpoint` are "" unless the limit is for what is asked of that endpoint: by name, so
# that deleting it and making it again is no way around a limit.
limits = Table(
    "limits",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("set_by", String(64), nullable=False),
    Column("metric", String(16), nullable=False),
    Column("period", String(8), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("key", String(32), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("burst", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    UniqueConstraint(
        "tenant", "set_by", "metric", "period", "owner", "endpoint", "key", name="uq_limits_scope"
    ),
)

# What a machine may use of a limit on a day in all, beyond what it had counted `before` its first
# grant. Once the machine has counted all of a day, the grant is `closed`: just what it used.
grants = Table(
    "limit_grants",
    metadata,
    Column("limit_id", String(32), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("machine", String(255), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("before", BigInteger, nullable=False),
    Column("granted", BigInteger, nullable=False),
    Column("closed", Boolean, nullable=False),
    info={"unwitnessed": True},
)

# What a training job may use at most (nanoseconds, 0 for no bound), and has used, of the day that
# it was submitted on.
training = Table(
    "training_time",
    metadata,
    Column("job", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("day", String(10), nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
    Index("ix_training_time_tenant_day", "tenant", "day"),
    info={"unwitnessed": True},
)


class Row(msgspec.Struct, frozen=True):
    """A limit as it is kept: amounts in units."""

    id: str
    tenant: str
    set_by: str
    metric: Metric
    period: Period
    owner: str
    endpoint: str
    key: str
    amount: int
    burst: int
    created: float
    updated: float


SCOPE: Final = ("tenant", "set_by", "metric", "period", "owner", "endpoint", "key")


def put(tx: Connection, tenant: str, amount: int, burst: int, **scope: str) -> None:
    """Set the amount of the tenant's limit of a scope, which keeps its id, or make it."""
    now = time.time()
    same = [limits.c.tenant == tenant, *(limits.c[name] == scope[name] for name in scope)]
    values: dict[str, Any] = {"amount": amount, "burst": burst, "updated": now}
    if tx.execute(update(limits).where(*same).values(**values)).rowcount:
        return
    made = {"id": new_id("lim"), "tenant": tenant, "created": now, **scope, **values}
    tx.execute(insert(limits).values(**made))


def find(tx: Connection, tenant: str, **scope: str) -> Row | None:
    """The tenant's limit of a scope."""
    same = [limits.c.tenant == tenant, *(limits.c[name] == scope[name] for name in scope)]
    row = tx.execute(select(limits).where(*same)).mappings().first()
    return _row(row) if row else None


def get(tx: Connection, identifier: str) -> Row | None:
    """One limit, of any tenant: whose it is decides who may see it."""
    row = tx.execute(select(limits).where(limits.c.id == identifier)).mappings().first()
    return _row(row) if row else None


def remove(tx: Connection, tenant: str, identifier: str) -> None:
    """Delete a limit and what was granted of it."""
    tx.execute(delete(limits).where(limits.c.tenant == tenant, limits.c.id == identifier))
    tx.execute(delete(grants).where(grants.c.tenant == tenant, grants.c.limit_id == identifier))


def listing(tx: Connection, tenant: str) -> list[Row]:
    """A tenant's limits, those of the whole tenant first."""
    query = select(limits).where(limits.c.tenant == tenant)
    order = (limits.c.endpoint, limits.c.key, limits.c.metric, limits.c.period, limits.c.set_by)
    return [_row(row) for row in tx.execute(query.order_by(*order)).mappings()]


def every(tx: Connection, metrics: Iterable[str], tenants: Iterable[str] | None) -> list[Row]:
    """Limits of some metrics, of all tenants or of those named, for the plan."""
    query = select(limits).where(limits.c.metric.in_(list(metrics)))
    if tenants is not None:
        query = query.where(limits.c.tenant.in_(list(tenants)))
    query = query.order_by(limits.c.tenant, limits.c.id)
    return [_row(row) for row in tx.execute(query).mappings()]


def limited_at(tx: Connection, owner: str, endpoint: str) -> list[str]:
    """All tenants with limits of what they ask of an endpoint."""
    query = select(limits.c.tenant).where(limits.c.owner == owner, limits.c.endpoint == endpoint)
    return sorted(tx.execute(query.distinct()).scalars())


def count(tx: Connection, tenant: str) -> int:
    """How many limits a tenant has."""
    query = select(func.count()).where(limits.c.tenant == tenant)
    return int(tx.execute(query).scalar_one())


def of_metric(tx: Connection, tenant: str, metric: str, *, lock: bool = True) -> list[Row]:
    """A tenant's limits of a metric; with `lock`, nobody else decides by them meanwhile."""
    query = (
        select(limits)
        .where(limits.c.tenant == tenant, limits.c.metric == metric)
        .order_by(limits.c.id)
    )
    query = query.with_for_update() if lock else query
    return [_row(row) for row in tx.execute(query).mappings()]


def lock(tx: Connection, tenant: str) -> None:
    """Keep others from a tenant's limits, taken in the order in which everybody takes them."""
    query = select(limits.c.id).where(limits.c.tenant == tenant).order_by(limits.c.id)
    tx.execute(query.with_for_update()).all()


def locked(tx: Connection, identifiers: Iterable[str]) -> dict[str, Row]:
    """Limits of any tenant by id, which nobody else changes or grants from meanwhile."""
    query = select(limits).where(limits.c.id.in_(sorted(set(identifiers))))
    found = tx.execute(query.order_by(limits.c.id).with_for_update()).mappings()
    return {row["id"]: _row(row) for row in found}


# -- grants


class Held(msgspec.Struct, frozen=True):
    """A grant as it is kept; see `grants`."""

    before: int
    granted: int = 0
    closed: bool = False

    @property
    def usable(self) -> int:
        """What the machine may use that day, and has, in all."""
        return self.before + self.granted


def granted(
    tx: Connection, tenant: str, identifier: str, first: str, last: str
) -> dict[Place, Held]:
    """What machines may use of a limit, by machine and day."""
    query = select(
        grants.c.machine, grants.c.day, grants.c.before, grants.c.granted, grants.c.closed
    ).where(
        grants.c.tenant == tenant,
        grants.c.limit_id == identifier,
        grants.c.day.between(first, last),
    )
    return {(row.machine, row.day): Held(*row[2:]) for row in tx.execute(query)}


def grant(tx: Connection, tenant: str, identifier: str, place: Place, held: Held) -> None:
    """Write down what a machine may use of a limit on a day."""
    machine, day = place
    here = (
        grants.c.tenant == tenant,
        grants.c.limit_id == identifier,
        grants.c.day == day,
        grants.c.machine == machine,
    )
    values = msgspec.structs.asdict(held)
    if not tx.execute(update(grants).where(*here).values(**values)).rowcount:
        key = {"limit_id": identifier, "day": day, "machine": machine, "tenant": tenant}
        tx.execute(insert(grants).values(**key, **values))


def forget(tx: Connection, tenant: str, identifier: str, before: str) -> None:
    """Delete a limit's grants of days before `before`."""
    tx.execute(
        delete(grants).where(
            grants.c.tenant == tenant, grants.c.limit_id == identifier, grants.c.day < before
        )
    )


def counted(tx: Connection, limit: Row, first: str, last: str) -> dict[Place, int]:
    """What the ledger has of what a limit is for, by machine and day."""
    units = func.sum(days.c["amount" if limit.metric == "money" else limit.metric])
    query = select(days.c.machine, days.c.period, units.label("units")).where(
        days.c.tenant == limit.tenant, days.c.kind == "calls", days.c.period.between(first, last)
    )
    if limit.endpoint:
        query = query.where(days.c.owner == limit.owner, days.c.name == limit.endpoint)
    if limit.key:
        query = query.where(days.c.key == limit.key)
    found = tx.execute(query.group_by(days.c.machine, days.c.period))
    return {(row.machine, row.period): int(row.units) for row in found}


# -- training time


def reserve(tx: Connection, tenant: str, job: str, day: str, reserved: int) -> None:
    """Write down that a job may use so much."""
    tx.execute(
        insert(training).values(
            job=job, tenant=tenant, day=day, reserved=reserved, used=0, ended=False
        )
    )


def reservation(tx: Connection, tenant: str, job: str) -> Any:
    """What a job may use and has used; None of a job that is not added up, or has ended."""
    query = select(training.c.reserved, training.c.used).where(
        training.c.tenant == tenant, training.c.job == job, training.c.ended.is_(False)
    )
    return tx.execute(query).first()


def use(tx: Connection, tenant: str, job: str, used: int, ended: bool) -> None:
    """Write down what a job has used, and whether that was all."""
    tx.execute(
        update(training)
        .where(training.c.tenant == tenant, training.c.job == job)
        .values(used=used, ended=ended)
    )


def trained(tx: Connection, tenant: str, first: str, last: str) -> tuple[int, int]:
    """What a tenant's jobs of some days have used, and what those not ended may yet use."""
    open_rest = case(
        (training.c.ended | (training.c.reserved < training.c.used), 0),
        else_=training.c.reserved - training.c.used,
    )
    query = select(
        func.coalesce(func.sum(training.c.used), 0), func.coalesce(func.sum(open_rest), 0)
    ).where(training.c.tenant == tenant, training.c.day.between(first, last))
    used, rest = tx.execute(query).one()
    return int(used), int(rest)


def _row(row: Any) -> Row:
    return msgspec.convert({str(name): value for name, value in row.items()}, Row)
