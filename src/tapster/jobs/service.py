"""Jobs as their owners see them, and the transitions a claim loop makes."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import FINISHED, Job
from tapster.contract.errors import Code, TapsterError
from tapster.core.crypto import new_id
from tapster.core.parts import Parts
from tapster.core.resealing import Piece
from tapster.jobs import confidential, store
from tapster.jobs.logs import JobFolders
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.limits import quotas

MAX_ATTEMPTS: Final = 3
_PRIORITY: Final = 1_000_000
# A job that has used up its time is given so long (seconds) to be told.
_LEAST_TIME: Final = 0.001
STATUSES: Final = ("queued", "running", *sorted(FINISHED))
# Errors that another try may not meet again; every other one is the caller's to mend.
_PASSING: Final[frozenset[Code]] = frozenset({"internal", "unavailable"})


@dataclass(frozen=True)
class Handler:
    """What a kind of job does.

    `load(tx, job)` gives {"task": ..., "blobs": {label: key}, "uploads": {label: id}}; `run` names
    the function that a job process calls; `publish(parts, job, result, out)` stores and signs what
    it left, outside any transaction; `apply(tx, job, result)` writes the rows and gives the job's
    result, in the transaction that finishes the job.
    """

    run: str
    load: Callable[[Connection, Job], dict[str, Any]]
    publish: Callable[[Parts, Job, dict[str, Any], Path], dict[str, Any]]
    apply: Callable[[Connection, Job, dict[str, Any]], dict[str, Any]]


def submit(
    tx: Connection,
    tenant: str,
    *,
    kind: str,
    spec: dict[str, Any],
    priority: int = 0,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    max_attempts: int = MAX_ATTEMPTS,
) -> Job:
    """Queue a job. `time_limit` in seconds, `memory_limit` in bytes.

    Raises TapsterError(invalid) for a spec or a priority that no database could give back, and
    TapsterError(exhausted) when the tenant has as many jobs as it may.
    """
    _check_storable(spec, priority)
    quotas.check(tx, tenant, "jobs", lambda: store.count_unfinished(tx, tenant))
    identifier = new_id("job")
    store.add(
        tx,
        tenant,
        id=identifier,
        kind=kind,
        spec=spec,
        priority=priority,
        time_limit=time_limit,
        memory_limit=memory_limit,
        max_attempts=max_attempts,
    )
    return show(tx, tenant, identifier)


def show(tx: Connection, tenant: str, identifier: str) -> Job:
    """One job. Raises TapsterError(not_found)."""
    job = store.get(tx, tenant, identifier)
    if job is None:
        raise TapsterError(
            "not_found", f"there is no job {identifier!r}", hint="see `tapster jobs list`"
        )
    return job


def listing(tx: Connection, tenant: str, status: str = "", limit: int = 50) -> list[Job]:
    """A tenant's jobs, newest first. Raises TapsterError(invalid) for an unknown status."""
    if status and status not in STATUSES:
        raise TapsterError(
            "invalid",
            f"{status!r} is not a job's status",
            hint=f"choose one of: {', '.join(STATUSES)}",
            field="status",
        )
    return store.listing(tx, tenant, status, limit)


def cancel(tx: Connection, tenant: str, identifier: str) -> Job:
    """Ask for a job's end. Raises TapsterError(conflict) when it has ended already."""
    job = show(tx, tenant, identifier)
    if job.status in FINISHED:
        raise TapsterError("conflict", f"job {identifier} has ended already: {job.status}")
    store.request_cancel(tx, tenant, identifier)
    asked = show(tx, tenant, identifier)
    if asked.status in FINISHED:
        store.forget_secrets(tx, tenant, identifier)
        quotas.spend(tx, tenant, identifier, 0.0, ended=True)
    return asked


def unfinished(tx: Connection, tenant: str) -> int:
    """How many of a tenant's jobs are queued or running."""
    return store.count_unfinished(tx, tenant)


def succeed(tx: Connection, job: Job, token: int, result: dict[str, Any]) -> bool:
    """Finish a job well, if the lease is still ours; its time goes to the ledger."""
    done = store.write(
        tx,
        job,
        token,
        status="succeeded",
        result=result,
        error=None,
        progress=1.0,
        phase="done",
        message="",
        finished=time.time(),
    )
    if done:
        store.forget_secrets(tx, job.tenant, job.id)
        ledger.trained(tx, job)
        quotas.spend(tx, job.tenant, job.id, _lasted(job), ended=True)
    return done


def fail(
    tx: Connection, job: Job, token: int, error: TapsterError, ended: float | None = None
) -> bool:
    """Finish a job badly, or queue it again when another try may help. `ended`: when it failed."""
    lasted = _lasted(job, ended)
    if error.code == "cancelled":
        return _finish(tx, job, token, error, ended)
    if error.code in _PASSING and job.attempt < job.max_attempts:
        return _requeue(
            tx,
            job,
            token,
            lasted,
            error=error.as_dict(),
            phase="waiting to retry",
            message=error.message[:1000],
            run_after=time.time() + 2.0 ** (job.attempt - 1) / 2,
        )
    return _finish(tx, job, token, error, ended)


def release(tx: Connection, job: Job, token: int) -> bool:
    """Put a job back in the queue as if it had not been tried: its control process is stopping."""
    return _requeue(tx, job, token, _lasted(job), phase="queued", attempt=job.attempt - 1)


def recover(tx: Connection, *, sole_owner: bool) -> int:
    """Retry or fail every job whose lease ran out; returns how many there were.

    A database's sole owner (`sole_owner`, at its start) knows that every running job is lost.
    """
    if sole_owner:
        store.expire_all(tx)
    lost = store.expired(tx)
    for job, token, ended in lost:
        fail(tx, job, token, cancelled() if job.cancel_requested else died(job), ended)
    return len(lost)


def died(job: Job) -> TapsterError:
    """The reason given when a job's process, or the one watching it, is suddenly gone."""
    return TapsterError(
        "unavailable",
        f"the process that ran the job died (attempt {job.attempt} of {job.max_attempts})",
        hint=f"see `tapster jobs logs {job.id}`; the machine may be short of memory",
    )


def cancelled() -> TapsterError:
    """The reason given when a user ended the job."""
    return TapsterError("cancelled", "cancelled by a user")


def uploads_in_use(tx: Connection) -> set[str]:
    """Uploads that unfinished jobs still need."""
    return {str(job.spec["upload"]) for job in store.unfinished(tx) if job.spec.get("upload")}


def owners(tx: Connection, identifiers: list[str]) -> dict[str, str]:
    """Tenants by job."""
    return store.owners(tx, identifiers)


def stop_all(tx: Connection, tenant: str) -> int:
    """Ask every job of a tenant to end; how many have not yet."""
    for job in store.unfinished(tx):
        if job.tenant == tenant:
            store.request_cancel(tx, tenant, job.id)
    return store.count_unfinished(tx, tenant)


def folders(tx: Connection, parts: Parts, tenant: str) -> list[Path]:
    """Where the logs of a tenant's jobs lie."""
    vaults = [] if parts.vault is None else [parts.vault.root]
    roots = [parts.settings.home, *vaults]
    found = [root / "jobs" / job for job in store.of_tenant(tx, tenant) for root in roots]
    return [path for path in found if path.is_dir()]


def sealed(parts: Parts, tenant: str) -> Iterator[Piece]:
    """What of a tenant's jobs lies sealed: their logs, and what they must know."""
    with parts.db.read() as tx:
        known = store.of_tenant(tx, tenant)
    yield from JobFolders(parts).pieces(tenant, known)
    yield from confidential.pieces(parts, tenant)


def _check_storable(spec: dict[str, Any], priority: int) -> None:
    if abs(priority) > _PRIORITY:
        raise TapsterError(
            "invalid", f"the priority is not within {_PRIORITY:,} of zero", field="priority"
        )
    try:
        json.dumps(spec, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise TapsterError(
            "invalid",
            "the request holds a number that is not finite, or text that is not Unicode",
            hint="leave out NaN, Infinity and unpaired surrogates",
        ) from None


def _requeue(tx: Connection, job: Job, token: int, lasted: float, **values: Any) -> bool:
    """Queue a job again, with what is left of the time that was set aside for it."""
    if not store.write(tx, job, token, status="queued", lease_owner="", **values):
        return False
    left = quotas.spend(tx, job.tenant, job.id, lasted, ended=False)
    if left is not None:
        store.limit(tx, job, max(left, _LEAST_TIME))
    return True


def _lasted(job: Job, ended: float | None = None) -> float:
    """Seconds of the attempt that ends now, or has at `ended`."""
    end = time.time() if ended is None else ended
    return max(0.0, end - job.started) if job.started is not None else 0.0


def _finish(tx: Connection, job: Job, token: int, error: TapsterError, ended: float | None) -> bool:
    status = "cancelled" if error.code == "cancelled" else "failed"
    done = store.write(
        tx,
        job,
        token,
        status=status,
        error=error.as_dict(),
        phase=status,
        message=error.message[:1000],
        finished=time.time(),
    )
    if done:
        store.forget_secrets(tx, job.tenant, job.id)
        quotas.spend(tx, job.tenant, job.id, _lasted(job, ended), ended=True)
    if done and error.code not in _PASSING:  # what failed by our fault is on nobody's account
        ledger.trained(tx, job, ended=ended)
    return done
