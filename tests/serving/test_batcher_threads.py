"""Batches in threads: deadlines, limits, company, shapes, models that leave and come back."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Signature, TensorSpec
from tapster.serving import batcher
from tapster.serving.costs import Cost
from tapster.serving.slots import CANCELLED, EXPIRED, QUEUE_FULL, UNAVAILABLE
from tests.serving.doubles import LIMIT, Bench, Held, go, until


def test_what_waits_expires_on_time_and_in_flight_soon_after(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3), together=False)
        began = time.monotonic()
        runs, waits = bench.ask(1, seconds=0.2), bench.ask(2, seconds=0.1)
        for asked, deadline in ((waits, 0.1), (runs, 0.2)):
            await until(lambda asked=asked: asked.done)  # type: ignore[misc]
            # Long before the run ends, which it does when it is let.
            assert deadline <= time.monotonic() - began < LIMIT / 2
        for asked in (runs, waits):
            assert isinstance(asked.error, TapsterError)
            assert asked.error.code == "deadline"
        assert bench.counted(EXPIRED) == 1
        later = bench.ask(3)
        model.let(2)
        await until(lambda: later.done)
        assert model.sizes == [1, 1]  # the second request has never run

    go(main)


def test_a_run_that_nobody_waits_for_is_called_off(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3))
        first = bench.ask(1)
        await until(lambda: model.sizes == [1])
        both = [bench.ask(2), bench.ask(3)]
        first.done = True
        await until(lambda: model.stops[0].called)
        model.let()
        await until(lambda: model.sizes == [1, 2])
        both[0].done = True
        model.let()
        await until(lambda: both[1].done)
        assert not model.stops[1].called
        assert both[1].body == b"[6.0]"
        assert both[0].body == first.body == b""

    go(main)


def test_callers_who_leave_the_queue_are_counted(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3))
        bench.ask(1)
        await until(lambda: model.sizes == [1])
        waiting = [bench.ask(number) for number in (2, 3, 4)]
        waiting[0].done = waiting[2].done = True
        model.let(2)
        await until(lambda: waiting[1].done)
        assert model.sizes == [1, 1]
        assert bench.counted(CANCELLED) == 2
        assert len(bench.batcher) == 0

    go(main)


def test_the_queue_has_a_limit(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3))
        bench.batcher.configure(queue=3, concurrency=1, window=None)
        asked = [bench.ask(1)]
        await until(lambda: model.sizes == [1])
        asked += [bench.ask(number) for number in (2, 3, 4)]
        error = bench.refused(5)
        assert error.code == "unavailable"
        assert error.retry_after >= 1
        assert bench.counted(QUEUE_FULL) == 1
        model.let(2)
        await until(lambda: all(each.done for each in asked))
        assert model.sizes == [1, 3]

    go(main)


def test_who_would_be_late_is_refused_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1.0, 0.1), together=False)
        asked = [bench.ask(1, seconds=0.5)]  # late for sure, but nothing is in its way
        await until(lambda: model.sizes == [1])
        asked += [bench.ask(number, seconds=60) for number in range(8)]
        error = bench.refused(9, seconds=5)
        assert error.code == "unavailable"
        assert "late" in error.message
        assert 8 <= error.retry_after <= 12
        asked.append(bench.ask(9, seconds=20))
        assert bench.counted(QUEUE_FULL) == 1
        model.let(20)
        await until(lambda: all(each.done for each in asked))
        assert model.sizes == [1] * 10

    go(main)


def test_so_many_runs_at_once_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3), together=False)
        bench.batcher.configure(queue=100, concurrency=3, window=None)
        asked = [bench.ask(number) for number in range(10)]
        await until(lambda: len(model.sizes) == 3)
        model.let(1)
        await until(lambda: len(model.sizes) == 4)
        model.let(9)
        await until(lambda: all(each.done for each in asked))
        assert model.most == 3
        assert [each.body for each in asked] == [b"[%.1f]" % (2 * n) for n in range(10)]

    go(main)


def test_requests_gather_while_a_run_is_in_flight(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-5))
        asked = [bench.ask(0)]
        await until(lambda: model.sizes == [1])
        asked += [bench.ask(number) for number in range(1, 11)]
        model.let(2)
        await until(lambda: all(each.done for each in asked))
        assert model.sizes == [1, 10]

    go(main)


def test_those_just_answered_are_waited_for_if_that_saves_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "LONGEST_WINDOW", 1.0)  # else a busy machine comes too late

    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(4.0, 1e-5))
        asked = [bench.ask(0)]
        await until(lambda: model.sizes == [1])
        asked += [bench.ask(number) for number in range(8)]
        model.let(2)
        await until(lambda: all(each.done for each in asked))
        again = [bench.ask(number) for number in range(5)]
        await asyncio.sleep(0)  # so far five of eight are back
        again += [bench.ask(number) for number in range(5, 8)]
        model.let()
        await until(lambda: all(each.done for each in again))
        assert model.sizes == [1, 8, 8]
        alone = bench.ask(1)  # seven do not come back, and are not waited for long
        model.let(2)
        await until(lambda: alone.done)
        last = bench.ask(2)
        await until(lambda: last.done)
        assert model.sizes == [1, 8, 8, 1, 1]

    go(main)


def test_a_lone_request_waits_only_if_its_endpoint_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(0.5, 1e-5))
        bench.batcher.configure(queue=100, concurrency=1, window=1.0)
        began = time.monotonic()
        first = bench.ask(1)
        await asyncio.sleep(0.05)
        assert model.sizes == []
        second = bench.ask(2)
        model.let(5)
        await until(lambda: first.done and second.done)
        assert time.monotonic() - began >= 0.99
        assert model.sizes == [2]
        bench.batcher.configure(queue=100, concurrency=1, window=10 * LIMIT)
        hurried = bench.ask(3, seconds=2)  # its deadline is nearer than the window's end
        await until(lambda: hurried.done)
        assert hurried.body == b"[6.0]"
        bench.batcher.configure(queue=100, concurrency=1, window=None)
        third = bench.ask(3)
        await until(lambda: third.done)

    go(main)


def test_who_is_in_a_hurry_ends_the_waiting_of_those_before_it(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        model.let(5)
        bench = Bench(tmp_path, model, Cost(0.1, 1e-5))
        bench.batcher.configure(queue=100, concurrency=1, window=10 * LIMIT)
        patient = bench.ask(1)
        await asyncio.sleep(0.05)
        hurried = bench.ask(2, seconds=1.5)
        began = time.monotonic()
        await until(lambda: patient.done and hurried.done)
        assert time.monotonic() - began < 1.5
        assert (patient.body, hurried.body) == (b"[2.0]", b"[4.0]")

    go(main)


def test_shapes_run_apart_and_none_holds_up_another(tmp_path: Path) -> None:
    ragged = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))

    async def main() -> None:
        model = Held(ragged)
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-5))
        asked = [bench.ask(array=np.ones((1, 9), np.float32))]
        await until(lambda: model.sizes == [1])
        for width in (2, 3, 2, 3, 3, 2, 4):
            asked.append(bench.ask(array=np.full((1, width), width, np.float32)))
        assert len(bench.batcher) == 7
        model.let(9)
        await until(lambda: all(each.done for each in asked))
        assert model.sizes == [1, 3, 3, 1]
        assert asked[4].body == b"[6.0, 6.0, 6.0]"

    go(main)


def test_a_model_may_leave_and_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3))
        batcher, woken = bench.batcher, []
        batcher.wake = lambda: woken.append(1)
        first = bench.ask(1)
        left: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        batcher.leave(left.set_result)
        await until(lambda: model.sizes == [1])
        assert not left.done()
        model.let()
        assert await left is model
        assert first.body == b"[2.0]"
        waiting, hasty = bench.ask(2), bench.ask(3, seconds=0.05)
        await until(lambda: hasty.done)
        assert woken
        assert isinstance(hasty.error, TapsterError)
        assert hasty.error.code == "deadline"
        batcher.resume(model)
        model.let()
        await until(lambda: waiting.done)
        assert waiting.body == b"[4.0]"
        assert model.sizes == [1, 1]

    go(main)


def test_a_model_that_cannot_come_back_fails_what_waits(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, Held(), Cost(1e-3, 1e-3))
        left: list[object] = []
        bench.batcher.leave(left.append)
        assert len(left) == 1
        asked = [bench.ask(1), bench.ask(2)]
        bench.batcher.refuse(TapsterError("unavailable", "gone"))
        assert [str(each.error) for each in asked] == ["gone", "gone"]
        assert bench.counted(UNAVAILABLE) == 2
        assert not bench.batcher.busy

    go(main)


def test_a_run_that_never_ends_is_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        bench = Bench(tmp_path, model, Cost(1e-3, 1e-3))
        bench.ask(1, seconds=0.05)
        await until(lambda: bench.late)
        assert 3 < bench.late[0] < 3 + LIMIT / 2
        model.let()
        await until(lambda: not bench.batcher.busy)

    go(main)
