"""HTTP itself: framing, limits, deadlines, pipelines, half-closed and vanishing clients."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from http.client import HTTPResponse

import psutil
import pytest

from tapster.serving.slots import Slots
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, read_all, request, wait_for

INFER = "/v2/models/sum/infer"
GOOD = b'{"inputs":[{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
AUTH = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n"


def body_of(*values: float) -> bytes:
    data = ",".join(map(str, values))
    tensor = f'{{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[{data}]}}'
    return f'{{"inputs":[{tensor}]}}'.encode()


def responses(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each response in a stream."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        if status == 100:
            found.append((status, b""))
            continue
        length = int(headers[b"content-length"])
        found.append((status, data[:length]))
        data = data[length:]
    return found


def only(data: bytes) -> tuple[int, bytes]:
    """The only response in a stream."""
    found = responses(data)
    assert len(found) == 1, found
    return found[0]


def chunked(body: bytes, size: int = 10) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


POST = f"POST {INFER} HTTP/1.1\r\n{AUTH}"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (f"{POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET ", 400),
        (f"{POST}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET ", 400),
        (f"{POST}Content-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx", 400),
        (f"{POST}Content-Length: 5\r\nContent-Length: 5\r\n\r\nxxxxx", 400),
        (f"{POST}Content-Length: -5\r\n\r\n", 400),
        (f"{POST}Content-Length: +5\r\n\r\nxxxxx", 400),
        (f"{POST}Content-Length: 5, 5\r\n\r\nxxxxx", 400),
        (f"{POST}Content-Length: 0x5\r\n\r\nxxxxx", 400),
        (f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (f"POST {INFER} HTTP/1.0\r\n{AUTH}Connection: keep-alive\r\n"
         "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: chunked\r\n\r\n+5\r\nxxxxx\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: chunked\r\n\r\n0x5\r\nxxxxx\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: chunked\r\n\r\n5\nxxxxx\r\n0\r\n\r\n", 400),
        (f"{POST}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx", 400),
        (f"{POST}X: a\x00b\r\n\r\n", 400),
        (f"{POST}X\x00: a\r\n\r\n", 400),
        (f"{POST}X: a\r\n folded: b\r\n\r\n", 400),
        (f"POST {INFER} HTTP/1.1\nHost: x\n\n", 400),
        (f"POST {INFER} HTTP/1.1\r\n\r\n", 400),
        (f"{POST}Host: y\r\n\r\n", 400),
        (f"{POST}Authorization: Bearer other\r\n\r\n", 400),
        (f"POST {INFER} HTTP/9.9\r\n{AUTH}\r\n", 400),
        (f"POST {INFER}\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        ("NOTAMETHOD / HTTP/1.1\r\n\r\n", 400),
        (f"CONNECT x:80 HTTP/1.1\r\n{AUTH}\r\n", 405),
        (f"{POST}Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (f"{POST}Content-Length: 4000001\r\n\r\n", 413),
        (f"{POST}Expect: 100-continue\r\nContent-Length: 4000001\r\n\r\n", 413),
        (f"{POST}Expect: 200-maybe\r\nContent-Length: 3\r\n\r\n", 417),
        (f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\nxx", 401),
        (f"{POST}X: {'a' * 70000}\r\n\r\n", 431),
        (f"{POST}" + "X: y\r\n" * 10_000 + "\r\n", 431),
        (f"POST /{'a' * 70_000} HTTP/1.1\r\n{AUTH}\r\n", 431),
    ],
)  # fmt: skip
def test_bad_framing_ends_in_one_refusal(plane: Plane, data: str, status: int) -> None:
    found, body = only(plane.raw(data.encode("latin-1")))
    assert found == status
    assert isinstance(json.loads(body)["error"], str)
    assert plane.call("POST", INFER, GOOD).status == 200


def test_an_endless_header_is_cut_off(plane: Plane) -> None:
    with plane.connect() as line:
        line.sendall(f"{POST}X: ".encode())
        until = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                line.sendall(b"a" * 65536)
        assert time.monotonic() < until
        assert b" 431 " in read_all(line)


def test_chunked_bodies_are_served(plane: Plane) -> None:
    head = f"{POST}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    for size in (1, 7, 1000):
        status, body = only(plane.raw(head + chunked(GOOD, size)))
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [7.0])
    trailers = chunked(GOOD)[:-2] + b"Authorization: Bearer stolen\r\nX: y\r\n\r\n"
    assert only(plane.raw(head + trailers))[0] == 200


def test_a_smuggled_request_is_never_answered(plane: Plane) -> None:
    inner = request("/v2/models/sum/infer", GOOD)
    for head in (
        f"{POST}Content-Length: {len(inner) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"{POST}Connection: close\r\nContent-Length: {len(GOOD)}\r\n\r\n{GOOD.decode()}",
        f"GET /v2 HTTP/1.0\r\n{AUTH}\r\n",
    ):
        assert len(responses(plane.raw(head.encode() + inner))) == 1


def test_an_offer_to_upgrade_is_ignored(plane: Plane) -> None:
    more = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    data = request(INFER, body_of(1, 2, 3), more=more)
    data += request(INFER, body_of(2, 2, 3), more="Connection: close\r\n")
    found = [json.loads(body)["outputs"][0]["data"] for _, body in responses(plane.raw(data))]
    assert found == [[7.0], [8.0]]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_are_refused_after_the_key(plane: Plane, method: str) -> None:
    for path in (INFER, "/v1/models/sum:predict", "/v1/endpoints/sum/predict"):
        answer = plane.call(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert plane.call(method, path, key=None).status == 401
    for path in ("/v2", "/v2/health/live", "/v2/models/sum", "/v1/models/sum", "/metrics"):
        if method != "GET":
            assert plane.call(method, path).status == 405


def test_expectations_are_met(plane: Plane) -> None:
    with plane.connect() as line:
        line.sendall(request(INFER, GOOD, more="Expect: 100-continue\r\n")[: -len(GOOD)])
        assert line.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(GOOD)
        assert b" 200 " in line.recv(10_000)


def test_pipelined_requests_are_answered_in_order(plane: Plane) -> None:
    count = 700
    data = b""
    for number in range(count):
        if number % 50 == 25:
            data += request("/v2/health/live", method="GET")
        elif number % 50 == 30:
            data += request("/v2/models/nothing/infer", GOOD)
        elif number % 50 == 35:
            data += request(INFER, GOOD, key="wrong")
        else:
            data += request(INFER, body_of(number, 0, 0))
    data += request(INFER, GOOD, more="Connection: close\r\n")
    with plane.connect() as line:
        line.sendall(data)
        found = responses(read_all(line))
    assert len(found) == count + 1
    for number, (status, body) in enumerate(found[:-1]):
        wanted = {25: 200, 30: 404, 35: 401}.get(number % 50, 200)
        assert status == wanted
        if number % 50 not in {25, 30, 35}:
            assert json.loads(body)["outputs"][0]["data"] == [number + 1.0]


def test_a_half_closed_client_gets_its_answers(plane: Plane) -> None:
    with plane.connect() as line:
        line.sendall(request(INFER, GOOD) * 3)
        line.shutdown(socket.SHUT_WR)
        assert [status for status, _ in responses(read_all(line))] == [200, 200, 200]


def descriptors(plane: Plane) -> int:
    """How many files a worker that serves has open without any connection."""
    assert plane.call("POST", INFER, GOOD).status == 200
    process = psutil.Process(plane.workers[0].pid)
    wait_for(lambda: not connected(process), "connections to be closed")
    return int(process.num_fds())


def connected(process: psutil.Process) -> bool:
    """Whether anybody is connected to a worker."""
    return any(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections())


def test_clients_that_vanish_leave_nothing_behind(plane: Plane) -> None:
    process = psutil.Process(plane.workers[0].pid)

    def settled(limit: int) -> bool:
        return int(process.num_fds()) <= limit

    before = descriptors(plane)
    data = request(INFER, GOOD)
    for number in range(300):
        line = plane.connect()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.sendall(data[: 10 + number])
        line.close()
    wait_for(lambda: settled(before), "descriptors to be closed")
    assert plane.call("POST", INFER, GOOD).status == 200


@pytest.fixture
def impatient(new_plane: Callable[..., Plane]) -> Plane:
    plane = new_plane(receive_timeout=1.0, keep_alive=4.0, max_body=30_000_000)
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.start()
    plane.applied()
    return plane


def test_idle_connections_are_kept_then_closed(impatient: Plane) -> None:
    with impatient.connect() as line:
        line.sendall(request(INFER, GOOD))
        assert b" 200 " in line.recv(10_000)
        time.sleep(1.4)  # longer than the deadline of a request, shorter than the keep-alive
        line.sendall(request(INFER, GOOD))
        assert b" 200 " in line.recv(10_000)
        assert read_all(line) == b""


def test_who_was_refused_is_not_told_that_time_is_over(impatient: Plane) -> None:
    slots = Slots(impatient.slots)
    with impatient.connect() as line:
        line.sendall(f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode())
        time.sleep(0.5)
        line.sendall(b"no size\r\n")
        status, _ = only(read_all(line))  # the server's end; ours stays open
        assert status == 400
        time.sleep(2.0)  # past the deadline of the request
    wait_for(lambda: slots.beats(0, 0.5), "the worker to beat")
    slots.close()


def test_a_client_that_does_not_read_is_cut_off(impatient: Plane) -> None:
    rows = 100_000
    data = "[" + ",".join(["0,0,0"] * rows) + "]"
    body = f'{{"inputs":[{{"name":"numeric","shape":[{rows},3],"datatype":"FP32","data":{data}}}]}}'
    process = psutil.Process(impatient.workers[0].pid)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(30)
        line.connect(("127.0.0.1", impatient.port))
        wait_for(lambda: connected(process), "the connection to be accepted")
        for _ in range(12):
            try:
                line.sendall(request(INFER, body.encode()))
            except OSError:
                break
        wait_for(lambda: not connected(process), "the connection to be closed")
    assert impatient.call("POST", INFER, GOOD).status == 200


def test_without_keys_foreign_hosts_are_refused(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane(no_auth="true")
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.start()
    plane.applied()
    assert plane.call("POST", INFER, GOOD, key=None).status == 200
    assert plane.call("POST", INFER, GOOD, key="whatever").status == 200
    assert plane.call("GET", "/metrics", key=None).status == 200
    assert plane.call("POST", INFER, GOOD, key=None, Host="evil.example").status == 403
    assert plane.call("POST", INFER, GOOD, key=None, Host=f"localhost:{plane.port}").status == 200


def with_trailers(path: str, body: bytes, trailers: bytes = b"", size: int = 20_000) -> bytes:
    """A raw request whose body comes in chunks, with trailers after it."""
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Transfer-Encoding: chunked\r\nTrailer: x-digest\r\n\r\n"
    ).encode() + b"".join(
        [*(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n", trailers, b"\r\n"]
    )


@pytest.mark.parametrize("padding", [0, 100_000, 300_000])
def test_trailers_are_not_counted_with_the_body(plane: Plane, padding: int) -> None:
    body = GOOD[:-1] + b" " * padding + GOOD[-1:]
    asked = with_trailers(INFER, body, b"X-Digest: abc\r\n")
    with plane.connect() as line:
        for _ in range(2):
            line.sendall(asked)
            answer = HTTPResponse(line)
            answer.begin()
            assert (answer.status, b"prediction" in answer.read()) == (200, True)
        long = b"X-Digest: " + b"a" * 70_000 + b"\r\n"
        line.sendall(with_trailers(INFER, body, long))
        answer = HTTPResponse(line)
        answer.begin()
        assert answer.status in {400, 431}


@pytest.mark.parametrize("path", [INFER, "/v2/repository/index", "/v1/endpoints/sum/predict"])
def test_who_expects_to_be_told_to_go_on_is_told_so(plane: Plane, path: str) -> None:
    body = GOOD if path == INFER else b'{"ready":false}'
    with plane.connect() as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        got = b""
        while b"\r\n\r\n" not in got:
            got += line.recv(100)
        assert got == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        answer = HTTPResponse(line)
        answer.begin()
        assert answer.status in ({200} if path != "/v1/endpoints/sum/predict" else {400, 422})


def test_who_did_not_wait_to_be_told_to_go_on_is_not_told_afterwards(plane: Plane) -> None:
    """RFC 9110, 10.1.1: after the final answer a 100 would belong to nothing."""
    rows = b",".join([b"1"] * 60_000)  # a thread runs them, so that the second request has to wait
    long = b'{"inputs":[{"name":"numeric","shape":[20000,3],"datatype":"FP32","data":[%b]}]}' % rows
    with plane.connect() as line:
        second = request(INFER, GOOD, more="Expect: 100-continue\r\n")
        line.sendall(request(INFER, long) + second)
        got = b""
        while got.count(b"HTTP/1.1 200") < 2:
            got += line.recv(65536)
        line.sendall(request(INFER, GOOD, more="Connection: close\r\n"))
        assert [status for status, _ in responses(got + read_all(line))] == [200] * 3


def test_an_old_client_is_not_told_to_go_on(plane: Plane) -> None:
    """RFC 9110, 10.1.1: the expectation of an HTTP/1.0 request is ignored."""
    got = plane.raw(
        f"POST {INFER} HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(GOOD)}\r\n\r\n".encode()
        + GOOD
    )
    assert got.startswith(b"HTTP/1.1 200")
