"""How much goes into a batch, and in which order what waits is taken."""

import time

import numpy as np

from tapster.serving.costs import MAX_ROWS, Cost
from tapster.serving.queues import Buckets, Line, Room
from tapster.serving.work import Work
from tests.serving.doubles import Asked


def asked(rows: int, seconds: float = 60.0, width: int = 1) -> Asked:
    made = Asked(*[1.0] * rows, deadline=time.monotonic() + seconds)
    made.inputs = {"x": np.ones((rows, width), np.float32)}
    return made


def taken(room: Room, *work: Work) -> int:
    """How many requests go in, one after another."""
    for count, each in enumerate(work):
        if not room.takes(each):
            return count
    return len(work)


def test_the_first_goes_in_whatever_it_is() -> None:
    for together in (True, False):
        room = Room(Cost(1.0, 1.0), together)
        assert taken(room, asked(5000, seconds=0.01), asked(1)) == 1


def test_no_more_rows_than_are_worth_it() -> None:
    cheap_rows, dear_rows = Cost(1e-2, 1e-6), Cost(1e-6, 1e-2)
    assert cheap_rows.worthwhile == MAX_ROWS
    assert dear_rows.worthwhile == 1
    assert taken(Room(cheap_rows, True), *[asked(100)] * 20) == 10
    assert taken(Room(dear_rows, True), *[asked(1)] * 20) == 1
    assert 150 < Cost(1e-2, 1e-3).worthwhile < 170


def test_a_batch_leaves_its_tightest_deadline_time() -> None:
    cost = Cost(0.1, 0.01)
    assert taken(Room(cost, True), *[asked(1, seconds=60)] * 20) == 20
    assert taken(Room(cost, True), *[asked(1, seconds=0.8)] * 20) == 9
    assert taken(Room(cost, True), *[asked(1)] * 12, *[asked(1, seconds=0.8)] * 20) == 12
    assert taken(Room(cost, False), *[asked(1)] * 20) == 1


def test_costs_follow_what_is_measured() -> None:
    cost = Cost(1e-3, 1e-4)
    for _ in range(100):
        cost.learn(10, 0.02)
        cost.clock(10, 0.2)
    assert 0.019 < cost.estimate(10) < 0.021
    assert 0.19 < cost.duration(10) < 0.21
    assert cost.wait(1000) > 5 * cost.duration(10)
    assert cost.wait(10, 10) > cost.wait(10)


def test_a_line_gives_up_the_late_and_the_gone() -> None:
    line = Line()
    now = time.monotonic()
    kept, late, gone = asked(1), asked(1, seconds=-1), asked(1)
    gone.done = True
    for each in (late, kept, gone):
        line.append(each)
    assert line.expire(now) == ([late], [gone])
    assert list(line) == [kept]
    assert line.take(Room(Cost(1e-3, 1e-3), True)) == ([kept], [])


def test_buckets_serve_the_longest_wait_first() -> None:
    buckets = Buckets()
    work = [asked(1, width=width) for width in (2, 3, 2, 4, 3, 2)]
    for each in work:
        buckets.append(each)
    assert len(buckets) == len(list(buckets)) == 6
    cost = Cost(1e-3, 1e-6)
    work[3].done = True
    batches = []
    while buckets:
        batch, gone = buckets.take(Room(cost, True))
        batches.append([work.index(each) for each in (*batch, *gone)])  # type: ignore[arg-type]
    assert batches == [[0, 2, 5], [1, 4], [3]]
    assert len(buckets) == 0


def test_buckets_expire_in_every_shape() -> None:
    buckets = Buckets()
    work = [asked(1, seconds, width) for width in (2, 3) for seconds in (-1, 60)]
    for each in work:
        buckets.append(each)
    work[3].done = True
    late, gone = buckets.expire(time.monotonic())
    assert late == [work[0], work[2]]
    assert gone == [work[3]]
    assert list(buckets) == [work[1]]
