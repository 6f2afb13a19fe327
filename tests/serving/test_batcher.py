"""Batches: one culprit, order, the budget of a turn, whatever the batch, the same answer."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tapster.contract.errors import TapsterError
from tapster.serving.batcher import Batcher, Means
from tapster.serving.costs import Budget, Cost
from tapster.serving.expiry import Guard
from tapster.serving.slots import BATCH_BUCKETS, BATCH_SUM, Region, Slots
from tapster.serving.threads import Threads
from tests.serving.doubles import Asked, Double


def run(
    tmp_path: Path,
    model: Double,
    work: list[Asked],
    *,
    inline: bool = True,
    together: bool = True,
    budget: float = 1.0,
    then: Callable[[Batcher, float], object] = lambda batcher, now: None,
) -> Region:
    slots = Slots(tmp_path / "slots")
    region = slots.region(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        means = Means(Budget(loop, budget), region, Threads("model"), Guard(loop))
        batcher = Batcher(model, means, Cost(1e-6, 1e-6), inline=inline, together=together)
        for each in work:
            each.place = region.nowhere
            batcher.submit(each)
        until = time.monotonic() + 20
        while not all(each.done for each in work):
            assert time.monotonic() < until
            then(batcher, loop.time())
            await asyncio.sleep(0.001)
        left: asyncio.Future[object] = loop.create_future()
        batcher.leave(left.set_result)
        assert await asyncio.wait_for(left, 10) is model

    asyncio.run(main())
    return region


def test_a_turn_is_a_batch_and_order_is_kept(tmp_path: Path) -> None:
    for inline in (True, False):
        model = Double()
        work = [Asked(*range(number, number + 1 + number % 3)) for number in range(100, 200)]
        region = run(tmp_path, model, work, inline=inline)
        assert model.sizes == [sum(each.rows for each in work)]
        for number, each in enumerate(work, 100):
            wanted = [2.0 * value for value in range(number, number + 1 + number % 3)]
            assert each.body == repr(wanted).encode()
    assert region.words[region.offset + BATCH_SUM] == 2 * sum(each.rows for each in work)
    assert region.words[region.offset + BATCH_BUCKETS + 8] == 2  # 129 .. 256 rows


def test_only_the_culprit_sees_the_error(tmp_path: Path) -> None:
    for inline in (True, False):
        work = [Asked(number) for number in (1, 2, -3, 4, 13, 6)]
        run(tmp_path, Double(), work, inline=inline)
        assert [each.body for each in work] == [b"[2.0]", b"[4.0]", b"", b"[8.0]", b"", b"[12.0]"]
        assert isinstance(work[2].error, TapsterError)
        assert isinstance(work[4].error, ZeroDivisionError)


def test_large_requests_run_in_batches_of_bounded_size(tmp_path: Path) -> None:
    model, large = Double(), [float(number) for number in range(100, 3100)]
    work = [Asked(*[1.0] * 600), Asked(*[1.0] * 600), Asked(*large)]
    run(tmp_path, model, work)
    assert model.sizes == [600, 600, 1024, 1024, 952]
    assert work[2].body == repr([2 * value for value in large]).encode()


def test_what_cannot_be_batched_runs_alone(tmp_path: Path) -> None:
    model = Double()
    run(tmp_path, model, [Asked(1), Asked(2), Asked(3)], together=False)
    assert model.sizes == [1, 1, 1]


def test_work_of_callers_who_left_is_not_run(tmp_path: Path) -> None:
    model = Double()
    work = [Asked(1), Asked(2), Asked(3)]
    work[1].done = True
    run(tmp_path, model, work)
    assert model.sizes == [2]
    assert work[1].body == b""


def test_beyond_the_budget_work_leaves_the_loop(tmp_path: Path) -> None:
    model = Double(seconds=0.3)
    ticks = []
    work = [Asked(number) for number in range(3)]
    run(tmp_path, model, work, budget=1e-9, then=lambda batcher, now: ticks.append(now))
    assert len(ticks) > 5
    assert [each.body for each in work] == [b"[0.0]", b"[2.0]", b"[4.0]"]


def test_what_expires_is_told_so_and_never_run(tmp_path: Path) -> None:
    model = Double(seconds=0.3)
    now = time.monotonic()
    work = [Asked(1, deadline=now + 0.1), Asked(2, deadline=now + 0.05)]
    run(tmp_path, model, work, inline=False, together=False, then=Batcher.expire)
    assert model.sizes == [1]
    for each in work:
        assert isinstance(each.error, TapsterError)
        assert each.error.code == "deadline"
