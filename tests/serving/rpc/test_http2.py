"""HTTP/2 itself, frame by frame: what may not be, floods, slow peers, windows, farewells."""

import socket
import time
from collections.abc import Callable

import psutil
import pytest

from tapster.serving.rpc import frames
from tapster.serving.rpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
)
from tapster.serving.rpc.receiving import MAX_STREAMS
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, read_all, wait_for
from tests.serving.rpc.calling import (
    OPEN,
    OPENING,
    STREAM,
    Peer,
    block,
    call,
    infer_request,
    prefixed,
    request_frames,
    sum_request,
    tensor,
)

Planes = Callable[..., Plane]
HEAD = frame(HEADERS, END_HEADERS, 1, block())
BEGUN = frame(HEADERS, 0, 1, block())
STREAMING = frame(HEADERS, END_HEADERS, 1, block(STREAM))
WATCHING = frame(HEADERS, END_HEADERS, 1, block("grpc.health.v1.Health/Watch", None))
WATCHED = WATCHING + frame(DATA, END_STREAM, 1, prefixed(b""))
EMPTY = frame(SETTINGS, 0, 0)


def setting(name: int, value: int) -> bytes:
    return frames.settings({name: value})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (frame(DATA, 0, 7, b"x"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 0, block()), frames.STREAM_CLOSED),
        (frame(HEADERS, END_HEADERS, 2, block()), frames.STREAM_CLOSED),
        (request_frames(5, sum_request()) + frame(HEADERS, END_HEADERS, 3, block()),
         frames.STREAM_CLOSED),
        (frame(CONTINUATION, END_HEADERS, 1, block()), frames.PROTOCOL_ERROR),
        (BEGUN + EMPTY, frames.PROTOCOL_ERROR),
        (BEGUN + frame(CONTINUATION, END_HEADERS, 3), frames.PROTOCOL_ERROR),
        (BEGUN + HEAD, frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xc5"), frames.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), frames.PROTOCOL_ERROR),
        (HEAD + frame(DATA, PADDED, 1, b""), frames.PROTOCOL_ERROR),
        (HEAD + frame(DATA, PADDED, 1, b"\x05abc"), frames.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), frames.PROTOCOL_ERROR),
        (frame(PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR),
        (frame(PING, 0, 1, b"12345678"), frames.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, b"123456"), frames.PROTOCOL_ERROR),
        (setting(frames.ENABLE_PUSH, 2), frames.PROTOCOL_ERROR),
        (setting(frames.INITIAL_WINDOW_SIZE, 2**31), frames.FLOW_CONTROL_ERROR),
        (setting(frames.MAX_FRAME_SIZE, 16383), frames.PROTOCOL_ERROR),
        (setting(frames.MAX_FRAME_SIZE, 2**24), frames.PROTOCOL_ERROR),
        (HEAD + frames.window_update(1, 2**31 - 65536)
         + setting(frames.INITIAL_WINDOW_SIZE, 65536), frames.FLOW_CONTROL_ERROR),
        (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"four"), frames.FRAME_SIZE_ERROR),
        (HEAD + frame(frames.RST_STREAM, 0, 1, b"123"), frames.FRAME_SIZE_ERROR),
        (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
        (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, b"123"), frames.FRAME_SIZE_ERROR),
        (frames.window_update(9, 1), frames.PROTOCOL_ERROR),
        (frames.reset(1, 0), frames.PROTOCOL_ERROR),
        (frames.reset(0, 0), frames.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, bytes(16385)), frames.FRAME_SIZE_ERROR),
        (frame(99, 0, 0, bytes(16385)), frames.FRAME_SIZE_ERROR),
    ],
)  # fmt: skip
def test_what_may_not_be_ends_the_connection(plane: Plane, data: bytes, code: int) -> None:
    with Peer(plane) as peer, Peer(plane) as other:
        peer.send(data)
        assert peer.closing() == code
        other.works()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEAD + frames.window_update(1, 0), frames.PROTOCOL_ERROR),
        (HEAD + frames.window_update(1, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (WATCHED + frame(DATA, 0, 1, b"x"), frames.STREAM_CLOSED),
        (WATCHED + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01a\x01b"),
         frames.STREAM_CLOSED),
        (WATCHING + frame(DATA, 0, 1, prefixed(b"")) + frame(DATA, 0, 1, bytes(16384)) * 4,
         frames.FLOW_CONTROL_ERROR),
        (HEAD + frame(HEADERS, END_HEADERS, 1, block()), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block(connection=b"close")), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block(transfer_encoding=b"x")), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x83"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x83\x83\x84\x86"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block() + b"\x83"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block() + b"\x00\x01X\x01y"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block() + b"\x00\x01x\x01\n"), frames.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, block() + b"\x00\x06:other\x01y"), frames.PROTOCOL_ERROR),
    ],
)  # fmt: skip
def test_what_may_not_be_on_a_stream_ends_that(plane: Plane, data: bytes, code: int) -> None:
    with Peer(plane) as peer:
        peer.send(data)
        assert peer.reset(1) == code
        peer.works(3)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (block()[1:], b"405"),
        (block().replace(b"application/grpc", b"application/json"), b"415"),
        (block().replace(b"application/grpc", b"application/grpX"), b"415"),
    ],
)
def test_who_does_not_speak_grpc_is_told_in_http(plane: Plane, data: bytes, status: bytes) -> None:
    if status == b"405":
        data = b"\x82" + block()[len(b"\x02\x04POST") :]
    with Peer(plane) as peer:
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, data))
        found = peer.until(lambda f: f.kind == HEADERS)
        assert found.flags & END_STREAM
        assert (b":status", status) in peer.decoder.decode(found.payload)[0]
        peer.works(3)


def test_http1_gets_an_answer_in_http1(plane: Plane) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/1.1\r\n\r\n"):
        with Peer(plane, greet=False) as peer:
            peer.send(data)
            assert read_all(peer.line).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    with Peer(plane, greet=False) as peer:
        peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
        assert read_all(peer.line) == b""


def test_every_way_to_cut_a_call_into_pieces_is_the_same(plane: Plane) -> None:
    headers = block()
    data = prefixed(sum_request())
    padded = b"\x03" + data[:9] + bytes(3)
    weighted = b"\x02" + b"\0\0\0\0\x10" + headers[:10] + b"\0\0"
    pieces = [
        frame(HEADERS, PADDED | WITH_PRIORITY, 1, weighted),
        *(frame(CONTINUATION, 0, 1, headers[at : at + 7]) for at in range(10, 80, 7)),
        frame(CONTINUATION, END_HEADERS, 1, headers[80:]),
        frame(frames.PRIORITY, 0, 3, b"\0\0\0\0\x10"),
        frame(200, 255, 1, b"unknown"),
        frame(DATA, PADDED, 1, padded),
        frame(DATA, 0, 1, b""),
        *(frame(DATA, 0, 1, data[at : at + 1]) for at in range(9, len(data))),
        frame(DATA, END_STREAM, 1, b""),
    ]
    with Peer(plane) as peer:
        peer.send(*pieces)
        assert peer.trailers(1)[b"grpc-status"] == b"0"
        whole = request_frames(3, sum_request())
        for byte in range(len(whole)):
            peer.send(whole[byte : byte + 1])
        assert peer.trailers(3)[b"grpc-status"] == b"0"
        trailing = frame(HEADERS, END_HEADERS | END_STREAM, 5, b"\x00\x01a\x01b")
        head = frame(HEADERS, END_HEADERS, 5, block())
        peer.send(head, frame(DATA, 0, 5, data), trailing)
        assert peer.trailers(5)[b"grpc-status"] == b"0"


def test_headers_kept_in_the_table_are_told_apart(plane: Plane) -> None:
    """The same bytes mean another thing once the table has changed."""

    def keeping(name: bytes, value: bytes) -> bytes:
        return b"\x40%c%b%c%b" % (len(name), name, len(value), value)

    rest = block(key=None)
    message = frame(DATA, END_STREAM, 1, prefixed(sum_request()))
    with Peer(plane) as peer:
        good = rest + keeping(b"authorization", b"Bearer tap_test-key")
        again = rest + b"\xbe"
        peer.send(frame(HEADERS, END_HEADERS, 1, good), message)
        assert peer.trailers(1)[b"grpc-status"] == b"0"
        for number in (3, 5):
            peer.send(frame(HEADERS, END_HEADERS, number, again))
            peer.send(message.replace(b"\0\0\0\1", number.to_bytes(4, "big"), 1))
            assert peer.trailers(number)[b"grpc-status"] == b"0"
        peer.send(
            frame(HEADERS, END_HEADERS | END_STREAM, 7, rest + keeping(b"authorization", b"no"))
        )
        assert peer.trailers(7)[b"grpc-status"] == b"16"
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 9, again))
        assert peer.trailers(9)[b"grpc-status"] == b"16"


@pytest.mark.parametrize(
    "data",
    [
        frame(PING, 0, 0, b"12345678"),
        EMPTY,
        frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        frame(200, 0, 0, b""),
        frames.window_update(1, 1),
    ],
    ids=["pings", "settings", "priorities", "unknown", "windows"],
)
def test_floods_of_frames_end_the_connection(plane: Plane, data: bytes) -> None:
    with Peer(plane) as peer, Peer(plane) as other:
        peer.works()
        peer.send(data * 20_000)
        assert peer.closing() == frames.ENHANCE_YOUR_CALM
        other.works()


def test_floods_of_headers_and_resets_end_the_connection(plane: Plane) -> None:
    with Peer(plane) as peer:
        peer.send(BEGUN, frame(CONTINUATION, 0, 1) * 20_000)
        assert peer.closing() == frames.ENHANCE_YOUR_CALM
    with Peer(plane) as peer:
        peer.send(BEGUN, frame(CONTINUATION, 0, 1, b"x" * 16384) * 20)
        assert peer.closing() == frames.ENHANCE_YOUR_CALM
    with Peer(plane) as peer:
        data = b"".join(
            frame(HEADERS, END_HEADERS, number, block()) + frames.reset(number, frames.CANCEL)
            for number in range(1, 20_000, 2)
        )
        peer.send(data)
        assert peer.closing() == frames.ENHANCE_YOUR_CALM
    with Peer(plane) as peer:
        peer.send(STREAMING, frame(DATA, 0, 1) * 20_000)
        assert peer.closing() == frames.ENHANCE_YOUR_CALM
    with Peer(plane) as peer:
        peer.works()


def test_windows_that_let_nothing_be_sent_cost_little(plane: Plane) -> None:
    """Strangers may ask for health: 250 answers that may not be sent, and the window widened
    20 000 times."""
    process = psutil.Process(plane.workers[0].pid)
    with Peer(plane, greet=False) as peer, Peer(plane) as other:
        peer.send(frames.PREFACE, setting(frames.INITIAL_WINDOW_SIZE, 0))
        for number in range(1, 501, 2):
            head = frame(HEADERS, END_HEADERS, number, block("grpc.health.v1.Health/Check", None))
            peer.send(head, frame(DATA, END_STREAM, number, prefixed(b"")))
        before = sum(process.cpu_times()[:2])
        peer.send(frames.window_update(0, 1) * 20_000, frame(PING, 0, 0, b"are you?"))
        peer.until(lambda found: found.kind == PING)
        assert sum(process.cpu_times()[:2]) - before < 0.4
        other.works()


def test_streams_beyond_the_limit_are_refused(plane: Plane) -> None:
    with Peer(plane) as peer:
        for number in range(MAX_STREAMS):
            peer.send(frame(HEADERS, END_HEADERS, 2 * number + 1, block(STREAM)))
        peer.send(request_frames(2 * MAX_STREAMS + 1, sum_request()))
        assert peer.reset(2 * MAX_STREAMS + 1) == frames.REFUSED_STREAM
        peer.send(frames.reset(1, frames.CANCEL))
        peer.works(2 * MAX_STREAMS + 3)


def test_ten_thousand_idle_streams_take_little(plane: Plane) -> None:
    process = psutil.Process(plane.workers[0].pid)
    before = process.memory_info().rss
    streams = b"".join(
        frame(HEADERS, END_HEADERS, number, block(STREAM)) for number in range(1, 512, 2)
    )
    peers = [Peer(plane) for _ in range(40)]
    for peer in peers:
        peer.send(streams)
    for peer in peers[:20]:  # all that was sent has been read when the ping comes back
        peer.send(frame(PING, 0, 0, b"are read"))
        peer.until(lambda f: f.kind == PING and bool(f.flags & ACK))
    assert process.memory_info().rss - before < 64 << 20
    wait_for(lambda: call(plane, f"{OPEN}/ServerLive", key=None).code.name == "RESOURCE_EXHAUSTED",
             "calls to be refused")  # fmt: skip
    for peer in peers:
        peer.line.close()
    wait_for(lambda: call(plane, f"{OPEN}/ServerLive", key=None).code.name == "OK", "room")


def test_a_slow_peer_is_cut_off(new_plane: Planes) -> None:
    plane = new_plane(receive_timeout=0.4)
    plane.plan(endpoint("sum", one := packages.regressor(plane.home, 1.0)), packages=(one,))
    plane.start()
    plane.applied()
    for data in (b"", b"PRI *", frames.PREFACE, OPENING + b"\0\0", OPENING + HEAD[:20]):
        with Peer(plane, greet=False) as peer:
            peer.send(data)
            assert peer.closing() in {frames.SETTINGS_TIMEOUT, -1}
    with Peer(plane) as peer:
        peer.send(BEGUN)
        assert peer.closing() == frames.SETTINGS_TIMEOUT
    with Peer(plane) as peer:
        peer.send(HEAD, frame(DATA, 0, 1, prefixed(sum_request())[:20]))
        assert peer.trailers(1)[b"grpc-status"] == b"4"
        peer.send(frame(HEADERS, END_HEADERS, 3, block()))
        assert peer.trailers(3)[b"grpc-status"] == b"4"
        peer.send(frame(HEADERS, END_HEADERS, 5, block(STREAM)), frame(DATA, 0, 5, b"\0\0"))
        assert peer.trailers(5)[b"grpc-status"] == b"4"
        peer.works(7)
    with Peer(plane) as peer:  # a stream without a message under way may be idle
        peer.send(STREAMING)
        time.sleep(1.2)
        peer.send(frame(DATA, END_STREAM, 1, prefixed(sum_request())))
        assert peer.trailers(1)[b"grpc-status"] == b"0"


def test_frames_of_which_each_is_in_time_may_come_for_ever(new_plane: Planes) -> None:
    """Whatever is read ends in the middle of a frame, as it does while a lot is on its way."""
    plane = new_plane(receive_timeout=1.0)
    plane.plan(endpoint("sum", one := packages.regressor(plane.home, 1.0)), packages=(one,))
    plane.start()
    plane.applied()
    ping = frame(PING, 0, 0, b"12345678")
    with Peer(plane) as peer:
        peer.send(ping[:12])
        for _ in range(20):
            time.sleep(0.1)
            peer.send(ping[12:], ping[:12])
        peer.send(ping[12:])
        peer.works()
        peer.send(ping[:12])
        assert peer.closing() == frames.SETTINGS_TIMEOUT


def test_an_answer_is_sent_as_the_windows_allow(plane: Plane) -> None:
    rows = 5000
    request = infer_request("sum", tensor("numeric", [[1, 2, 3]] * rows))
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, setting(frames.INITIAL_WINDOW_SIZE, 10))
        peer.send(frame(HEADERS, END_HEADERS, 1, block()))
        data = prefixed(request)
        for at in range(0, len(data), 16384):
            ended = END_STREAM if at + 16384 >= len(data) else 0
            peer.send(frame(DATA, ended, 1, data[at : at + 16384]))
        got = peer.until(lambda f: f.kind == DATA).payload
        assert len(got) == 10
        peer.send(frames.window_update(1, 100))
        got += peer.until(lambda f: f.kind == DATA).payload
        assert len(got) == 110
        peer.send(setting(frames.INITIAL_WINDOW_SIZE, 1000))
        got += peer.until(lambda f: f.kind == DATA).payload
        assert len(got) == 1100
        # Less than was sent already: nothing may be sent until the window is above it again.
        peer.send(setting(frames.INITIAL_WINDOW_SIZE, 0), frames.window_update(1, 1000))
        peer.send(frame(PING, 0, 0, b"are read"))
        peer.until(lambda f: f.kind == PING)
        peer.send(frames.window_update(1, 1_000_000))
        size = int.from_bytes(got[1:5], "big") + 5
        while len(got) < size:
            got += peer.until(lambda f: f.kind == DATA).payload
        assert peer.trailers(1)[b"grpc-status"] == b"0"
        assert got.count(b"\0\0\xe0\x40") == rows


def test_who_takes_no_answer_loses_it(new_plane: Planes) -> None:
    plane = new_plane(receive_timeout=0.4)
    plane.plan(endpoint("sum", one := packages.regressor(plane.home, 1.0)), packages=(one,))
    plane.start()
    plane.applied()
    with Peer(plane, greet=False) as peer:
        peer.send(frames.PREFACE, setting(frames.INITIAL_WINDOW_SIZE, 0))
        peer.send(request_frames(1, sum_request()))
        assert peer.reset(1) == frames.CANCEL
        peer.send(setting(frames.INITIAL_WINDOW_SIZE, 1000))
        peer.works(3)
    with Peer(plane) as peer:  # the windows are wide, and nothing is read
        big = prefixed(infer_request("sum", tensor("numeric", [[1, 2, 3]] * 4000)))
        peer.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.send(setting(frames.INITIAL_WINDOW_SIZE, 2**31 - 1))
        for number in range(1, 401, 2):
            peer.send(frame(HEADERS, END_HEADERS, number, block()))
            for at in range(0, len(big), 16384):
                ended = END_STREAM if at + 16384 >= len(big) else 0
                peer.send(frame(DATA, ended, number, big[at : at + 16384]))
        wait_for(lambda: is_reset(peer.line), "the connection to be reset")


def is_reset(line: socket.socket) -> bool:
    """Whether the other side has reset a connection, of which nothing is read."""
    try:
        line.send(b"x", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def test_silence_is_asked_about_and_idleness_ends(new_plane: Planes) -> None:
    plane = new_plane(receive_timeout=0.4, keep_alive=0.6)
    plane.start()
    with Peer(plane) as peer:
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(f"{OPEN}/ServerLive")))
        assert peer.closing() == frames.NO_ERROR
    with Peer(plane) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, block("grpc.health.v1.Health/Watch", None)))
        for _ in range(2):
            asked = peer.until(lambda f: f.kind == PING)
            peer.send(frame(PING, ACK, 0, asked.payload))
        peer.until(lambda f: f.kind == PING)
        assert peer.read() is None


def test_a_reset_stream_is_forgotten(plane: Plane) -> None:
    with Peer(plane) as peer:
        peer.send(HEAD, frames.reset(1, frames.CANCEL))
        peer.send(frame(DATA, 0, 1, b"late"), frames.window_update(1, 5), frames.reset(1, 0))
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01a\x01b"))
        peer.works(3)
        peer.send(frame(frames.GOAWAY, 0, 0, bytes(8)))
        peer.works(5)


def test_a_peer_that_half_closes_gets_its_answers(plane: Plane) -> None:
    with Peer(plane) as peer:
        peer.send(*(request_frames(number, sum_request()) for number in range(1, 40, 2)))
        peer.line.shutdown(socket.SHUT_WR)
        ended = set()
        while (found := peer.read()) is not None:
            if found.kind == HEADERS and found.flags & END_STREAM:
                ended.add(found.stream)
        assert ended == set(range(1, 40, 2))


def test_connections_that_are_reset_leave_nothing(plane: Plane) -> None:
    process = psutil.Process(plane.workers[0].pid)
    before = process.num_fds()
    for number in range(300):
        with Peer(plane) as peer:
            data = request_frames(1, sum_request())
            peer.send(data[: 1 + number % len(data)])
            peer.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: process.num_fds() <= before, "descriptors to be closed")
    assert RST_STREAM == 3
