"""The table of endpoints and all SQL over it."""

import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.core.crypto import new_id
from tapster.core.db import metadata
from tapster.deployments.counts import Baseline
from tapster.deployments.judgement import Rules
from tapster.deployments.sets import Held, ServingSet

# A deployment goes through two plans: `prepare` loads the new versions everywhere beside the old
# ones, `switch` moves the traffic. `revision` is the plan that the current phase waits for.
endpoints = Table(
    "endpoints",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("status", String(16), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("serving", JSON(none_as_null=True)),
    Column("pending", JSON(none_as_null=True)),
    Column("previous", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("options", JSON(none_as_null=True)),
    Column("rollout", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    UniqueConstraint("tenant", "name"),
)

# The lock of whoever changes endpoints, or relies on what they serve until it has committed.
_DEPLOYING: Final = 0x7A957E16

_STRUCTURED = ("serving", "pending", "previous", "rollout")


class Rollout(msgspec.Struct, frozen=True):
    """A canary on its way, or how it ended.

    `steps` are percent, `step` is the one it is at; `stable` is what served before and `since`
    when the step began to take traffic (seconds since 1970; None while it is being prepared),
    with the counters `baseline`. `history` tells of the steps that are done.
    """

    canary: Held
    steps: tuple[float, ...]
    rules: Rules
    stable: ServingSet
    step: int = 0
    state: Literal["running", "promoted", "rolled back", "aborted"] = "running"
    reason: str = ""
    since: float | None = None
    baseline: Baseline = {}
    history: tuple[dict[str, Any], ...] = ()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.state == "running"


class Row(msgspec.Struct, frozen=True):
    """An endpoint as it is stored."""

    id: str
    tenant: str
    name: str
    status: str
    phase: str
    revision: int
    created: float
    updated: float
    serving: ServingSet | None = None
    pending: ServingSet | None = None
    previous: ServingSet | None = None
    error: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    rollout: Rollout | None = None

    @property
    def rolling(self) -> Rollout | None:
        """The rollout that is under way."""
        return self.rollout if self.rollout is not None and self.rollout.running else None

    @property
    def sets(self) -> tuple[ServingSet, ...]:
        """What must be loaded: what serves, and what is about to."""
        return tuple(held for held in (self.serving, self.pending) if held is not None)


def with_baseline(rollout: Rollout, baseline: Baseline) -> Rollout:
    """The rollout with other counters to compare with."""
    return msgspec.structs.replace(rollout, baseline=baseline)


def ended(rollout: Rollout, state: str, reason: str) -> Rollout:
    """The rollout once it is over."""
    return msgspec.structs.replace(rollout, state=state, reason=reason, since=None, baseline={})


def lock(tx: Connection) -> None:
    """Keep others from changing endpoints of any tenant until the transaction ends; before the row
    is read that the change follows from. SQLite's transactions are alone anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_DEPLOYING)))


def add(tx: Connection, tenant: str, name: str) -> None:
    """Insert an idle endpoint."""
    now = time.time()
    tx.execute(
        insert(endpoints).values(
            id=new_id("ep"),
            tenant=tenant,
            name=name,
            status="idle",
            phase="",
            revision=0,
            created=now,
            updated=now,
        )
    )


def get(tx: Connection, tenant: str, name: str) -> Row | None:
    """One endpoint of a tenant."""
    query = select(endpoints).where(endpoints.c.tenant == tenant, endpoints.c.name == name)
    row = tx.execute(query).mappings().first()
    return _row(row) if row else None


def listing(tx: Connection, tenant: str) -> list[Row]:
    """A tenant's endpoints by name."""
    query = select(endpoints).where(endpoints.c.tenant == tenant).order_by(endpoints.c.name)
    return [_row(row) for row in tx.execute(query).mappings()]


def change(tx: Connection, row: Row, **values: Any) -> None:
    """Change a tenant's endpoint."""
    for name in _STRUCTURED:
        if values.get(name) is not None:
            values[name] = msgspec.to_builtins(values[name])
    tx.execute(
        update(endpoints)
        .where(endpoints.c.tenant == row.tenant, endpoints.c.name == row.name)
        .values(updated=time.time(), **values)
    )


def remove(tx: Connection, tenant: str, name: str) -> None:
    """Delete an endpoint."""
    tx.execute(delete(endpoints).where(endpoints.c.tenant == tenant, endpoints.c.name == name))


def ids(tx: Connection) -> dict[tuple[str, str], str]:
    """The ids of all tenants' endpoints, by owner and name."""
    query = select(endpoints.c.tenant, endpoints.c.name, endpoints.c.id)
    return {(row.tenant, row.name): row.id for row in tx.execute(query)}


def everywhere(tx: Connection) -> list[Row]:
    """Every tenant's endpoints, for the plan."""
    return [_row(row) for row in tx.execute(select(endpoints).order_by(endpoints.c.id)).mappings()]


def _row(row: Mapping[Any, Any]) -> Row:
    return msgspec.convert({str(name): value for name, value in row.items()}, Row)
