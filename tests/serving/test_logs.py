"""What is logged about requests and processes, and what never is."""

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tapster.contract.plan import Options
from tests.conftest import Server
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, request, wait_for
from tests.serving.rest.test_protocol import GOOD, INFER

CANARY = "tap_canary-3vVbJ7cU9dG1mQ5wRkZ0"
LINE = {"request_id", "tenant", "endpoint", "version", "status", "seconds"}
PHASES = {"read", "wait", "run", "write"}
Start = Callable[..., Plane]


@pytest.fixture
def start(new_plane: Start) -> Start:
    """Start a worker with the endpoints `sum` and `slow`, and settings."""

    def made(**settings: Any) -> Plane:
        plane = new_plane()
        quick, heavy = packages.regressor(plane.home, 1.0), packages.heavy(plane.home)
        plane.plan(
            endpoint("sum", quick),
            endpoint("slow", heavy, options=Options(deadline=0.2)),
            packages=(quick, heavy),
        )
        plane.start(**settings)
        plane.applied()
        return plane

    return made


def lines(plane: Plane, event: str = "") -> list[dict[str, Any]]:
    """The log's lines, all of which must be JSON, about an event."""
    found = [json.loads(line) for line in (plane.home / "log").read_text().splitlines()]
    return [line for line in found if event in {"", line["event"]}]


def slow_body(rows: int) -> bytes:
    row = ",".join(["0.5"] * 1000)
    data = ",".join([row] * rows)
    tensor = {"name": "numeric", "shape": [rows, 1000], "datatype": "FP32", "data": "DATA"}
    return json.dumps({"inputs": [tensor]}).replace('"DATA"', f"[{data}]").encode()


def test_each_request_has_a_line_where_that_is_wanted(start: Start) -> None:
    plane = start(access_log=1)
    for number in range(20):
        assert plane.call("POST", INFER, GOOD, x_request_id=f"r-{number}").status == 200
    made = plane.call("POST", INFER, GOOD).headers["x-request-id"]
    assert plane.call("POST", INFER, b"{", x_request_id="bad").status == 400
    found = wait_for(
        lambda: len(found := lines(plane, "request")) >= 22 and found, "the lines to be written"
    )
    assert [line["request_id"] for line in found] == [*(f"r-{n}" for n in range(20)), made, "bad"]
    for line in found[:21]:
        assert line.keys() >= LINE | PHASES | {"time", "level", "process", "rows"}
        assert (line["tenant"], line["endpoint"], line["version"]) == ("default", "sum", "1")
        assert (line["status"], line["rows"], line["process"]) == (200, 1, "worker 0")
        assert 0 < sum(line[name] for name in PHASES) <= line["seconds"] + 1e-5
    assert found[-1]["status"] == 400


def test_a_share_of_requests_has_a_line(start: Start) -> None:
    plane = start(access_log=0.1)
    with plane.connect() as line:
        line.sendall(request(INFER, GOOD) * 100)
        got = b""
        while got.count(b"HTTP/1.1 200") < 100:
            got += line.recv(65536)
    wait_for(lambda: len(lines(plane, "request")) >= 10, "the lines to be written")
    assert len(lines(plane, "request")) == 10


def test_requests_make_no_lines_by_themselves(start: Start) -> None:
    plane = start()
    for _ in range(20):
        assert plane.call("POST", INFER, GOOD).status == 200
        assert plane.call("POST", INFER, b"{").status == 400
    plane.stop()
    assert {line["event"] for line in lines(plane)} <= {"a package changed", "the plan is applied"}
    assert [line["plan"] for line in lines(plane, "the plan is applied")] == [1]
    assert sum(line["state"] == "ready" for line in lines(plane, "a package changed")) == 2


def test_slow_requests_are_told(start: Start) -> None:
    plane = start(slow_request=0.005)
    assert plane.call("POST", "/v2/models/slow/infer", slow_body(2), x_request_id="it").status
    (line,) = wait_for(
        lambda: [each for each in lines(plane, "slow request") if each["request_id"] == "it"],
        "the line to be written",
    )
    assert line.keys() >= LINE | PHASES
    assert (line["endpoint"], line["status"], line["rows"]) == ("slow", 200, 2)
    assert line["seconds"] >= max(0.005, line["run"])


def test_what_is_not_served_is_told_in_numbers(start: Start) -> None:
    plane = start()
    body = slow_body(1500)
    for number in range(3):
        answer = plane.call("POST", "/v2/models/slow/infer", body, x_request_id=f"late-{number}")
        assert answer.status == 504
    for number in range(30):
        assert plane.call("POST", INFER, b"{").status == 400
        assert plane.call("POST", f"/v2/models/no-{number}/infer", GOOD).status == 404
        assert plane.call("POST", INFER, GOOD, key=f"tap_no-{number}").status == 401

    def summed(name: str, word: str) -> int:
        found = lines(plane, "requests were not served")
        return sum(line.get(word, 0) for line in found if line["endpoint"] == name)

    wait_for(lambda: summed("other", "client_errors") >= 30, "the lines to be written")
    assert summed("sum", "client_errors") == 30
    assert summed("slow", "server_errors") == 3
    refused = lines(plane, "requests without a valid key")
    assert sum(line["count"] for line in refused) == 30
    assert len(lines(plane)) < 40
    late = lines(plane, "a request failed")
    assert [line["request_id"] for line in late] == ["late-0", "late-1", "late-2"]
    assert all(line.keys() >= LINE | {"code"} and line["status"] == 504 for line in late)


FORGED = '\n{"event": "forged"}\r\n\x1b[31m\x00\u2028'


def test_nothing_forges_a_line_and_no_secret_is_in_one(start: Start) -> None:
    plane = start(access_log=1, log_level="debug", slow_request=0.0000001)
    for spot in (CANARY, FORGED):
        body = {"inputs": [{"name": spot, "shape": [1], "datatype": "BYTES", "data": [spot]}]}
        rows = {"rows": [{spot: spot}], "instances": spot, spot: spot}
        name = "".join(f"%{byte:02x}" for byte in spot.encode())
        for path in (
            INFER,
            f"/v2/models/{name}/infer",
            f"/v2/models/sum/versions/{name}/infer",
            f"/v1/models/sum/labels/{name}:predict?key={name}",
            f"/v1/endpoints/{name}/predict",
            f"/{name}",
        ):
            for sent in (body, rows, json.dumps(spot).encode(), spot.encode()):
                assert plane.call("POST", path, sent, cookie=CANARY).status in {400, 404}
    assert plane.call("POST", INFER, GOOD, key=CANARY).status == 401
    assert plane.call("POST", INFER, GOOD, key="x", x_api_key=CANARY).status == 401
    odd = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-Request-Id: \x1b[31m{CANARY[:9]}\r\n".encode()
    for data in (b"\x16\x03\x01" + CANARY.encode(), odd + b"Content-Length: x\r\n\r\n"):
        plane.raw(data)
    plane.call("POST", INFER, GOOD, x_request_id="last")
    wait_for(lambda: any(each.get("request_id") == "last" for each in lines(plane)), "the end")
    plane.stop()
    text = (plane.home / "log").read_text()
    assert "canary" not in text
    assert "forged" not in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", text)
    assert all({"time", "level", "process", "event"} <= line.keys() for line in lines(plane))


def test_lines_for_people(start: Start) -> None:
    plane = start(access_log=1, log_format="text")
    assert plane.call("POST", INFER, GOOD, x_request_id="it").status == 200
    pattern = r"^\S+Z info    worker 0: request  request_id=it  tenant=default  endpoint=sum "
    wait_for(lambda: re.search(pattern, plane.log(), re.MULTILINE), "the line to be written")


# -- the slowest


def test_the_slowest_requests_of_all_workers(start: Start) -> None:
    plane = start()
    plane.start(1)
    plane.applied(index=1)
    seen: set[int] = set()
    number = 0

    def slow() -> list[dict[str, Any]]:
        found = plane.call("GET", "/debug/slow").json()["requests"]
        return [each for each in found if each["endpoint"] == "slow"]

    def both() -> bool:
        nonlocal number
        number += 1
        answer = plane.call("POST", "/v2/models/slow/infer", slow_body(1), x_request_id=str(number))
        assert answer.status == 200
        seen.update(each["worker"] for each in slow())
        return seen == {0, 1}

    wait_for(both, "both workers to have answered")
    found = slow()
    assert len({each["request_id"] for each in found}) == len(found)
    assert [each["seconds"] for each in found] == sorted(
        (each["seconds"] for each in found), reverse=True
    )
    for each in found:
        assert each["phases"].keys() == PHASES
        assert 0 < sum(each["phases"].values()) <= each["seconds"] + 1e-5
        assert each["phases"]["run"] > 0.0005
        assert abs(time.time() - each["ended"]) < 60
    assert len(plane.call("GET", "/debug/slow?limit=1").json()["requests"]) == 1


def test_few_are_kept_and_only_the_slowest(start: Start) -> None:
    plane = start()
    for _ in range(3):
        assert plane.call("POST", "/v2/models/slow/infer", slow_body(4)).status == 200
    with plane.connect() as line:
        for _ in range(20):
            line.sendall(request(INFER, GOOD) * 50)
            got = b""
            while got.count(b"HTTP/1.1 200") < 50:
                got += line.recv(65536)
    assert plane.call("POST", "/v2/models/slow/infer", slow_body(1500), x_request_id="z").status

    def kept() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = plane.call("GET", "/debug/slow?limit=1000").json()["requests"]
        return found if found and found[0]["request_id"] == "z" else []

    found = wait_for(kept, "the slowest to be published")
    assert len(found) == 32
    times = [each["seconds"] for each in found]
    assert times == sorted(times, reverse=True)
    assert (found[0]["status"], found[0]["phases"]) == (504, None)


@pytest.mark.parametrize("path", ["/debug/slow", "/debug/profile?seconds=0.1", "/metrics"])
def test_watching_needs_its_right(plane: Plane, path: str) -> None:
    assert plane.call("GET", path, key="watcher").status == 200
    assert plane.call("GET", path, key="caller").status == 403
    assert plane.call("GET", path, key=None).status == 401
    assert plane.call("POST", path, b"", key="watcher").status == 405


# -- profiles


def test_a_profile_shows_what_threads_do(start: Start) -> None:
    plane = start()
    data = request(INFER, GOOD)
    with (
        closing(http.client.HTTPConnection("127.0.0.1", plane.port, timeout=30)) as asking,
        plane.connect() as line,
    ):
        asking.request("GET", "/debug/profile?seconds=1", headers={"Authorization": KEYED})
        until = time.monotonic() + 1
        while time.monotonic() < until:  # requests are answered meanwhile
            line.sendall(data * 20)
            got = b""
            while got.count(b"HTTP/1.1 200") < 20:
                got += line.recv(65536)
        answer = asking.getresponse()
        text = answer.read().decode()
    assert answer.status == 200
    for row in text.splitlines():
        assert re.fullmatch(r"[^;\n]+(;[\w.<>]+:[\w.<>]+)+ \d+", row), row
    assert re.search(r"^MainThread;.*tapster\.serving\.", text, re.MULTILINE)
    counts = [int(row.rpartition(" ")[2]) for row in text.splitlines()]
    assert max(counts) > 20
    assert "/" not in text


@pytest.mark.parametrize("seconds", ["0", "31", "nan", "-1", "1e3", "x", "9" * 400])
def test_a_profile_takes_so_long_at_most(plane: Plane, seconds: str) -> None:
    assert plane.call("GET", f"/debug/profile?seconds={seconds}").status == 400


def test_one_profile_at_a_time(start: Start) -> None:
    plane = start()
    with plane.connect() as one:
        one.sendall(request("/debug/profile?seconds=3", method="GET"))

        def refused() -> bool:
            answer = plane.call("GET", "/debug/profile?seconds=0.01")
            return answer.status == 409

        wait_for(refused, "the second to be refused")
        assert one.recv(100).startswith(b"HTTP/1.1 200")


KEYED = "Bearer tap_test-key"


# -- a whole installation


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("logged") / "home"
    settings = {"TAPSTER_ACCESS_LOG": "1", "TAPSTER_LOG_LEVEL": "debug"}
    running = Server(home, settings).start()
    yield running
    assert running.stop() == 0


def told(server: Server, event: str) -> list[dict[str, Any]]:
    """Lines about an event; all lines must be JSON."""
    found = [json.loads(line) for line in server.log().splitlines()]
    return [line for line in found if line["event"] == event]


def test_the_control_api_tells_of_its_requests(installation: Server) -> None:
    server = installation
    with httpx.Client(headers={"Authorization": f"Bearer {server.key}"}, timeout=30) as client:
        answer = client.get(f"{server.url}/api/v1/jobs", headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
        answer = client.get(f"{server.url}/api/v1/models/{CANARY}?key={CANARY}")
        assert answer.status_code == 404
        made = answer.headers["x-request-id"]
        for odd in ("x" * 129, "é"):
            headers = {b"x-request-id": odd.encode()}
            taken = client.get(f"{server.url}/health", headers=headers).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{16}", taken)
        client.post(f"{server.url}/api/v1/{CANARY}", json={CANARY: CANARY})
        client.get(f"{server.url}/api/v1/jobs", headers={"authorization": f"Bearer {CANARY}"})
        metrics = client.get(f"{server.url}/metrics").text
    found = wait_for(
        lambda: (
            {line["request_id"]: line for line in told(server, "request")}.get(made)
            and {line["request_id"]: line for line in told(server, "request")}
        ),
        "the lines to be written",
    )
    assert (found["mine"]["tenant"], found["mine"]["status"]) == ("default", 200)
    assert (found["mine"]["method"], found["mine"]["route"]) == ("GET", "/api/v1/jobs")
    assert (found[made]["status"], "{" in found[made]["route"]) == (404, True)
    sample = 'tapster_control_requests_total{code="2xx",method="GET",route="/api/v1/jobs"}'
    assert sample in metrics
    assert "canary" not in metrics + server.log()
    assert server.key not in server.log()


def test_a_death_is_told(installation: Server) -> None:
    server = installation
    (worker,) = server.children("serving.worker")
    worker.kill()
    (line,) = wait_for(
        lambda: told(server, "a process ended; starting it again"), "the line to be written"
    )
    assert (line["process"], line["child"], line["pid"]) == ("supervisor", "worker 0", worker.pid)
    assert line["signal"] == "Killed"
    assert line["lived"] > 0
    port = urlsplit(server.rest_url).port
    assert port is not None

    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            return httpx.get(f"{server.rest_url}/v2/health/ready", timeout=30).is_success

    wait_for(answers, "the worker to be replaced")
