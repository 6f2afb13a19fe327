"""ModelStreamInfer: answers in order, errors of their own, bounds, and how a stream ends."""

import queue
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PING, frame
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.streaming import MAX_LINE
from tests.serving.conftest import KEY, LIMIT, Plane, endpoint, grant
from tests.serving.rpc.calling import (
    STREAM,
    Peer,
    block,
    channel,
    infer_request,
    metadata,
    outputs,
    prefixed,
    sum_request,
    tensor,
)

RESPONSE = "inference.ModelStreamInferResponse"


class Talk:
    """A stream on which requests are sent one by one."""

    def __init__(
        self, made: grpc.Channel, key: str | None = KEY, timeout: float | None = LIMIT
    ) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        asking = made.stream_stream(f"/{STREAM}")
        self.answers = asking(
            iter(self._requests.get, None), metadata=metadata(key), timeout=timeout
        )

    def say(self, request: Any) -> None:
        self._requests.put(request.SerializeToString())

    def hear(self) -> Any:
        return message(RESPONSE).FromString(next(self.answers))

    def end(self) -> None:
        self._requests.put(None)


def stream(plane: Plane, requests: Iterator[bytes], **more: Any) -> list[Any]:
    """The answers to a whole stream of requests."""
    with channel(plane) as made:
        asking = made.stream_stream(f"/{STREAM}")
        answers = asking(requests, metadata=metadata(KEY), timeout=LIMIT, **more)
        return [message(RESPONSE).FromString(answer) for answer in answers]


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_answers_come_in_the_order_of_their_requests(plane: Plane, compression: Any) -> None:
    count = 10 * MAX_LINE
    requests = (
        sum_request(number, 0, 0, id=str(number)).SerializeToString() for number in range(count)
    )
    answers = stream(plane, requests, compression=compression)
    assert [answer.infer_response.id for answer in answers] == [str(n) for n in range(count)]
    assert not any(answer.error_message for answer in answers)
    found = [outputs(answer.infer_response)["prediction"] for answer in answers]
    assert found == [[number + 1.0] for number in range(count)]


def test_small_and_large_messages_take_turns(plane: Plane) -> None:
    sizes = [1, 100_000, 2, 50_000, 200_000, 3] * 3
    requests = (
        infer_request("sum", tensor("numeric", [[size, 0, 0]] * size)).SerializeToString()
        for size in sizes
    )
    answers = stream(plane, requests)
    found = [outputs(answer.infer_response)["prediction"] for answer in answers]
    assert found == [[size + 1.0] * size for size in sizes]


def test_an_error_is_one_message_s_and_the_stream_goes_on(plane: Plane) -> None:
    with channel(plane) as made:
        talk = Talk(made)
        talk.say(sum_request(name="none", id="a"))
        talk.say(sum_request(id="b"))
        talk.say(infer_request("sum", tensor("numeric", [[1, 2]]), id="c"))
        wrong = talk.hear()
        assert "there is no endpoint 'none'" in wrong.error_message
        assert (wrong.infer_response.id, len(wrong.infer_response.outputs)) == ("a", 0)
        right = talk.hear()
        assert (right.error_message, right.infer_response.id) == ("", "b")
        assert "must have shape [n, 3]" in talk.hear().error_message
        talk.end()
        assert list(talk.answers) == []
        assert talk.answers.code() is grpc.StatusCode.OK


def test_a_stream_that_says_nothing_ends_well(plane: Plane) -> None:
    assert stream(plane, iter(())) == []


def test_what_is_no_message_ends_in_an_error_of_its_own(plane: Plane) -> None:
    answers = stream(plane, iter([b"\xff\xff", sum_request(id="1").SerializeToString()]))
    assert "protobuf" in answers[0].error_message
    assert answers[1].infer_response.id == "1"


def test_no_more_is_read_than_is_answered(plane: Plane) -> None:
    """A caller who takes no answers cannot fill the memory with requests."""
    one = frame(DATA, 0, 1, prefixed(sum_request()))
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        allowed = frames.WINDOW // (len(one) - frames.HEAD_BYTES)
        peer.send(one * allowed, frame(PING, 0, 0, b"are read"))
        granted = 0
        while (found := peer.read()) is not None and found.kind != PING:
            granted += found.kind == frames.WINDOW_UPDATE and found.stream == 1
        assert granted == 0
        peer.send(frame(DATA, 0, 1, prefixed(sum_request())) * 5)
        assert peer.reset(1) == frames.FLOW_CONTROL_ERROR
        peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
        peer.works(3)


def pump(plane: Plane, size: int, count: int) -> None:
    """Send so many messages, of a size in bytes with their prefixes, as fast as the stream's window
    allows; there must be as many answers."""
    data = prefixed(sum_request(id="x" * (size - 48))) * count
    assert len(data) == size * count
    room, at, got = frames.WINDOW, 0, b""
    with Peer(plane) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)), frames.window_update(1, 1 << 20))
        while got.count(b"\0\0\xe0\x40") < count:
            allowed, room = data[at : at + room], room - len(data[at : at + room])
            at += len(allowed)
            peer.send(
                *(frame(DATA, 0, 1, allowed[n : n + 16384]) for n in range(0, len(allowed), 16384))
            )
            found = peer.until(lambda f: f.kind in {DATA, frames.WINDOW_UPDATE} and f.stream == 1)
            if found.kind == DATA:
                got += found.payload
            else:
                room += int.from_bytes(found.payload, "big")


def test_a_window_that_ends_with_a_message_is_renewed(plane: Plane) -> None:
    pump(plane, frames.WINDOW // 85, 200)


@pytest.mark.parametrize(("there", "size"), [(1, 1057), (2, 923), (3, 516)])
def test_a_window_that_ends_in_a_prefix_is_widened(plane: Plane, there: int, size: int) -> None:
    assert frames.WINDOW % size == there
    pump(plane, size, 200)


def test_a_slow_reader_gets_every_answer(plane: Plane) -> None:
    count = 3 * MAX_LINE
    one = prefixed(sum_request())
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        peer.send(*(frame(DATA, 0, 1, one) for _ in range(count)), frame(DATA, END_STREAM, 1))
        got = b""
        while True:
            peer.send(frames.window_update(1, 500))
            found = peer.until(lambda f: f.kind in {DATA, HEADERS})
            if found.kind == DATA:
                got += found.payload
            elif found.flags & END_STREAM:
                break
        assert got.count(b"\0\0\xe0\x40") == count


def test_a_wide_window_lets_all_streams_end(plane: Plane) -> None:
    """One stream has more answers to send once what waited is sent; so has another, beside it."""
    data = prefixed(infer_request("sum", tensor("numeric", [[1, 2, 3]] * 5000)))
    *first, final = [data[at : at + 16384] for at in range(0, len(data), 16384)]

    def body(number: int, last: int) -> bytes:
        pieces = [frame(DATA, 0, number, piece) for piece in first]
        return b"".join((*pieces, frame(DATA, last, number, final)))

    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({}))  # the connection's window stays narrow
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        for _ in range(6):
            peer.send(body(1, 0), frame(PING, 0, 0, b"are read"))
            peer.until(lambda found: found.kind == PING)
        peer.send(frame(HEADERS, END_HEADERS, 3, block()), body(3, END_STREAM))
        time.sleep(0.5)  # for all of them to be answered
        peer.send(*(frames.window_update(number, 1 << 20) for number in (1, 3, 0)))
        assert peer.trailers(3)[b"grpc-status"] == b"0"
        peer.works(5)


def test_a_stream_ends_when_its_key_is_revoked(new_plane: Any) -> None:
    from tests.serving import packages

    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    keys = (grant(KEY), grant("guest", "predict"), grant("late", "predict"))
    plane.plan(endpoint("sum", one), packages=(one,), keys=keys)
    plane.start()
    plane.applied()
    with channel(plane) as made:
        idle, other = Talk(made, "guest"), Talk(made)
        for talk in (idle, other):
            talk.say(sum_request())
            assert outputs(talk.hear().infer_response) == {"prediction": [7.0]}
        plane.plan(endpoint("sum", one), packages=(one,), keys=(grant(KEY), grant("late", "x")))
        with pytest.raises(grpc.RpcError):
            idle.hear()
        assert idle.answers.code() is grpc.StatusCode.UNAUTHENTICATED
        other.say(sum_request())
        assert outputs(other.hear().infer_response) == {"prediction": [7.0]}
        idle.end()
        other.end()


def test_a_revoked_key_runs_nothing_more(new_plane: Any) -> None:
    """Not even what comes before anybody has looked at open streams."""
    from tests.serving import packages

    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    guests = [f"guest{number}" for number in range(5)]
    everybody = tuple(grant(key) for key in (KEY, *guests))
    plane.plan(endpoint("sum", one), packages=(one,), keys=everybody)
    plane.start()
    plane.applied()
    with channel(plane) as made:
        talks = [Talk(made, key) for key in guests]
        for gone, talk in enumerate(talks, 2):
            talk.say(sum_request())
            assert outputs(talk.hear().infer_response) == {"prediction": [7.0]}
            plane.plan(endpoint("sum", one), packages=(one,), keys=everybody[:1] + everybody[gone:])
            plane.applied()
            talk.say(sum_request())
            with pytest.raises(grpc.RpcError):
                talk.hear()
            assert talk.answers.code() is grpc.StatusCode.UNAUTHENTICATED
            talk.end()


def test_a_stream_has_a_deadline(plane: Plane) -> None:
    with channel(plane) as made:
        talk = Talk(made, timeout=3.0)
        talk.say(sum_request())
        talk.hear()
        with pytest.raises(grpc.RpcError):
            talk.hear()
        assert talk.answers.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        talk.end()
    with Peer(plane) as peer:  # whose own clock does not tell it
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM, grpc_timeout=b"300m")))
        assert peer.trailers(1)[b"grpc-status"] == b"4"


def test_a_stream_whose_time_is_over_ends_so(new_plane: Any) -> None:
    """Though its caller does not read, and thus has not been told."""
    from tests.serving import packages

    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()

    def counted(name: str) -> float:
        rows = plane.call("GET", "/metrics").body.decode().splitlines()
        return sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith(f"{name}{{"))

    data = frame(DATA, 0, 1, prefixed(sum_request()))
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM, grpc_timeout=b"300m")), data)
        time.sleep(2)
        assert counted("tapster_rows_total") == 1
        assert counted("tapster_requests_total") == 2  # the answer, and the refusal
        peer.send(frame(DATA, END_STREAM, 1), frames.window_update(1, 1 << 20))
        assert peer.trailers(1)[b"grpc-status"] == b"4"
        assert counted("tapster_rows_total") == 1


def small_plane(new_plane: Any, **settings: Any) -> Plane:
    """One with the endpoint `sum`, whose worker may hold two megabytes of messages."""
    from tests.serving import packages

    plane: Plane = new_plane(body_memory=2_000_000, max_body=2_000_000, **settings)
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    plane.start()
    plane.applied()
    return plane


def long_message(rows: int) -> bytes:
    return prefixed(infer_request("sum", tensor("numeric", [[1, 2, 3]] * rows)))


def pieces(data: bytes) -> bytes:
    return b"".join(frame(DATA, 0, 1, data[n : n + 16384]) for n in range(0, len(data), 16384))


def test_memory_of_what_is_answered_is_given_back_while_more_is_under_way(new_plane: Any) -> None:
    """A caller who always has some requests waiting does not keep everybody else's memory."""
    plane = small_plane(new_plane, receive_timeout=2.0)
    message_, room = long_message(25_000), frames.WINDOW
    answer = 0
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        peer.send(frames.window_update(0, 2**30), frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        for number in range(20):
            at = 0
            while at < len(message_):
                size = min(room, len(message_) - at)
                peer.send(pieces(message_[at : at + size]))
                at, room = at + size, room - size
                if not room:
                    found = peer.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 1)
                    room += int.from_bytes(found.payload, "big")
            if number < 3:  # one answer waits to be sent, and two behind it
                continue
            wanted = answer or 1 << 10
            peer.send(frames.window_update(1, wanted))
            while wanted:
                found = peer.until(lambda f: f.kind == DATA)
                wanted -= len(found.payload)
                if not answer:
                    answer = 5 + int.from_bytes(found.payload[1:5], "big")
                    peer.send(frames.window_update(1, answer - (1 << 10)))
                    wanted = answer - len(found.payload)


def test_memory_of_what_comes_is_not_given_back_with_what_is_answered(new_plane: Any) -> None:
    plane = small_plane(new_plane)
    data = long_message(150_000)
    with Peer(plane) as one, Peer(plane) as other:
        for peer, before in ((one, prefixed(sum_request())), (other, b"")):
            peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
            peer.send(pieces((before + data)[: frames.WINDOW]))
            if before:
                kinds: set[int] = set()
                while kinds < {DATA, frames.WINDOW_UPDATE}:
                    kinds.add(peer.until(lambda f: f.stream == 1).kind)
        other.send(frame(PING, 0, 0, b"are read"))
        met = set()
        while (PING, 0) not in met and (found := other.read()) is not None:
            met.add((found.kind, found.stream))
        assert (frames.WINDOW_UPDATE, 1) not in met
        one.line.close()
        other.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 1)


def test_answers_that_wait_for_their_turn_are_memory_too(new_plane: Any) -> None:
    """A caller who takes none of them is told so, once it is owed as much as may be."""
    from tests.serving import packages

    plane: Plane = new_plane(body_memory=2_000_000, max_body=2_000_000)
    one = packages.every(plane.home, "INT64", width=1)
    plane.plan(endpoint("long", one), packages=(one,))
    plane.start()
    plane.applied()
    given = tensor("x_INT64", [[1]] * 50_000, "INT64")  # a byte each, and eight of the answer
    data = prefixed(infer_request("long", given, typed=True))
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        peer.send(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        for _ in range(10):
            peer.send(pieces(data))
            peer.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 1)
        time.sleep(1)
        peer.send(frames.window_update(0, 2**30), frames.window_update(1, 2**30))
        peer.send(frame(DATA, END_STREAM, 1))
        got = b""
        while (found := peer.until(lambda f: f.stream == 1)).kind == DATA:
            got += found.payload
    assert 0 < got.count(b"as many answers as it can") < 6
