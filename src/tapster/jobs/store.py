"""The tables of jobs and of what they may not show, and all SQL over them.

A claim hands out a lease: an owner, an expiry and a fencing token that grows with every claim.
Every later write names the token, so a worker that lost its lease changes nothing.
"""

import time
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    case,
    delete,
    func,
    insert,
    select,
    update,
)

from tapster.contract.control import FINISHED, Job
from tapster.core.db import metadata

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("time_limit", Float),
    Column("memory_limit", BigInteger),
    Column("progress", Float, nullable=False),
    Column("phase", String(100), nullable=False),
    Column("message", String(1000), nullable=False),
    Column("data", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("run_after", Float, nullable=False),
    Column("lease_owner", String(64), nullable=False),
    Column("lease_token", Integer, nullable=False),
    Column("lease_expires", Float, nullable=False),
    Index("ix_jobs_claim", "status", "priority", "created"),
    Index("ix_jobs_tenant_created", "tenant", "created"),
)

# What a job must know and nobody may see again, by the field of its task, until it has ended.
job_secrets = Table(
    "job_secrets",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("job", String(32), primary_key=True),
    Column("field", String(64), primary_key=True),
    Column("value", Text, nullable=False),
    info={"unwitnessed": True},
)

# How far back (seconds) it matters whose job was started last.
_REMEMBERED: Final = 24 * 3600.0

_SHOWN = [
    column
    for column in jobs.c
    if column.name not in {"run_after", "lease_owner", "lease_token", "lease_expires"}
]


def add(tx: Connection, tenant: str, **values: Any) -> None:
    """Insert a queued job."""
    now = time.time()
    fixed = {
        "tenant": tenant,
        "status": "queued",
        "attempt": 0,
        "progress": 0.0,
        "phase": "queued",
        "message": "",
        "data": {},
        "cancel_requested": False,
        "created": now,
        "run_after": now,
        "lease_owner": "",
        "lease_token": 0,
        "lease_expires": 0.0,
    }
    tx.execute(insert(jobs).values(**fixed, **values))


def get(tx: Connection, tenant: str, identifier: str) -> Job | None:
    """One job of a tenant."""
    query = select(*_SHOWN).where(jobs.c.tenant == tenant, jobs.c.id == identifier)
    row = tx.execute(query).mappings().first()
    return Job(**row) if row else None


def listing(tx: Connection, tenant: str, status: str, limit: int) -> list[Job]:
    """A tenant's jobs, newest first."""
    query = select(*_SHOWN).where(jobs.c.tenant == tenant)
    if status:
        query = query.where(jobs.c.status == status)
    query = query.order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
    return [Job(**row) for row in tx.execute(query).mappings()]


def claim(tx: Connection, owner: str, lease: float) -> tuple[Job, int] | None:
    """Take the next job, with its token: of the tenant whose turn it is, the most urgent.

    A tenant's turn comes before that of any tenant with more jobs running, and of those with as
    many, before whoever had its turn later. Within a tenant higher priorities go first, then older
    jobs: a tenant's priorities are nobody else's business.
    """
    now = time.time()
    found = (_next(tx, tenant, now) for tenant in _in_turn(tx, now))
    row = next((row for row in found if row is not None), None)
    if row is None:
        return None
    token = row.lease_token + 1
    tx.execute(
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.tenant == row.tenant)
        .values(
            status="running",
            attempt=row.attempt + 1,
            started=now,
            progress=0.0,
            phase="starting",
            message="",
            lease_owner=owner,
            lease_token=token,
            lease_expires=now + lease,
        )
    )
    job = get(tx, row.tenant, row.id)
    assert job is not None
    return job, token


def _in_turn(tx: Connection, now: float) -> list[str]:
    """All tenants with a job that may be claimed, those first whose turn it is."""
    query = select(jobs.c.tenant).where(jobs.c.status == "queued", jobs.c.run_after <= now)
    waiting = sorted(tx.execute(query.distinct()).scalars())
    if len(waiting) < 2:
        return waiting
    recent = (
        select(
            jobs.c.tenant,
            func.sum(case((jobs.c.status == "running", 1), else_=0)).label("running"),
            func.coalesce(func.max(jobs.c.started), 0.0).label("last"),
        )
        .where(jobs.c.tenant.in_(waiting))
        .where((jobs.c.created > now - _REMEMBERED) | (jobs.c.status == "running"))
        .group_by(jobs.c.tenant)
    )
    turns = {row.tenant: (row.running, row.last) for row in tx.execute(recent)}
    return sorted(waiting, key=lambda tenant: (turns.get(tenant, (0, 0.0)), tenant))


def _next(tx: Connection, tenant: str, now: float) -> Any:
    """The tenant's job to run next, unless somebody else is taking it."""
    query = (
        select(jobs.c.id, jobs.c.lease_token, jobs.c.attempt, jobs.c.tenant)
        .where(jobs.c.tenant == tenant, jobs.c.status == "queued", jobs.c.run_after <= now)
        .order_by(jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return tx.execute(query).first()


def write(tx: Connection, job: Job, token: int, **values: Any) -> bool:
    """Change a running job, if the token is still the current one."""
    done = tx.execute(
        update(jobs)
        .where(
            jobs.c.tenant == job.tenant,
            jobs.c.id == job.id,
            jobs.c.lease_token == token,
            jobs.c.status == "running",
        )
        .values(**values)
    )
    return done.rowcount == 1


def limit(tx: Connection, job: Job, seconds: float) -> None:
    """Hold a tenant's job to a time limit when it runs again."""
    here = (jobs.c.tenant == job.tenant, jobs.c.id == job.id)
    tx.execute(update(jobs).where(*here).values(time_limit=seconds))


def cancelling(tx: Connection, job: Job, token: int) -> bool | None:
    """Whether somebody asked to cancel; None when the lease is lost."""
    query = select(jobs.c.cancel_requested).where(
        jobs.c.tenant == job.tenant,
        jobs.c.id == job.id,
        jobs.c.lease_token == token,
        jobs.c.status == "running",
    )
    row = tx.execute(query).first()
    return None if row is None else bool(row[0])


def request_cancel(tx: Connection, tenant: str, identifier: str) -> None:
    """Mark an unfinished job; one that is still queued ends here and now."""
    here = (jobs.c.tenant == tenant, jobs.c.id == identifier)
    tx.execute(
        update(jobs)
        .where(*here, jobs.c.status == "queued")
        .values(status="cancelled", cancel_requested=True, finished=time.time(), phase="cancelled")
    )
    tx.execute(
        update(jobs).where(*here, jobs.c.status.not_in(FINISHED)).values(cancel_requested=True)
    )


def expired(tx: Connection) -> list[tuple[Job, int, float]]:
    """Running jobs, of any tenant, whose lease has run out, their token, and when it did."""
    query = select(*_SHOWN, jobs.c.lease_token, jobs.c.lease_expires).where(
        jobs.c.status == "running", jobs.c.lease_expires <= time.time()
    )
    found = []
    for row in tx.execute(query).mappings():
        values = dict(row)
        token, ended = values.pop("lease_token"), values.pop("lease_expires")
        found.append((Job(**values), token, ended))
    return found


def expire_all(tx: Connection) -> None:
    """End every lease of every tenant: only for the database's sole owner, at its start."""
    now = time.time()
    lasting = (jobs.c.status == "running", jobs.c.lease_expires > now)
    tx.execute(update(jobs).where(*lasting).values(lease_expires=now))


def unfinished(tx: Connection) -> list[Job]:
    """Every tenant's jobs that are queued or running."""
    query = select(*_SHOWN).where(jobs.c.status.in_(["queued", "running"]))
    return [Job(**row) for row in tx.execute(query).mappings()]


def owners(tx: Connection, identifiers: list[str]) -> dict[str, str]:
    """The tenants of jobs, of any tenant: whose folders these are is not in their names."""
    query = select(jobs.c.id, jobs.c.tenant).where(jobs.c.id.in_(identifiers))
    return {row.id: row.tenant for row in tx.execute(query)}


def of_tenant(tx: Connection, tenant: str) -> list[str]:
    """The ids of all of a tenant's jobs."""
    return list(tx.execute(select(jobs.c.id).where(jobs.c.tenant == tenant)).scalars())


def any_claimable(tx: Connection) -> bool:
    """Whether any tenant has a job that may be claimed now."""
    query = select(jobs.c.id).where(jobs.c.status == "queued", jobs.c.run_after <= time.time())
    return tx.execute(query.limit(1)).first() is not None


def count_unfinished(tx: Connection, tenant: str) -> int:
    """How many of a tenant's jobs are queued or running."""
    query = select(func.count()).where(
        jobs.c.tenant == tenant, jobs.c.status.in_(["queued", "running"])
    )
    return int(tx.execute(query).scalar_one())


# -- what jobs may not show


class Secret(NamedTuple):
    """Something that a job must know, by the field of its task that it is for."""

    tenant: str
    job: str
    field: str
    value: str


def keep_secret(tx: Connection, secret: Secret) -> None:
    """Keep something for a job of a tenant's."""
    tx.execute(insert(job_secrets).values(**secret._asdict()))


def secrets(tx: Connection, tenant: str, job: str = "") -> list[Secret]:
    """What is kept for a job, or for all jobs of a tenant."""
    query = select(job_secrets).where(job_secrets.c.tenant == tenant)
    if job:
        query = query.where(job_secrets.c.job == job)
    return [Secret(**row) for row in tx.execute(query).mappings()]


def change_secret(tx: Connection, secret: Secret, value: str) -> bool:
    """Put another value in the place of a tenant's that is still there."""
    here = [job_secrets.c[name] == known for name, known in secret._asdict().items()]
    return tx.execute(update(job_secrets).where(*here).values(value=value)).rowcount == 1


def forget_secrets(tx: Connection, tenant: str, job: str) -> None:
    """Delete what is kept for a job; SQLite overwrites it with zeros."""
    if tx.dialect.name == "sqlite":
        tx.exec_driver_sql("PRAGMA secure_delete=ON")
    tx.execute(delete(job_secrets).where(job_secrets.c.tenant == tenant, job_secrets.c.job == job))
