"""Hostile HTTP, and callers who are not who they say, by the numbers of the threat list.

Each has its stated outcome, and after each the worker is unharmed (see `plane`).
"""

import http.client
import socket
import time
from contextlib import closing, suppress
from typing import Any

import psutil
import pytest

from tests.security.hostile import (
    GOOD,
    HEAD,
    INFER,
    PLAIN,
    PREDICT,
    SECRET,
    numeric,
    refused,
    statuses,
    unharmed,
)
from tests.serving.conftest import KEY, Plane, grant, read_all, request

# -- HTTP


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nxxxxx",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n+5\r\nxxxxx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x5\r\nxxxxx\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\nxxxxx\r\n0\r\n\r\n",
        "Content-Length: +5\r\n\r\nxxxxx",
        "Content-Length: -5\r\n\r\nxxxxx",
        "Content-Length: 5 5\r\n\r\nxxxxx",
    ],
)
def test_27_a_smuggled_request_is_not_answered(plane: Plane, framing: str) -> None:
    smuggled = request("/v2/models/sum/infer", GOOD)
    assert statuses(plane.raw(f"{HEAD}{framing}".encode() + smuggled)) == [400]


def test_28_headers_that_are_too_large(plane: Plane) -> None:
    for headers in ("X: " + "a" * 1_000_000 + "\r\n", "X: y\r\n" * 10_000):
        assert statuses(plane.raw(f"{HEAD}{headers}\r\n".encode())) == [431]
    target = HEAD.replace(INFER, INFER + "?" + "a" * 1_000_000)
    assert statuses(plane.raw(f"{target}\r\n".encode())) == [431]


def test_29_chunks_of_one_byte_take_linear_time(plane: Plane) -> None:
    body = b" " * 500_000 + GOOD
    head = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    began = time.monotonic()
    data = head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert statuses(plane.raw(data)) == [200]
    assert time.monotonic() - began < 20


def test_30_slow_clients_are_cut_off(own: Plane) -> None:
    plane = own
    process = psutil.Process(plane.workers[0].pid)
    whole = request(INFER, GOOD)
    lines = [plane.connect() for _ in range(200)]
    for number, line in enumerate(lines):
        line.sendall(whole[: (0, 20, len(whole) - 5)[number % 3]])
    unharmed(plane, process)
    for number, line in enumerate(lines):
        found = statuses(read_all(line))
        assert found == ([408] if number % 3 else [])
        line.close()
    trickle = plane.connect()
    with closing(trickle), suppress(OSError):
        for byte in whole:
            trickle.sendall(bytes([byte]))
            time.sleep(0.05)
        raise AssertionError("a byte at a time was taken, however slowly it came")
    unharmed(plane, process)


def test_31_however_a_path_is_spelled_the_key_is_asked_for(plane: Plane) -> None:
    for target in (
        INFER, "//v2/health/live", "/v2/health/live/../../models/sum", "/v2/health/%6cive",
        "/%76%32/health/live", "/v2/health/live;x", "/v2/health/live/", "/V2/HEALTH/LIVE",
        "http://x/v2/models/sum", "/v2/models/sum?/v2/health/live", "/metrics", "*", "/./v2",
        "/v2/models/sum#/v2/health/live", "/v2/health/live/infer", "/v2/health%2flive",
        "/openai/v1/models", "/v2/repository/index",
    ):  # fmt: skip
        for host in ("x", "x/../v2/health/live?", "127.0.0.1/v2/health/live#"):
            head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            assert statuses(plane.raw(head.encode())) in ([400], [401]), target


ROUTES = {
    "/v2": "GET", "/v2/health/live": "GET", "/v2/health/ready": "GET", "/v2/models/sum": "GET",
    "/v2/models/sum/ready": "GET", "/v2/models/sum/stats": "GET", "/v2/models/stats": "GET",
    "/v2/models/sum/versions/1": "GET", "/v2/repository/index": "POST", INFER: "POST",
    "/v2/models/sum/versions/1/infer": "POST", "/v2/repository/models/sum/load": "POST",
    "/v2/repository/models/sum/unload": "POST", "/v1/models": "GET", "/openai/v1/models": "GET",
    "/v1/models/sum": "GET", "/v1/models/sum/metadata": "GET", PREDICT: "POST",
    "/v1/models/sum:classify": "POST", "/v1/models/sum:regress": "POST",
    "/v1/models/sum/versions/1:predict": "POST", "/v1/models/sum/labels/x:predict": "POST",
    PLAIN: "POST", "/metrics": "GET", "/debug/slow": "GET", "/debug/profile": "GET",
}  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "LOCK")


@pytest.mark.parametrize("path", ROUTES)
def test_32_another_method_never_acts(plane: Plane, path: str) -> None:
    def answered() -> Any:
        stats = plane.call("GET", "/v2/models/sum/stats").json()["model_stats"][0]
        return stats["inference_count"]

    before = answered()
    with closing(http.client.HTTPConnection("127.0.0.1", plane.port, timeout=30)) as line:
        for method in METHODS:
            if method == ROUTES[path]:
                continue
            body = GOOD if method == "POST" else None
            for key, status in ((KEY, 405), ("wrong", 401)):
                line.request(method, path, body, {"Authorization": f"Bearer {key}"})
                answer = line.getresponse()
                public = path.startswith("/v2/health")
                assert answer.status == (405 if public else status), (method, path)
                text = answer.read()
                assert bool(text) is (method != "HEAD")
                if answer.status == 405:
                    assert answer.headers["allow"] == ROUTES[path]
    assert statuses(plane.raw(f"BREW {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())) == [400]
    assert answered() == before


def test_33_a_range_of_many_parts(plane: Plane) -> None:
    ranges = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(5000))
    for method, path in (("GET", "/v2/models/sum"), ("GET", "/metrics"), ("POST", INFER)):
        body = GOOD if method == "POST" else None
        began = time.monotonic()
        assert plane.call(method, path, body, Range=ranges).status == 200
        assert time.monotonic() - began < 5


def test_34_multipart_is_not_understood(plane: Plane) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\nContent-Length: -1\r\n\r\n\r\n'
    for body in (part * 10_000, b"\r\n" * 100_000, b"--x"):
        for path in (INFER, PREDICT, PLAIN):
            kind = "multipart/form-data; boundary=x"
            with suppress(ConnectionError):  # refused before all of it is sent
                refused(plane.call("POST", path, body, Content_Type=kind), 415)


# -- identity


def test_35_every_bad_key_gets_one_answer(plane: Plane) -> None:
    def answer(value: str | None) -> tuple[Any, ...]:
        headers = {} if value is None else {"Authorization": value}
        found = plane.call("POST", INFER, GOOD, key=None, **headers)
        kept = {n: v for n, v in found.headers.items() if n not in {"date", "x-request-id"}}
        return found.status, kept, found.body

    bad = [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer expired", f"Basic {KEY}", KEY]
    seen = [answer(value) for value in bad]
    assert all(each == seen[0] for each in seen)
    assert seen[0][0] == 401
    scope = plane.call("POST", INFER, GOOD, key="reader")
    assert (scope.status, scope.body) == (403, seen[0][2])
    theirs = plane.call("POST", "/v2/models/theirs/infer", GOOD)
    nobodys = plane.call("POST", "/v2/models/nobodys/infer", GOOD)
    assert theirs.status == nobodys.status == 404
    assert theirs.body.replace(b"theirs", b"nobodys") == nobodys.body


def test_35_a_revoked_key_is_a_wrong_key(own: Plane) -> None:
    plane = own
    with plane.connect() as line:
        line.sendall(request(INFER, GOOD, key="gone"))
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        plane.plan(keys=(grant(KEY),))
        plane.applied()
        line.sendall(request(INFER, GOOD, key="gone"))
        assert line.recv(4096).startswith(b"HTTP/1.1 401 ")
    wrong = plane.call("POST", INFER, GOOD, key="wrong")
    assert plane.call("POST", INFER, GOOD, key="gone").body == wrong.body


@pytest.mark.parametrize(
    "key", ["' OR 1=1--", "x" * 1_000_000, "é" * 20, "a\x00b", "*", "../admin.key", "%00"]
)
def test_36_keys_are_only_compared(plane: Plane, key: str) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}"
    data = f"{head}\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    found = statuses(plane.raw(data))
    assert found == ([431] if len(key) > 1000 else [400] if "\x00" in key else [401])


def test_39_a_caller_is_counted_as_one_whatever_it_calls_itself(plane: Plane) -> None:
    """No limits are served yet; they will hang on what is counted here."""

    def count() -> int:
        (found,) = plane.call("GET", "/v2/models/sum/stats").json()["model_stats"]
        return int(found["inference_stats"]["success"]["count"])

    before = count()
    for number in range(10):
        forwarded = f"10.0.0.{number}"
        spelled = {"X_Forwarded_For": forwarded, "X_Real_IP": forwarded, "Forwarded": forwarded}
        assert plane.call("POST", INFER, GOOD, **spelled).status == 200
    assert count() == before + 10
    for variant in ("/V2/models/sum/infer", "/v2/models/SUM/infer", "/v2//models/sum/infer"):
        refused(plane.call("POST", variant, GOOD), 404)


def test_40_a_secret_is_shown_nowhere(plane: Plane) -> None:
    answers = [
        plane.call("POST", INFER, GOOD, key=SECRET),
        plane.call("POST", INFER, b"{", key=SECRET),
        plane.call("POST", f"{INFER}?api_key={SECRET}", GOOD),
        plane.call("POST", f"{INFER}?api_key={SECRET}", b"{"),
        plane.call("POST", "/nothing", GOOD, key=SECRET, X_Api_Key=SECRET, Cookie=SECRET),
        plane.call("POST", INFER, GOOD, key=None, Authorization=f"Basic {SECRET}"),
        plane.call("POST", INFER, numeric([1, 2, 3], password=SECRET)),
        plane.call("GET", "/metrics", key=SECRET),
        plane.call("GET", "/debug/slow", key=SECRET),
    ]
    assert [answer.status for answer in answers] == [200, 400, 200, 400, 404, 401, 200, 200, 200]
    assert not any(SECRET.encode() in answer.body for answer in answers)
    time.sleep(0.5)  # whatever writes behind a request's back has written
    process = psutil.Process(plane.workers[0].pid)
    assert SECRET not in " ".join(process.cmdline())
    written = [path for path in (plane.home / "run").iterdir() if path.is_file()]
    for path in (plane.home / "log", *written):
        assert SECRET.encode() not in path.read_bytes(), path


def test_unread_answers_do_not_stop_the_rest(plane: Plane) -> None:
    """4, 30: a client that pipelines and never reads."""
    with socket.create_connection(("127.0.0.1", plane.port), timeout=1) as line:
        with suppress(OSError):
            for _ in range(50):
                line.sendall(request(INFER, GOOD) * 200)
        for _ in range(20):
            assert plane.call("POST", INFER, GOOD).status == 200
