"""Deadlines, callers who leave, stops and reloads: what is run, and that nothing is lost."""

import asyncio
import gzip
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tapster.contract.plan import Options
from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import END_HEADERS, END_STREAM, HEADERS, PING, frame
from tapster.serving.rpc.protocol import GrpcProtocol
from tests.serving import packages
from tests.serving.conftest import KEY, LIMIT, Plane, endpoint, wait_for
from tests.serving.rpc.calling import (
    INFER,
    STREAM,
    Peer,
    block,
    call,
    channel,
    infer,
    infer_request,
    metadata,
    prefixed,
    refused,
    request_frames,
    sum_request,
    tensor,
)
from tests.serving.rpc.test_streaming import Talk

Planes = Callable[..., Plane]
WIDTH = 500
# Rows of the heavy model that take a second or so.
LONG = 600


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A plane with the endpoints `sum` and `heavy`, of which a row takes a millisecond or two."""
    plane = Plane(tmp_path_factory.mktemp("heavy") / "home")
    made = (packages.regressor(plane.home, 1.0), packages.heavy(plane.home, WIDTH, 200))
    patient = endpoint("heavy", made[1], options=Options(deadline=300.0))
    plane.plan(endpoint("sum", made[0]), patient, packages=made)
    plane.start()
    plane.applied()
    yield plane
    plane.stop()


def work(rows: int) -> Any:
    return infer_request("heavy", tensor("numeric", [[0.0] * WIDTH] * rows))


def metric(plane: Plane, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    page = plane.call("GET", "/metrics").body.decode()
    rows = [row for row in page.splitlines() if row.startswith((f"{name}{{", f"{name} "))]
    chosen = [row for row in rows if all(f'{k}="{v}"' in row for k, v in labels.items())]
    return sum(float(row.rpartition(" ")[2]) for row in chosen)


def rows_run(plane: Plane) -> float:
    return metric(plane, "tapster_rows_total", endpoint="heavy")


def rejected(plane: Plane) -> float:
    return metric(plane, "tapster_rejected_requests_total", reason="cancelled")


def batches(plane: Plane) -> float:
    """Batches that have begun to run."""
    return metric(plane, "tapster_batch_size_rows_count")


def in_flight(plane: Plane) -> float:
    return metric(plane, "tapster_in_flight_requests")


def test_a_deadline_ends_a_run(heavy: Plane) -> None:
    with Peer(heavy) as peer:  # which does not look at the clock itself
        data = prefixed(work(LONG))
        peer.send(frame(HEADERS, END_HEADERS, 1, block(grpc_timeout=b"200m")))
        for at in range(0, 49_152, 16384):
            peer.send(frame(frames.DATA, 0, 1, data[at : at + 16384]))
        peer.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 1)
        for at in range(49_152, len(data), 16384):
            ended = END_STREAM if at + 16384 >= len(data) else 0
            peer.send(frame(frames.DATA, ended, 1, data[at : at + 16384]))
        assert peer.trailers(1)[b"grpc-status"] == b"4"
    assert infer(heavy, sum_request()) == {"prediction": [7.0]}


@pytest.mark.parametrize("timeout", [b"0m", b"1n", b"00000000u"])
def test_no_time_is_over_at_once(plane: Plane, timeout: bytes) -> None:
    with Peer(plane) as peer:
        peer.send(request_frames(1, sum_request(), grpc_timeout=timeout))
        assert peer.trailers(1)[b"grpc-status"] == b"4"


@pytest.mark.parametrize(
    "timeout", [b"", b"5", b"m", b"-5m", b"1.5S", b"9" * 9 + b"m", b"5x", b"\xb2m"]
)
def test_what_is_no_timeout_is_invalid(plane: Plane, timeout: bytes) -> None:
    with Peer(plane) as peer:
        peer.send(request_frames(1, sum_request(), grpc_timeout=timeout))
        assert peer.trailers(1)[b"grpc-status"] == b"3"
        peer.send(request_frames(3, sum_request(), grpc_timeout=b"1H"))
        assert peer.trailers(3)[b"grpc-status"] == b"0"


def test_what_waits_past_its_deadline_is_never_run(heavy: Plane) -> None:
    before, begun = rows_run(heavy), batches(heavy)
    with channel(heavy) as made:
        asking = made.unary_unary(f"/{INFER}")
        first = asking.future(work(LONG).SerializeToString(), metadata=metadata(KEY), timeout=LIMIT)
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        late = infer_request("heavy", tensor("numeric", [[0.0] * WIDTH]))
        late.parameters["timeout"].int64_param = 20_000
        assert refused(heavy, INFER, late)[0] in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
        first.result()
    assert rows_run(heavy) == before + LONG


def test_what_nobody_waits_for_is_never_run(heavy: Plane) -> None:
    before, begun, cancelled = rows_run(heavy), batches(heavy), rejected(heavy)
    with channel(heavy) as made:
        asking = made.unary_unary(f"/{INFER}")
        key = metadata(KEY)
        first = asking.future(work(20 * LONG).SerializeToString(), metadata=key)
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        one = work(1).SerializeToString()
        waiting = [asking.future(one, metadata=key) for _ in range(20)]
        talk = Talk(made, timeout=None)
        talk.say(work(1))
        wait_for(lambda: metric(heavy, "tapster_queued_requests") == 21, "them to be queued")
        for future in waiting[:15]:
            future.cancel()
        talk.answers.cancel()
        talk.end()
        wait_for(lambda: in_flight(heavy) == 6, "the others to have left")
        first.cancel()
        for future in waiting[15:]:
            future.result()
    assert rows_run(heavy) == before + 5
    assert rejected(heavy) == cancelled + 16
    wait_for(lambda: in_flight(heavy) == 0, "nothing to be in flight")


def test_a_run_whose_callers_have_left_is_called_off(heavy: Plane) -> None:
    before, begun = rows_run(heavy), batches(heavy)
    with channel(heavy) as made:
        asking = made.unary_unary(f"/{INFER}")
        data = work(8 * LONG).SerializeToString()
        first = asking.future(data, metadata=metadata(KEY), timeout=LIMIT)
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        first.cancel()
        assert infer(heavy, work(1), timeout=LIMIT) == {"prediction": [0.0]}
    assert rows_run(heavy) == before + 1


def test_who_hangs_up_is_not_worked_for(heavy: Plane) -> None:
    before, begun = rows_run(heavy), batches(heavy)
    small = work(1)
    with channel(heavy) as made, Peer(heavy) as peer:
        asking = made.unary_unary(f"/{INFER}")
        first = asking.future(work(20 * LONG).SerializeToString(), metadata=metadata(KEY))
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        peer.send(*(request_frames(number, small) for number in range(1, 20, 2)))
        peer.send(frame(HEADERS, END_HEADERS, 21, block(STREAM)))
        peer.send(frame(HEADERS, END_HEADERS, 23, block()), frame(frames.DATA, 0, 23, b"\0\0"))
        wait_for(lambda: metric(heavy, "tapster_queued_requests") == 10, "them to be queued")
        peer.line.close()
        wait_for(lambda: in_flight(heavy) == 1, "the others to be forgotten")
        first.cancel()
        assert infer(heavy, small, timeout=None) == {"prediction": [0.0]}
    assert rows_run(heavy) == before + 1
    wait_for(lambda: in_flight(heavy) == 0, "nothing to be in flight")


def test_both_ports_run_in_the_same_batches(heavy: Plane) -> None:
    """While the model is busy, what came by either port gathers."""
    before, begun = rows_run(heavy), batches(heavy)
    data = [0.0] * WIDTH
    tensor_ = {"name": "numeric", "shape": [1, WIDTH], "datatype": "FP32", "data": data}
    with channel(heavy) as made:
        asking = made.unary_unary(f"/{INFER}")
        key = metadata(KEY)
        first = asking.future(work(20 * LONG).SerializeToString(), metadata=key)
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        one = work(1).SerializeToString()
        waiting = [asking.future(one, metadata=key) for _ in range(5)]
        asked = ("POST", "/v2/models/heavy/infer", {"inputs": [tensor_]})
        others = [threading.Thread(target=heavy.call, args=asked) for _ in range(5)]
        for other in others:
            other.start()
        wait_for(lambda: metric(heavy, "tapster_queued_requests") == 10, "them to be queued")
        first.cancel()
        for future in waiting:
            future.result()
        for other in others:
            other.join(LIMIT)
    assert rows_run(heavy) == before + 10
    assert batches(heavy) == begun + 2


def test_a_stop_loses_nothing_that_was_asked(heavy: Plane) -> None:
    """The last of those that share the plane."""
    with channel(heavy) as made, channel(heavy) as other:
        asking = made.unary_unary(f"/{INFER}")
        key = metadata(KEY)
        begun = batches(heavy)
        waiting = [asking.future(work(4 * LONG).SerializeToString(), metadata=key)]
        wait_for(lambda: batches(heavy) == begun + 1, "the run to begin")
        one = work(LONG // 20).SerializeToString()
        waiting += [asking.future(one, metadata=key) for _ in range(10)]
        talk, idle = Talk(other), Talk(other)
        for _ in range(5):
            talk.say(work(LONG // 20))
        idle.say(sum_request())
        idle.hear()
        wait_for(lambda: metric(heavy, "tapster_queued_requests") == 15, "them to be queued")
        heavy.workers[0].terminate()
        for future in waiting:
            future.result()
        for _ in range(5):
            assert talk.hear().error_message == ""
        for each in (talk, idle):
            with pytest.raises(grpc.RpcError):
                each.hear()
            assert each.answers.code() is grpc.StatusCode.UNAVAILABLE
            each.end()
    wait_for(lambda: heavy.workers[0].poll() is not None, "the worker to end")
    assert heavy.workers[0].returncode == 0


def test_peers_who_have_left_do_not_delay_a_stop(new_plane: Planes) -> None:
    plane = new_plane(receive_timeout=10 * LIMIT, stop_grace=10 * LIMIT)
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    narrow = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
    begun = frame(HEADERS, END_HEADERS, 1, block())
    read = frame(PING, 0, 0, b"are read")
    left = (
        b"".join(request_frames(number, sum_request()) for number in range(1, 40, 2)),
        begun + frame(frames.DATA, 0, 1, b"\0\0"),
        frame(HEADERS, END_HEADERS, 1, block(STREAM)),
        request_frames(1, b"", path="grpc.health.v1.Health/Watch"),
    )
    with ExitStack() as peers:
        for data, half in itertools.product(left, (False, True)):
            peer = peers.enter_context(Peer(plane, greet=False))
            peer.send(narrow, data, read)
            peer.until(lambda f: f.kind == PING)
            if half:
                peer.line.shutdown(socket.SHUT_WR)
            else:
                peer.line.close()
        peers.enter_context(Peer(plane, greet=False))  # says nothing at all
        plane.workers[0].terminate()
        wait_for(lambda: plane.workers[0].poll() is not None, "the worker to end")
    assert plane.workers[0].returncode == 0


def test_whoever_is_told_that_the_server_leaves_may_finish(new_plane: Planes) -> None:
    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    with Peer(plane) as peer:
        peer.works()
        data = prefixed(sum_request())
        peer.send(frame(HEADERS, END_HEADERS, 3, block()), frame(frames.DATA, 0, 3, data[:9]))
        peer.send(frame(PING, 0, 0, b"are read"))
        peer.until(lambda f: f.kind == PING)
        plane.workers[0].terminate()
        warning = peer.until(lambda f: f.kind == frames.GOAWAY)
        assert int.from_bytes(warning.payload[:4], "big") == 2**31 - 1
        # What is on its way until the peer has seen this is answered as well.
        rest = frame(frames.DATA, END_STREAM, 3, data[9:])
        peer.send(rest, request_frames(5, sum_request()))
        # gRPC's clients acknowledge ahead of what they had begun to send before they read it.
        late = [request_frames(7, sum_request())]
        last = -1
        ended = set()
        while (found := peer.read()) is not None:
            if found.kind == PING:
                peer.send(frame(PING, frames.ACK, 0, found.payload), *late)
                late.clear()
            elif found.kind == frames.GOAWAY:
                last = int.from_bytes(found.payload[:4], "big")
            elif found.kind == HEADERS and found.flags & END_STREAM:
                ended.add(found.stream)
    assert (last, ended) == (7, {3, 5, 7})


def test_whoever_arrives_while_the_server_leaves_is_answered(new_plane: Planes) -> None:
    plane = new_plane(receive_timeout=10 * LIMIT, stop_grace=10 * LIMIT)
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    with Peer(plane) as known, Peer(plane, greet=False) as late:
        known.works()
        plane.workers[0].terminate()
        known.until(lambda f: f.kind == frames.GOAWAY)
        late.send(frames.PREFACE + frames.settings({}), request_frames(1, sum_request()))
        kinds = set()
        while (found := late.read()) is not None:
            kinds.add((found.kind, found.stream, found.flags & END_STREAM))
            if found.kind == PING:
                late.send(frame(PING, frames.ACK, 0, found.payload))
    assert {(frames.GOAWAY, 0, 0), (HEADERS, 1, END_STREAM)} <= kinds
    wait_for(lambda: plane.workers[0].poll() is not None, "the worker to end")
    assert plane.workers[0].returncode == 0


def grown(found: list[Any], size: int) -> bool:
    return len(found) > size


def test_versions_change_under_load_without_an_error(new_plane: Planes) -> None:
    plane = new_plane()
    made = [packages.regressor(plane.home, float(bias)) for bias in range(6)]
    plane.plan(endpoint("sum", made[0]), packages=(made[0],))
    plane.start()
    plane.applied()
    done = threading.Event()
    found: list[tuple[str, Any]] = []

    def ask_on() -> None:
        with channel(plane) as line:
            while not done.is_set():
                answer = call(plane, INFER, sum_request(), made=line)
                found.append((answer.code.name, answer.answer))

    def stream_on() -> None:
        with channel(plane) as line:
            talk = Talk(line)
            while not done.is_set():
                talk.say(sum_request())
                found.append(("OK" if not talk.hear().error_message else "error", None))
            talk.end()

    callers = [threading.Thread(target=each) for each in (ask_on, ask_on, stream_on)]
    for caller in callers:
        caller.start()
    for number, package in enumerate(made[1:], 2):
        plane.plan(endpoint("sum", package, number), packages=(package,))
        plane.applied()
        wait_for(partial(grown, found, len(found) + 50), "calls to go on")
    done.set()
    for caller in callers:
        caller.join(LIMIT)
    assert {code for code, _ in found} == {"OK"}
    assert infer(plane, sum_request()) == {"prediction": [11.0]}


def test_a_dead_worker_s_connections_are_taken_by_the_next(new_plane: Planes) -> None:
    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start(0)
    plane.start(1)
    plane.applied(index=0)
    plane.applied(index=1)
    with channel(plane) as made:
        assert infer(plane, sum_request(), made=made) == {"prediction": [7.0]}
        plane.workers[0].kill()
        plane.workers[0].wait()
        for _ in range(20):
            answer = call(plane, INFER, sum_request(), made=made)
            if answer.code is grpc.StatusCode.OK:
                break
            assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.code is grpc.StatusCode.OK
    for _ in range(10):
        assert infer(plane, sum_request()) == {"prediction": [7.0]}


@pytest.mark.parametrize("rows", [80_000, 100_000])
def test_what_messages_grow_to_is_held_until_they_are_answered(
    new_plane: Planes, rows: int
) -> None:
    """A few thousand compressed bytes may be megabytes, which wait with their calls."""
    plane = new_plane(body_memory=2_000_000, max_body=2_000_000)
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    message = gzip.compress(
        infer_request("sum", tensor("numeric", [[0, 0, 0]] * rows)).SerializeToString()
    )
    assert len(message) < 1 << 14
    data = prefixed(message, 1)
    head = block(grpc_encoding=b"gzip")
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        for number in (1, 3, 5, 7):
            peer.send(frame(HEADERS, END_HEADERS, number, head))
            peer.send(frame(frames.DATA, END_STREAM, number, data))
        assert peer.trailers(7)[b"grpc-status"] == b"14"
        peer.send(frames.window_update(0, 1 << 30))
        peer.send(*(frames.window_update(number, 1 << 20) for number in (1, 3)))
        assert peer.trailers(3)[b"grpc-status"] == b"0"
        peer.send(frame(HEADERS, END_HEADERS, 9, head))
        peer.send(frame(frames.DATA, END_STREAM, 9, data), frames.window_update(9, 1 << 20))
        assert peer.trailers(9)[b"grpc-status"] == b"0"


def test_a_plan_that_comes_while_a_message_is_read_leaves_it_its_time_limit() -> None:
    engine = SimpleNamespace(generation=1)
    target = SimpleNamespace(model=object())
    found: list[float] = []

    def aim(call: Any, message: Any) -> None:
        call.target, call.deadline = target, 100.0

    def read(call: Any, message: Any) -> None:
        call.deadline = min(call.deadline, 5.0)
        engine.generation += 1

    async def in_thread(call: Any, work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    wire = SimpleNamespace(parse=bytes, read=read)
    asked: Any = SimpleNamespace(done=False, deadline=0.0, wire=wire)
    port: Any = SimpleNamespace(
        service=SimpleNamespace(engine=engine),
        _aim=aim,
        _in_thread=in_thread,
        _submit=lambda call: found.append(call.deadline),
    )
    asyncio.run(GrpcProtocol._infer_slowly(port, asked, 0, b""))
    assert found == [5.0]
