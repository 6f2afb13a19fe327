"""Tenants take turns: one with many jobs, or with urgent ones, keeps no other from a slot."""

import time

from tapster.core.parts import Parts
from tapster.jobs import service, store


def submit(parts: Parts, tenant: str, count: int, priority: int = 0) -> None:
    """Queue jobs of a tenant."""
    with parts.db.write() as tx:
        for _ in range(count):
            service.submit(tx, tenant, kind="work", spec={}, priority=priority)


def claimed(parts: Parts, count: int, *, end: bool = False) -> list[str]:
    """The tenants of the next jobs, each of which ends before the next is taken if `end`."""
    order = []
    with parts.db.write() as tx:
        for _ in range(count):
            taken = store.claim(tx, "me", 30)
            assert taken is not None
            order.append(taken[0].tenant)
            if end:
                service.succeed(tx, *taken, {})
            time.sleep(0.002)
    return order


def test_whoever_has_fewer_jobs_running_is_next(parts: Parts) -> None:
    submit(parts, "many", 6, priority=1000)
    assert claimed(parts, 2) == ["many", "many"]
    submit(parts, "few", 2, priority=-1000)
    assert claimed(parts, 4) == ["few", "few", "many", "many"]


def test_with_one_slot_tenants_alternate(parts: Parts) -> None:
    submit(parts, "a", 3)
    submit(parts, "b", 2)
    submit(parts, "c", 1)
    assert claimed(parts, 6, end=True) == ["a", "b", "c", "a", "b", "a"]


def test_every_job_is_taken_once(parts: Parts) -> None:
    submit(parts, "a", 1)
    submit(parts, "b", 1)
    assert sorted(claimed(parts, 2)) == ["a", "b"]
    with parts.db.write() as tx:
        assert store.claim(tx, "me", 30) is None
