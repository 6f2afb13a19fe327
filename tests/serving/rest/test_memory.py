"""What a worker holds of bodies and answers stays within its limit; who waits is served in turn."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import psutil
import pytest

from tapster.serving.rest.memory import MAX_WAITING, SMALL, Memory
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, read_all, request, wait_for
from tests.serving.rest.test_protocol import GOOD, INFER, only

MIB = 1 << 20
BINARY = "/v2/models/rows/infer"


class Waiter:
    def __init__(self) -> None:
        self.told = 0
        self.sent_off = False

    def granted(self) -> None:
        self.told += 1

    def denied(self) -> None:
        self.sent_off = True


def test_those_who_wait_are_served_in_order() -> None:
    memory = Memory(10 * MIB)
    assert memory.take(6 * MIB)
    large, other = Waiter(), Waiter()
    assert not memory.take(5 * MIB)
    assert memory.wait(large, 5 * MIB)
    assert not memory.take(MIB), "nobody overtakes"
    assert memory.wait(other, MIB)
    assert memory.wanted
    memory.give(MIB)
    assert (large.told, other.told, memory.held) == (1, 0, 10 * MIB)
    memory.give(5 * MIB)
    assert (other.told, memory.held, memory.wanted) == (1, 6 * MIB, False)


def test_tenants_are_served_by_turns_and_who_has_most_that_wait_gives_way() -> None:
    memory = Memory(MIB)
    assert memory.take(MIB)
    flood = [Waiter() for _ in range(MAX_WAITING)]
    assert all(memory.wait(waiter, MIB, "flooder") for waiter in flood)
    assert not memory.wait(Waiter(), MIB, "flooder")
    polite = [Waiter() for _ in range(2)]
    assert all(memory.wait(waiter, MIB, "polite") for waiter in polite)
    assert [waiter.sent_off for waiter in flood[-3:]] == [False, True, True]
    for _ in range(4):
        memory.give(MIB)
    assert [waiter.told for waiter in (*flood[:3], *polite)] == [1, 1, 0, 1, 1]
    for waiter in (*flood[2:-2], *polite):
        memory.forget(waiter)
    assert not memory.wanted
    assert memory.held == MIB


def test_small_bodies_and_answers_do_not_wait_for_large_bodies() -> None:
    memory = Memory(100 * SMALL)
    assert memory.take(100 * SMALL)
    assert not memory.take(SMALL + 1)
    assert memory.wait(Waiter(), SMALL + 1)
    assert [memory.take(SMALL) for _ in range(26)] == [True] * 25 + [False]
    assert (memory.full, memory.unread) == (True, False)
    memory.owe(100 * SMALL)
    assert memory.unread


def test_one_body_always_has_room_and_the_queue_ends() -> None:
    memory = Memory(10 * MIB)
    assert memory.take(50 * MIB)
    assert memory.full
    waiters = [Waiter() for _ in range(MAX_WAITING + 1)]
    assert [memory.wait(waiter, 20 * MIB) for waiter in waiters] == [True] * MAX_WAITING + [False]
    memory.forget(waiters[0])
    memory.give(50 * MIB)
    assert [waiter.told for waiter in waiters[:3]] == [0, 1, 0]


@pytest.fixture
def narrow(new_plane: Callable[..., Plane]) -> Plane:
    """A worker that may hold 8 MiB; `rows` gives rows of 1,000 numbers back as they came."""
    plane = new_plane(body_memory=8 * MIB, max_body=6 * MIB, receive_timeout=8.0)
    made = (packages.regressor(plane.home, 1.0), packages.every(plane.home, "FP32", width=1000))
    plane.plan(endpoint("sum", made[0]), endpoint("rows", made[1]), packages=made)
    plane.start()
    plane.applied()
    return plane


def tensor(rows: int, *, answer: bool = True) -> tuple[bytes, bytes]:
    """A binary request for `rows`: its head, and its body."""
    data = np.ones((rows, 1000), "<f4").tobytes()
    document = (
        f'{{"inputs":[{{"name":"x_FP32","datatype":"FP32","shape":[{rows},1000],'
        f'"parameters":{{"binary_data_size":{len(data)}}}}}],'
        f'"parameters":{{"binary_data_output":{str(answer).lower()}}}}}'
    ).encode()
    more = f"Inference-Header-Content-Length: {len(document)}\r\n"
    whole = request(BINARY, document + data, more=more)
    body = len(document) + len(data)
    return whole[:-body], whole[-body:]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin(plane: Plane, stack: ExitStack, head: bytes, body: bytes) -> socket.socket:
    line = stack.enter_context(plane.connect())
    line.sendall(head + body[: MIB // 4])
    return line


def answered(line: socket.socket) -> bool:
    """Whether the whole answer of 4 MB comes, and is a good one."""
    got = b""
    while len(got) < 4_000_000:
        piece = line.recv(MIB)
        assert piece, got[:200]
        got += piece
    return got.startswith(b"HTTP/1.1 200 ")


def settle(plane: Plane) -> None:
    """Let the worker read what was sent before: it answers whoever comes later."""
    for _ in range(5):
        assert plane.call("POST", INFER, GOOD).status == 200


def test_bodies_wait_for_room_then_are_served(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(1000)  # 4 MB: two of them fit
    lines = [begin(narrow, stack, head, body) for _ in range(4)]
    assert narrow.call("POST", INFER, GOOD).status == 200
    for line in lines:
        line.sendall(body[MIB // 4 :])
        assert answered(line)


def test_who_has_been_answered_holds_nothing(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(1000)  # 4 MB: two of them fit
    for line in [stack.enter_context(narrow.connect()) for _ in range(5)]:
        line.sendall(head + body)
        assert answered(line)  # and the connection stays open
    assert narrow.call("POST", INFER, GOOD).status == 200


def test_who_promises_a_body_and_sends_none_makes_room(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(1000)
    promises = [begin(narrow, stack, head, body) for _ in range(2)]
    settle(narrow)
    with narrow.connect() as line:
        line.sendall(head + body)
        assert line.recv(MIB).startswith(b"HTTP/1.1 200 ")
    given_up = select.select(promises, [], [], 0)[0]
    assert given_up
    assert [only(read_all(line))[0] for line in given_up] == [408] * len(given_up)


def test_bodies_that_find_no_room_are_refused(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(1048)  # two of them, and next to nothing more
    busy = [begin(narrow, stack, head, body) for _ in range(2)]
    settle(narrow)
    chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    late = [begin(narrow, stack, head, body) for _ in range(2)]
    late.append(begin(narrow, stack, chunked + b"100000\r\n" + bytes(MIB // 2), b""))
    for start in range(MIB // 4, 3 * MIB, MIB // 8):
        for line in busy:
            line.sendall(body[start : start + MIB // 8])
        time.sleep(0.2)
    refusals = [read_all(line) for line in late]
    assert [only(each)[0] for each in refusals] == [503] * 3, refusals
    assert all(b"as many bodies" in each for each in refusals)
    assert all(b"\r\nretry-after: " in each.lower() for each in refusals)
    for line in busy:
        line.sendall(body[3 * MIB :])
        assert line.recv(MIB).startswith(b"HTTP/1.1 200 ")


def push(plane: Plane, stack: ExitStack, data: bytes, count: int, seconds: float) -> int:
    """Send `data` by `count` connections that never read; by how much the worker grew meanwhile."""
    process = psutil.Process(plane.workers[0].pid)
    assert plane.call("POST", INFER, GOOD).status == 200
    before = peak = process.memory_info().rss
    lines = []
    for _ in range(count):
        line = stack.enter_context(socket.socket())
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", plane.port))
        line.setblocking(False)
        lines.append((line, memoryview(data)))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number, (line, rest) in enumerate(lines):
            try:
                lines[number] = (line, rest[line.send(rest[: MIB // 2]) :])
            except (BlockingIOError, ConnectionError):
                continue
        peak = max(peak, process.memory_info().rss)
    grown: int = peak - before
    return grown


def test_a_flood_of_bodies_does_not_grow_the_worker(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(1400)
    assert 60 * len(body) > 256 * MIB
    assert push(narrow, stack, head + body, 60, 3.0) < 128 * MIB
    stack.close()
    wait_for(lambda: narrow.call("POST", INFER, GOOD).status == 200, "the worker to be free")


def test_answers_nobody_reads_do_not_grow_the_worker(narrow: Plane, stack: ExitStack) -> None:
    head, body = tensor(300, answer=False)  # as JSON, the answer is longer than a megabyte
    assert 240 * len(body) > 256 * MIB
    assert push(narrow, stack, (head + body) * 4, 60, 3.0) < 128 * MIB
    assert narrow.call("POST", INFER, GOOD).status == 200
    stack.close()
    with narrow.connect() as line:
        line.settimeout(30)
        line.sendall(head + body)
        got = line.recv(MIB)
        assert got.startswith(b"HTTP/1.1 200 ")
