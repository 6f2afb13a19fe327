"""What nobody asks for at that moment: rollouts that go back, jobs that are lost."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from tapster.app import open_parts
from tapster.contract.audit import AuditLine
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.deployments import service, store
from tapster.deployments.judgement import Rules
from tapster.jobs import service as jobs
from tapster.jobs import store as job_rows
from tapster.tenancy.audit import service as audit
from tapster.tenancy.audit.acts import acting
from tapster.tenancy.audit.store import Selection
from tests.deployments.conftest import NUMBERS, DataPlane, live, register, regression


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """An installation's parts, with two versions of a model."""
    made = open_parts(load({}, home=tmp_path))
    with made.db.write() as tx:
        for number in (1, 2):
            register(tx, f"m@{number}", regression(*NUMBERS))
    yield made
    made.db.close()


def lines(parts: Parts) -> list[AuditLine]:
    return audit.listing(parts.db, "*", Selection(), 0, 100)[::-1]


def later(tx: Connection, seconds: float) -> None:
    """So much time goes by: the step has begun so much earlier."""
    (row,) = store.everywhere(tx)
    rollout: Any = row.rollout
    moved = {**msgspec.to_builtins(rollout), "since": rollout.since - seconds}
    tx.execute(update(store.endpoints).values(rollout=moved))


def test_a_rollout_that_goes_back_by_itself_says_why(parts: Parts) -> None:
    with parts.db.write() as tx:
        plane = DataPlane(tx)
        live(tx, plane, "m@1")
        rules = Rules(interval=10, min_requests=20)
        service.roll_out(tx, "default", "e", "m@2", steps=(5, 100), rules=rules)
        plane.answer("1", ok=1000)
        plane.settle(2)
        later(tx, 11)
        plane.answer("1", ok=300)
        plane.answer("2", ok=10, errors=30)
    with acting("default", "deployments.settle"), parts.db.write() as tx:
        plane._tx = tx
        assert plane.settle()
    (line,) = [each for each in lines(parts) if each.action == "deployments.rollback"]
    assert (line.tenant, line.who, line.object) == ("default", "system", "endpoint=e")
    assert line.after is not None
    assert line.after["canary"] == "m@2"
    assert "error" in line.after["reason"]
    assert line.after["endpoints"][0]["status"] == "loading"


def test_a_job_that_was_lost_is_recorded(parts: Parts) -> None:
    with parts.db.write() as tx:
        jobs.submit(tx, "default", kind="k", spec={}, max_attempts=1)
        claimed = job_rows.claim(tx, "somebody", -1.0)
    assert claimed is not None
    before = len(lines(parts))
    with acting("", "jobs.recover"), parts.db.write() as tx:
        assert jobs.recover(tx, sole_owner=False) == 1
    with acting("", "jobs.recover"), parts.db.write() as tx:
        assert jobs.recover(tx, sole_owner=False) == 0
    (line,) = lines(parts)[before:]
    assert (line.tenant, line.action) == ("default", "jobs.recover")
    assert line.after is not None
    assert line.after["jobs"][0]["status"] == "failed"


def test_a_replaced_admin_key_is_recorded(parts: Parts, tmp_path: Path) -> None:
    first = [line.action for line in lines(parts)]
    assert first == ["keys.admin"]
    again = open_parts(load({}, home=tmp_path))
    assert len(lines(again)) == 1, "nothing changed"
    again.db.close()
    (tmp_path / "admin.key").unlink()
    third = open_parts(load({}, home=tmp_path))
    newest = lines(third)[-1]
    assert (newest.number, newest.action, newest.object) == (2, "keys.admin", "key=key_admin")
    assert newest.at <= time.time()
    third.db.close()
