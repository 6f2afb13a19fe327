"""Passwords of imports: sealed while their job needs them, and gone once it has ended."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.jobs import confidential
from tapster.jobs import service as jobs
from tapster.jobs import store as job_store
from tests.tenancy.datakeys.conftest import OLD, URL, Home, filled


def _import(parts: Parts) -> Any:
    with parts.db.write() as tx:
        job = jobs.submit(tx, "acme", kind="dataset.import", spec={"upload": ""}, max_attempts=2)
        confidential.keep(tx, parts.keys, "acme", job.id, {"url": URL})
    return job


def _claimed(parts: Parts) -> tuple[Any, int]:
    with parts.db.write() as tx:
        found = job_store.claim(tx, "me", 60.0)
    assert found is not None
    return found


def _kept(parts: Parts) -> list[Any]:
    with parts.db.read() as tx:
        return job_store.secrets(tx, "acme")


def _cancelled(parts: Parts, job: Any) -> None:
    with parts.db.write() as tx:
        jobs.cancel(tx, "acme", job.id)


def _succeeded(parts: Parts, job: Any) -> None:
    with parts.db.write() as tx:
        assert jobs.succeed(tx, *_claimed_in(tx), {})


def _claimed_in(tx: Any) -> tuple[Any, int]:
    found = job_store.claim(tx, "me", 60.0)
    assert found is not None
    return found


def _failed(parts: Parts, job: Any) -> None:
    with parts.db.write() as tx:
        jobs.fail(tx, *_claimed_in(tx), TapsterError("invalid", "no such table"))


def _cancelled_midway(parts: Parts, job: Any) -> None:
    with parts.db.write() as tx:
        claimed = _claimed_in(tx)
        jobs.cancel(tx, "acme", job.id)
        assert job_store.secrets(tx, "acme")
        jobs.fail(tx, *claimed, jobs.cancelled())


@pytest.mark.parametrize("end", [_cancelled, _succeeded, _failed, _cancelled_midway])
@pytest.mark.parametrize("keys", [{}, {"master_key": OLD}], ids=["plain", "sealed"])
def test_a_password_is_gone_once_its_job_has_ended(
    home: Home, keys: dict[str, str], end: Callable[[Parts, Any], None]
) -> None:
    parts, _ = filled(home, **keys)
    job = _import(parts)
    assert ("hunter2" in str(_kept(parts))) is not bool(keys)
    assert confidential.opened(parts.keys, _kept(parts)) == {"url": URL}
    end(parts, job)
    assert _kept(parts) == []
    if not home.database:
        assert b"hunter2" not in (home.folder / "tapster.db").read_bytes()


def test_a_job_that_is_tried_again_finds_its_password(home: Home) -> None:
    parts, _ = filled(home, master_key=OLD)
    job = _import(parts)
    claimed, token = _claimed(parts)
    with parts.db.write() as tx:
        jobs.fail(tx, claimed, token, TapsterError("unavailable", "the database is away"))
        assert jobs.show(tx, "acme", job.id).status == "queued"
    assert confidential.opened(parts.keys, _kept(parts)) == {"url": URL}
    until = time.monotonic() + 60
    while _kept(parts):
        assert time.monotonic() < until
        with parts.db.write() as tx:
            if (found := job_store.claim(tx, "me", 60.0)) is not None:
                jobs.release(tx, *found)  # the control process stops
                assert job_store.secrets(tx, "acme")
                found = job_store.claim(tx, "me", 60.0)
                assert found is not None
                jobs.fail(tx, *found, TapsterError("unavailable", "and away"))
        time.sleep(0.05)
