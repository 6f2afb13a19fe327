"""Tenants take turns at a thread, by the time that their jobs have taken."""

import asyncio
import threading
import time
from collections import Counter

import pytest

from tapster.serving.desks import Desk
from tests.serving.doubles import LIMIT, go, until


def equal(tenant: str) -> float:
    return 1.0


async def done(desk: Desk, jobs: str, seconds: dict[str, float]) -> str:
    """The order in which jobs were done that all waited behind one of somebody else."""
    order: list[str] = []
    gate = threading.Event()

    def work(tenant: str) -> None:
        time.sleep(seconds[tenant])
        order.append(tenant)

    first = [desk.run("first", gate.wait, LIMIT) for _ in range(2)]
    waiting = [desk.run(tenant, work, tenant) for tenant in jobs]
    gate.set()
    assert await asyncio.gather(*first) == [True, True]
    await asyncio.gather(*waiting)
    return "".join(order)


def test_tenants_take_turns_whoever_came_first() -> None:
    async def main() -> None:
        order = await done(Desk("test", equal), "aaaaaaaabbc", {"a": 0.01, "b": 0.01, "c": 0.01})
        assert "b" in order[:5]
        assert "c" in order[:5]
        assert Counter(order[:8])["b"] == 2
        assert Counter(order) == Counter("aaaaaaaabbc")

    go(main)


def test_who_takes_long_is_served_less_often() -> None:
    async def main() -> None:
        order = await done(Desk("test", equal), "aaaa" + "b" * 8, {"a": 0.1, "b": 0.01})
        assert Counter(order[:9])["b"] >= 6

    go(main)


def test_one_tenants_jobs_stay_in_order_and_errors_are_their_own() -> None:
    async def main() -> None:
        desk = Desk("test", equal)
        jobs = [desk.run("a", divmod, 7, number) for number in range(3)]
        with pytest.raises(ZeroDivisionError):
            await jobs[0]
        assert [await job for job in jobs[1:]] == [(7, 0), (3, 1)]
        abandoned = desk.run("a", time.sleep, 0.01)
        abandoned.cancel()
        assert await desk.run("b", len, "four") == 4
        await until(lambda: not desk._visitors)

    go(main)
