"""Compressed bodies in and out, request identifiers, and how long a request may take."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serving import packages
from tests.serving.conftest import Answer, Plane, endpoint, read_all, request
from tests.serving.rest.test_binary import as_bytes, send, split, tensor
from tests.serving.rest.test_open_inference import INFER, numeric, refused
from tests.serving.rest.test_protocol import GOOD, responses

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}
ROWS = 30_000


def many(rows: int = ROWS) -> bytes:
    return json.dumps(numeric([number % 9 for number in range(3 * rows)], [rows, 3])).encode()


def unpacked(answer: Answer) -> bytes:
    coding = answer.headers.get("content-encoding")
    wbits = {"gzip": 31, "deflate": 15}
    return zlib.decompress(answer.body, wbits[coding]) if coding else answer.body


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("rows", [1, 2000, ROWS])
def test_compressed_bodies_are_read(plane: Plane, coding: str, rows: int) -> None:
    body = many(rows)
    packed = CODINGS[coding](body)
    wanted = plane.call("POST", INFER, body)
    answer = plane.call("POST", INFER, packed, Content_Encoding=coding)
    assert (answer.status, answer.body) == (200, wanted.body)
    if coding != "deflate":
        half = len(body) // 2
        members = gzip.compress(body[:half]) + gzip.compress(body[half:])
        assert plane.call("POST", INFER, members, Content_Encoding="gzip").body == wanted.body


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("br, *", "gzip"),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
        ("*;q=0", None),
        ("identity", None),
        ("br", None),
        (",;,=", None),
    ],
)
def test_answers_are_compressed_as_the_caller_likes(
    plane: Plane, accept: str, coding: str | None
) -> None:
    plain = plane.call("POST", INFER, many())
    for _ in range(2):
        answer = plane.call("POST", INFER, many(), Accept_Encoding=accept)
        assert answer.headers.get("content-encoding") == coding
        assert answer.headers["content-type"] == "application/json"
        assert ("vary" in answer.headers) is (coding is not None)
        assert unpacked(answer) == plain.body
        assert (len(answer.body) < len(plain.body) / 3) is (coding is not None)
    small = plane.call("POST", INFER, GOOD, Accept_Encoding=accept)
    assert "content-encoding" not in small.headers


def test_binary_and_compressed_at_once(plane: Plane) -> None:
    data = np.arange(3 * ROWS, dtype="<f4") % 7
    document = {
        "inputs": [tensor("numeric", "FP32", [ROWS, 3], data.nbytes)],
        "parameters": {"binary_data_output": True},
    }
    wanted = split(send(plane, INFER, document, data.tobytes()))
    head = json.dumps(document).encode()
    answer = plane.call(
        "POST",
        INFER,
        gzip.compress(head + data.tobytes()),
        Content_Encoding="gzip",
        Accept_Encoding="deflate",
        Inference_Header_Content_Length=str(len(head)),
    )
    assert answer.headers["content-encoding"] == "deflate"
    answer.body = unpacked(answer)
    assert split(answer) == wanted
    assert wanted[1]["prediction"] == as_bytes("FP32", data.reshape(-1, 3).sum(axis=1) + 1)


def test_damaged_bodies_are_refused(plane: Plane) -> None:
    packed = gzip.compress(GOOD)
    for body in (GOOD, packed[:-9], packed[:-1], packed + b"x", b"\x1f\x8b", packed * 100):
        refused(plane.call("POST", INFER, body, Content_Encoding="gzip"))
    for body in (zlib.compress(GOOD)[:-2], zlib.compress(GOOD) * 2, GOOD, b"\x78\x9c"):
        refused(plane.call("POST", INFER, body, Content_Encoding="deflate"))
    large = gzip.compress(np.random.default_rng(0).bytes(300_000), 1)[:-20]
    refused(plane.call("POST", INFER, large, Content_Encoding="gzip"), "cut short")


def test_long_bodies_keep_their_place_in_line(plane: Plane) -> None:
    long, short = many(), GOOD
    bodies = [long, short, long, short, short]
    data = b"".join(request(INFER, body) for body in bodies)
    data += request(INFER, short, more="Connection: close\r\n")
    counts = [json.loads(body)["outputs"][0]["shape"][0] for _, body in responses(plane.raw(data))]
    assert counts == [ROWS, 1, ROWS, 1, 1, 1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", INFER, GOOD, 200),
        ("POST", INFER, b"{", 400),
        ("POST", "/v2/models/nothing/infer", GOOD, 404),
        ("GET", "/v2/health/live", None, 200),
        ("GET", "/v2/models/sum", None, 200),
        ("GET", "/nothing", None, 404),
        ("DELETE", INFER, None, 405),
    ],
)
def test_every_answer_has_an_identifier(
    plane: Plane, method: str, path: str, body: Any, status: int
) -> None:
    own = "job/7: naive (retry 2)"
    for key in ("tap_test-key", "wrong"):
        seen = set()
        for given in (own, "x" * 128, "x" * 129, "a\tb", "é", None):
            headers = {} if given is None else {"X_Request_Id": given}
            answer = plane.call(method, path, body, key=key, **headers)
            public = path == "/v2/health/live"
            assert answer.status == (status if key != "wrong" or public else 401)
            found = answer.headers["x-request-id"]
            assert (found == given) is (given in {own, "x" * 128})
            assert found not in seen
            assert 1 <= len(found) <= 128
            seen.add(found)


def test_malformed_requests_have_an_identifier_too(plane: Plane) -> None:
    assert b"\r\nx-request-id: " in plane.raw(b"BROKEN\r\n\r\n")


@pytest.fixture
def slow(new_plane: Callable[..., Plane]) -> Plane:
    plane = new_plane()
    made = (packages.heavy(plane.home), packages.regressor(plane.home, 1.0))
    plane.plan(endpoint("heavy", made[0]), endpoint("sum", made[1]), packages=made)
    plane.start()
    plane.applied()
    return plane


def heavy(rows: int, **more: Any) -> dict[str, Any]:
    given = {"name": "numeric", "shape": [rows, 1000], "datatype": "FP32"}
    return {"inputs": [given | {"data": [0] * 1000 * rows}], **more}


def test_a_request_may_take_as_long_as_its_caller_says(slow: Plane) -> None:
    path = "/v2/models/heavy/infer"
    assert slow.call("POST", path, heavy(1), X_Request_Timeout="20").status == 200
    for headers, parameters in (
        ({"X_Request_Timeout": "0.001"}, {}),
        ({}, {"parameters": {"timeout": 1000}}),
        ({"X_Request_Timeout": "20"}, {"parameters": {"timeout": 1000}}),
    ):
        refused(slow.call("POST", path, heavy(100, **parameters), **headers), status=504)
    for text in ("0", "-1", "soon", "nan", ""):
        refused(slow.call("POST", path, heavy(1), X_Request_Timeout=text), "x-request-timeout")
    for timeout, words in ((0, "microseconds"), (-1, "microseconds"), ("1", "expected `int`")):
        refused(slow.call("POST", path, heavy(1, parameters={"timeout": timeout})), words)


def test_callers_who_leave_are_not_worked_for(slow: Plane) -> None:
    """Some reset, some close after they have sent all: neither's queued request is run."""
    path = "/v2/models/heavy/infer"
    body = json.dumps(heavy(100)).encode()
    began = time.monotonic()
    assert slow.call("POST", path, body).status == 200
    once = time.monotonic() - began
    lines = [slow.connect() for _ in range(20)]
    for line in lines:
        line.sendall(request(path, body))
    for line in lines:
        line.close()
    began = time.monotonic()
    assert slow.call("POST", path, body).status == 200
    # Those that had begun may finish; nineteen others would take as many times `once`.
    assert time.monotonic() - began < 10 * once + 2
    counted = 'endpoint="heavy",version="1",code="2xx"} '
    page = slow.call("GET", "/metrics").body.decode()
    assert int(float(page.split(counted)[1].split()[0])) < 15


def test_callers_who_only_stop_sending_are_answered(slow: Plane) -> None:
    """They may be told to go on meanwhile, which is how it is found out whether they are there."""
    body = json.dumps(heavy(300)).encode()
    with slow.connect() as line:
        line.sendall(request("/v2/models/heavy/infer", body))
        line.shutdown(socket.SHUT_WR)
        found = [status for status, _ in responses(read_all(line))]
    assert found == [100] * (len(found) - 1) + [200]


def test_a_plan_may_change_while_a_body_is_read(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    made = {1: packages.regressor(plane.home, 1.0), 2: packages.regressor(plane.home, 2.0)}
    plane.plan(endpoint("sum", made[1], 1), packages=(made[1],))
    plane.start()
    plane.applied()
    body, wanted = (
        many(),
        [sum(number % 9 for number in range(at, at + 3)) for at in range(0, 90, 3)],
    )
    answers: list[Answer] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(plane.call("POST", INFER, body))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    for turn in range(10):
        version = 2 - turn % 2
        plane.plan(endpoint("sum", made[version], version), packages=(made[version],))
        plane.applied()
    ended.set()
    for caller in callers:
        caller.join()
    assert len(answers) > 10
    assert {answer.status for answer in answers} == {200}
    documents = [answer.json() for answer in answers]
    for document in documents:
        bias = int(document["model_version"])
        assert document["outputs"][0]["data"][:30] == [each + bias for each in wanted]
    assert {document["model_version"] for document in documents} == {"1", "2"}
