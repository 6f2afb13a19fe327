"""How much goes into a batch, in which order what waits is taken, and who gives way."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.serving.costs import MAX_ROWS, Cost
from tapster.serving.queues import Queue, Room
from tapster.serving.work import Work
from tests.serving.doubles import Asked

# A call costs so much that a batch has 160 rows, whatever they are.
CHEAP = Cost(1e-2, 1e-3)


def asked(rows: int = 1, seconds: float = 60.0, width: int = 1, tenant: str = "default") -> Asked:
    made = Asked(*[1.0] * rows, deadline=time.monotonic() + seconds)
    made.inputs = {"x": np.ones((rows, width), np.float32)}
    made.tenant = tenant
    return made


def filled(queue: Queue, tenants: str, rows: int = 1) -> list[Asked]:
    """A request of each tenant, in order; tenants have names of one letter."""
    made = [asked(rows, tenant=tenant) for tenant in tenants]
    for each in made:
        queue.append(each)
    return made


def equal(tenant: str) -> float:
    return 1.0


def tenants(batch: Sequence[Work]) -> str:
    return "".join(work.tenant for work in batch)


def few(rows: int) -> Room:
    """Room for so many rows."""
    room = Room(CHEAP, True)
    room._most = rows
    return room


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
    assert 150 < CHEAP.worthwhile < 170


def test_a_batch_leaves_its_tightest_deadline_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
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


def test_a_queue_gives_up_the_late_and_the_gone() -> None:
    for others in ("", "x"):
        queue = Queue(equal)
        made = filled(queue, others)
        now = time.monotonic()
        kept, late, gone = asked(2), asked(1, seconds=-1), asked(3)
        gone.done = True
        for each in (late, kept, gone):
            queue.append(each)
        assert queue.expire(now) == ([late], [gone])
        assert list(queue) == [*made, kept]
        assert (queue.count, queue.rows) == (1 + len(made), 2 + len(made))
        kept.done = True
        assert queue.take(few(9)) == (made, [kept])
        assert (queue.count, queue.rows, len(queue)) == (0, 0, 0)


def test_one_tenant_is_served_in_order() -> None:
    queue = Queue(equal)
    made = filled(queue, "a" * 10)
    assert not queue.contended
    assert queue.take(few(4))[0] == made[:4]
    made += filled(queue, "aa")
    assert queue.ahead("a") == 1.0
    assert queue.ahead("b") == 0.0
    assert queue.take(few(4))[0] == made[4:8]
    assert queue.drain() == made[8:]
    assert queue.count == queue.rows == 0


def test_tenants_take_turns_whoever_came_first() -> None:
    queue = Queue(equal)
    filled(queue, "a" * 20 + "b" * 5 + "c")
    assert queue.contended
    assert Counter(tenants(queue.take(few(6))[0])) == {"a": 3, "b": 2, "c": 1}
    assert Counter(tenants(queue.take(few(6))[0])) == {"a": 3, "b": 3}
    assert tenants(queue.take(few(20))[0]) == "a" * 14


def test_who_comes_late_is_next_and_saves_up_nothing() -> None:
    queue = Queue(equal)
    filled(queue, "a" * 40 + "b")
    assert Counter(tenants(queue.take(few(20))[0])) == {"a": 19, "b": 1}
    filled(queue, "b" * 10)
    got = tenants(queue.take(few(10))[0])
    assert "b" in got[:2]
    assert Counter(got) == {"a": 5, "b": 5}


def test_a_large_request_is_paid_for_by_waiting() -> None:
    queue = Queue(equal)
    big = [asked(10, tenant="a") for _ in range(2)]
    for each in big:
        queue.append(each)
    small = filled(queue, "b" * 20)
    first = queue.take(few(20))[0]
    assert [first.index(each) for each in (*big[:1], *small[:10])] == list(range(11))
    assert queue.take(few(100))[0][0] in {big[1], small[10]}


def test_a_weight_of_two_is_served_twice_as_much() -> None:
    queue = Queue({"a": 1.0, "b": 2.0, "c": 0.0}.__getitem__)
    filled(queue, "abc" * 30)
    assert Counter(tenants(queue.take(few(30))[0])) == {"a": 10, "b": 19, "c": 1}


def test_what_runs_alone_costs_a_run() -> None:
    queue = Queue(equal, together=False)
    for each in [asked(50, tenant="a") for _ in range(3)] + [asked(tenant="b") for _ in range(3)]:
        queue.append(each)
    order = ""
    while queue:
        order += tenants(queue.take(Room(CHEAP, False))[0])
    assert order == "ababab"


def test_shapes_run_apart_and_the_longest_wait_goes_first() -> None:
    queue = Queue(equal, shaped=True)
    work = [asked(1, width=width) for width in (2, 3, 2, 4, 3, 2)]
    for each in work:
        queue.append(each)
    assert len(queue) == len(list(queue)) == 6
    work[3].done = True
    batches = []
    while queue:
        batch, gone = queue.take(Room(Cost(1e-3, 1e-6), True))
        batches.append([work.index(each) for each in (*batch, *gone)])  # type: ignore[arg-type]
    assert batches == [[0, 2, 5], [1, 4], [3]]
    assert len(queue) == 0


def test_shapes_run_apart_and_tenants_take_turns_by_their_values() -> None:
    queue = Queue(equal, shaped=True)
    long = [asked(1, width=100, tenant="a") for _ in range(10)]
    short = [asked(1, width=10, tenant="b") for _ in range(30)]
    for each in long + short:
        queue.append(each)
    assert queue.take(few(5))[0] == long[:5]
    assert queue.take(few(20))[0] == short[:20]
    assert queue.take(few(20))[0] == short[20:]
    both = [asked(1, width=10, tenant=tenant) for tenant in "abab"]
    for each in both:
        queue.append(each)
    assert tenants(queue.take(few(2))[0]) == "bb"
    assert queue.take(few(20))[0] == long[5:]
    assert queue.take(few(20))[0] == [both[0], both[2]]


def test_shapes_expire_in_every_line() -> None:
    queue = Queue(equal, shaped=True)
    work = [asked(1, seconds, width) for width in (2, 3) for seconds in (-1, 60)]
    for each in work:
        queue.append(each)
    work[3].done = True
    late, gone = queue.expire(time.monotonic())
    assert late == [work[0], work[2]]
    assert gone == [work[3]]
    assert list(queue) == [work[1]]


def test_who_holds_most_gives_way() -> None:
    queue = Queue({"a": 1.0, "b": 1.0, "c": 4.0}.__getitem__)
    made = filled(queue, "aaaabbccccc")
    fullest = queue.fullest("b")
    assert fullest is not None
    assert queue.oust(fullest) is made[3]
    assert queue.fullest("a") is None  # it would hold most
    assert queue.fullest("b") is None  # as would this: three of each
    assert queue.fullest("c") is not None
    assert (queue.count, queue.rows) == (10, 10)
    alone = Queue(equal)
    filled(alone, "aaa")
    assert alone.fullest("a") is None
    assert alone.fullest("b") is not None


def test_how_much_goes_first() -> None:
    queue = Queue(equal)
    filled(queue, "a" * 80 + "b" * 10 + "c" * 10)
    assert queue.ahead("a") == 1.0
    assert 0.29 < queue.ahead("b") < 0.31
    assert queue.ahead("d") == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=60),
    st.lists(st.integers(1, 12), min_size=1, max_size=60),
    st.booleans(),
)
def test_nothing_is_lost_and_nobody_is_overtaken_by_much(
    requests: list[tuple[str, int]], rooms: list[int], shaped: bool
) -> None:
    """While two tenants wait, what they are served differs by no more than two of the largest."""
    queue = Queue(equal, shaped=shaped)
    made = [asked(rows, tenant=tenant) for tenant, rows in requests]
    for each in made:
        queue.append(each)
    waiting = Counter(tenant for tenant, _ in requests)
    served = dict.fromkeys("abcd", 0)
    order: list[Work] = []
    for room in [*rooms, *[10_000] * (len(made) > 0)]:
        for work in queue.take(few(room))[0]:
            order.append(work)
            served[work.tenant] += work.rows
            waiting[work.tenant] -= 1
            hungry = [served[tenant] for tenant in "abcd" if waiting[tenant]]
            assert not hungry or max(hungry) - min(hungry) <= 18
    assert queue.count == queue.rows == 0
    for tenant in "abcd":
        mine = [work for work in order if work.tenant == tenant]
        assert mine == [work for work in made if work.tenant == tenant]
