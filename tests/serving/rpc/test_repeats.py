"""Requests like those before take a short way; it leads to the same answers and refusals."""

from collections.abc import Callable
from typing import Any

import pytest

from tapster.contract.plan import EndpointPlan, LimitGrant, Variant
from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PING, frame
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.receiving import MAX_STREAMS
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant
from tests.serving.paying import limited
from tests.serving.rpc.calling import (
    INFER,
    STREAM,
    Peer,
    block,
    infer_request,
    outputs,
    prefixed,
    request_frames,
    sum_request,
    tensor,
)

Planes = Callable[..., Plane]
GOOD, REFUSED, INVALID, LATE, MISSING, SPENT = b"0", b"16", b"3", b"4", b"5", b"8"


class Repeater:
    """A connection on which the same is asked again and again."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.number = -1

    def next(self) -> int:
        self.number += 2
        return self.number

    def ask(self, request: Any, pieces: int = 1, **more: Any) -> tuple[bytes, Any]:
        """Status and answer of one request, sent in so many pieces."""
        number = self.next()
        data = request_frames(number, request, **more)
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            self.peer.send(data[at : at + size])
        return self.hear(number)

    def hear(self, number: int) -> tuple[bytes, Any]:
        """Status and answer of a request."""
        got = b""
        while True:
            found = self.peer.until(lambda f: f.stream == number and f.kind in {HEADERS, DATA})
            if found.kind == DATA:
                got += found.payload
            elif found.flags & END_STREAM:
                fields = dict(self.peer.decoder.decode(found.payload)[0])
                answer = message("inference.ModelInferResponse").FromString(got[5:])
                return fields[b"grpc-status"], answer

    def sums(self, *values: float, **more: Any) -> float:
        """The answer to a request that must go well."""
        status, answer = self.ask(sum_request(*values), **more)
        assert status == GOOD
        assert (answer.model_name, answer.id) == ("sum", "")
        (found,) = outputs(answer)["prediction"]
        return float(found)


@pytest.fixture
def repeater(plane: Plane) -> Any:
    with Peer(plane) as peer:
        made = Repeater(peer)
        for number in range(4):
            assert made.sums(number, 1, 2) == number + 4
        yield made


def test_every_tensor_gets_its_own_answer(repeater: Repeater) -> None:
    for number in range(300):
        assert repeater.sums(number, -number, 0.5 * number) == 0.5 * number + 1


def test_requests_in_pieces_and_in_heaps_are_the_same(repeater: Repeater) -> None:
    for pieces in (2, 3, 7, 50, 1000):
        assert repeater.sums(pieces, 0, 0, pieces=pieces) == pieces + 1
    first = repeater.number + 2
    numbers = [repeater.next() for _ in range(100)]
    heap = b"".join(request_frames(number, sum_request(number, 0, 0)) for number in numbers)
    half = len(heap) // 2 + 3
    repeater.peer.send(heap[:half])
    repeater.peer.send(heap[half:], frame(PING, 0, 0, b"are read"))
    assert numbers[0] == first
    found: dict[int, float] = {}
    while len(found) < len(numbers):
        one = repeater.peer.until(lambda f: f.kind == DATA)
        answer = message("inference.ModelInferResponse").FromString(one.payload[5:])
        found[one.stream] = outputs(answer)["prediction"][0]
    assert found == {number: number + 1.0 for number in numbers}


def test_what_differs_takes_the_other_way(repeater: Repeater) -> None:
    two = infer_request("sum", tensor("numeric", [[1, 2, 3], [4, 5, 6]]))
    status, answer = repeater.ask(two)
    assert (status, outputs(answer)) == (GOOD, {"prediction": [7.0, 16.0]})
    for identifier in ("a", "b", "c", "c"):
        status, answer = repeater.ask(sum_request(id=identifier))
        assert (status, answer.id) == (GOOD, identifier)
    wrong = sum_request()
    wrong.inputs[0].name = "nvmeric"
    assert repeater.ask(wrong)[0] == INVALID
    wrong = sum_request()
    wrong.inputs[0].shape[1] = 4
    assert repeater.ask(wrong)[0] == INVALID
    assert repeater.ask(sum_request(name="svm"))[0] == MISSING
    assert repeater.sums() == 7.0
    assert repeater.ask(sum_request(), key="tap_other-key")[0] == REFUSED
    assert repeater.ask(sum_request(), key="tap_test-kez")[0] == REFUSED
    assert repeater.sums() == 7.0


def test_a_number_must_be_new_on_the_short_way_too(repeater: Repeater) -> None:
    again = request_frames(repeater.number, sum_request())
    repeater.peer.send(again)
    assert repeater.peer.closing() == frames.STREAM_CLOSED


def test_both_frames_must_be_of_one_stream(repeater: Repeater) -> None:
    number = repeater.next()
    data = request_frames(number, sum_request())
    cut = data.rindex(number.to_bytes(4, "big"))
    repeater.peer.send(data[:cut] + (number + 2).to_bytes(4, "big") + data[cut + 4 :])
    assert repeater.peer.closing() == frames.PROTOCOL_ERROR


def test_streams_are_limited_on_the_short_way_too(plane: Plane) -> None:
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        for _ in range(4):
            assert repeater.sums() == 7.0
        for _ in range(MAX_STREAMS):
            peer.send(frame(HEADERS, END_HEADERS, repeater.next(), block(STREAM)))
        number = repeater.next()
        peer.send(request_frames(number, sum_request()))
        assert peer.reset(number) == frames.REFUSED_STREAM


def test_the_connections_window_is_renewed_on_the_short_way_too(repeater: Repeater) -> None:
    size = len(prefixed(sum_request()))
    given = asked = ended = 0
    while asked * size < 3 << 20:
        heap = [request_frames(repeater.next(), sum_request()) for _ in range(200)]
        asked += len(heap)
        repeater.peer.send(*heap)
        while ended < asked:
            found = repeater.peer.read()
            assert found is not None
            if found.kind == frames.WINDOW_UPDATE and found.stream == 0:
                given += int.from_bytes(found.payload, "big")
            elif found.kind == HEADERS and found.flags & END_STREAM:
                ended += 1
    # No more than was used, or the window would grow without end; no less, but for the last bit.
    assert asked * size - (1 << 19) <= given <= asked * size + 1000


def keeping(name: bytes, value: bytes) -> bytes:
    """A header that the table keeps."""
    return b"\x40%c%b%c%b" % (len(name), name, len(value), value)


def asking(number: int, headers: bytes) -> bytes:
    """A request with this block of headers."""
    head = frame(HEADERS, END_HEADERS, number, headers)
    return head + frame(DATA, END_STREAM, number, prefixed(sum_request()))


def test_what_the_table_keeps_is_kept_each_time(plane: Plane) -> None:
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        for key, status in ((KEY, GOOD), ("no", REFUSED)):
            peer.send(asking(repeater.next(), block(key=None)))  # without a key
            assert repeater.hear(repeater.number)[0] == REFUSED
            kept = block(key=None) + keeping(b"authorization", f"Bearer {key}".encode())
            for _ in range(3):
                peer.send(asking(number := repeater.next(), kept))
                assert repeater.hear(number)[0] == status
        for index, status in ((62, REFUSED), (64, REFUSED), (65, GOOD), (67, GOOD)):
            headers = block(key=None) + bytes([0x80 | index])
            peer.send(asking(number := repeater.next(), headers))
            assert repeater.hear(number)[0] == status


def test_a_table_of_headers_that_changes_changes_the_meaning(plane: Plane) -> None:
    rest = block(key=None)

    with Peer(plane) as peer:
        repeater = Repeater(peer)
        kept = rest + keeping(b"authorization", f"Bearer {KEY}".encode())
        peer.send(asking(number := repeater.next(), kept))
        assert repeater.hear(number)[0] == GOOD
        for _ in range(4):
            peer.send(asking(number := repeater.next(), rest + b"\xbe"))
            assert repeater.hear(number)[0] == GOOD
        peer.send(asking(number := repeater.next(), rest + keeping(b"authorization", b"no")))
        assert repeater.hear(number)[0] == REFUSED
        for _ in range(4):
            peer.send(asking(number := repeater.next(), rest + b"\xbe"))
            assert repeater.hear(number)[0] == REFUSED


def test_keys_and_plans_change_under_what_is_remembered(new_plane: Planes) -> None:
    plane = new_plane()
    one, two = (packages.regressor(plane.home, bias) for bias in (1.0, 2.0))
    both = (grant(KEY), grant("guest", "predict"))
    plane.plan(endpoint("sum", one), packages=(one, two), keys=both)
    plane.start()
    plane.applied()
    with Peer(plane) as first, Peer(plane) as second:
        ours, theirs = Repeater(first), Repeater(second)
        for _ in range(4):
            assert ours.sums() == theirs.sums(key="guest") == 7.0
        plane.plan(endpoint("sum", two, 2), packages=(one, two), keys=both)
        plane.applied()
        for _ in range(4):
            assert ours.sums() == theirs.sums(key="guest") == 8.0
        plane.plan(endpoint("sum", two, 2), packages=(one, two), keys=(grant(KEY),))
        plane.applied()
        for _ in range(4):
            assert theirs.ask(sum_request(), key="guest")[0] == REFUSED
            assert ours.sums() == 8.0
        plane.plan(packages=(one, two))
        plane.applied()
        for _ in range(4):
            assert ours.ask(sum_request())[0] == MISSING


def test_requests_that_are_drawn_a_version_are_drawn_each(new_plane: Planes) -> None:
    plane = new_plane()
    made = [packages.regressor(plane.home, bias) for bias in (1.0, 2.0)]
    variants = tuple(
        Variant(model="made", version=number, package=package.digest, weight=0.5)
        for number, package in enumerate(made, 1)
    )
    plane.plan(EndpointPlan("ep", "default", "sum", variants), packages=tuple(made))
    plane.start()
    plane.applied()
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        drawn = {repeater.sums() for _ in range(60)}
        assert drawn == {7.0, 8.0}
        sticky = {repeater.sums(x_sticky_key=b"somebody") for _ in range(20)}
        assert len(sticky) == 1


def test_limits_hold_on_the_short_way_too(new_plane: Planes) -> None:
    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    limit = LimitGrant("lim", "rate", 1, burst=10)  # and one more after a thousand seconds
    limited(plane, (endpoint("sum", one),), (one,), limit)
    plane.start()
    plane.applied()
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        statuses = [repeater.ask(sum_request())[0] for _ in range(20)]
        assert statuses == [GOOD] * 10 + [SPENT] * 10


def test_time_runs_out_on_the_short_way_too(repeater: Repeater) -> None:
    for _ in range(4):
        assert repeater.ask(sum_request(), grpc_timeout=b"9S")[0] == GOOD
    for _ in range(4):
        assert repeater.ask(sum_request(), grpc_timeout=b"1n")[0] == LATE
    assert repeater.sums() == 7.0


def test_an_expiring_key_is_looked_at_each_time(new_plane: Planes) -> None:
    import time

    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    until = time.time() + 3.0
    plane.plan(endpoint("sum", one), packages=(one,), keys=(grant(KEY, expires=until),))
    plane.start()
    plane.applied()
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        statuses = {repeater.ask(sum_request())[0] for _ in range(10)}
        assert GOOD in statuses or time.time() > until
        while repeater.ask(sum_request())[0] == GOOD:
            assert time.time() < until + 10.0
        assert time.time() >= until
        assert repeater.ask(sum_request())[0] == REFUSED


def test_the_short_way_is_for_whole_calls_of_one_method(plane: Plane) -> None:
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        for _ in range(4):
            assert repeater.sums() == 7.0
        number = repeater.next()
        whole = request_frames(number, sum_request())
        open_ended = whole.replace(
            b"\x00\x01" + number.to_bytes(4, "big"), b"\x00\x00" + number.to_bytes(4, "big")
        )
        assert open_ended != whole
        peer.send(open_ended, frame(DATA, END_STREAM, number))
        assert repeater.hear(number)[0] == GOOD
        assert repeater.ask(sum_request(), path=INFER.replace("Infer", "Other", 2))[0] == b"12"
        assert repeater.sums() == 7.0


@pytest.mark.parametrize("key", [None, "tap_other-key", "theirs"])
def test_what_came_in_pieces_lets_nobody_else_in(plane: Plane, key: str | None) -> None:
    """Headers and data that were read one after the other teach nothing about what came next."""
    with Peer(plane) as peer:
        repeater = Repeater(peer)
        number = repeater.next()
        peer.send(frame(HEADERS, END_HEADERS, number, block()), frame(PING, 0, 0, b"is read."))
        peer.until(lambda f: f.kind == PING)
        peer.send(frame(DATA, END_STREAM, number, prefixed(sum_request())))
        assert repeater.hear(number)[0] == GOOD
        wanted = MISSING if key == "theirs" else REFUSED
        for _ in range(3):
            assert repeater.ask(sum_request(), key=key)[0] == wanted
        assert repeater.sums() == 7.0
