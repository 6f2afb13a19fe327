"""Traces, as a collector on a real socket receives and decodes them."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tapster.core.settings import load
from tapster.serving import otlp
from tapster.serving.tracing import parse, tracer
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, request, wait_for
from tests.serving.rest.test_protocol import GOOD, INFER
from tests.serving.rpc import calling

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
CANARY = "tap_canary-0123456789abcdefghij"


@dataclass
class Collector:
    """An OTLP/HTTP collector; `status` is what it answers."""

    status: int = 200
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                collector.asked += 1
                collector.headers = {name.lower(): text for name, text in self.headers.items()}
                if collector.status == 200:
                    collector.take(body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        message = ExportTraceServiceRequest.FromString(body)
        for group in message.resource_spans:
            self.resources.append(values(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans += scope.spans

    def requests(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def phases(self, parent: Span) -> dict[str, Span]:
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return {span.name: span for span in found if span.trace_id == parent.trace_id}


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as Python values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def traced(new_plane: Callable[..., Plane], collector: Collector) -> Callable[[float], Plane]:
    """A worker that sends traces; give it the share of requests to trace."""

    def start(share: float) -> Plane:
        plane = new_plane()
        package = packages.regressor(plane.home, 1.0)
        plane.plan(endpoint("sum", package), packages=(package,))
        plane.start(otel_endpoint=collector.url, otel_sample=share)
        plane.applied()
        return plane

    return start


def many(plane: Plane, count: int, more: str = "") -> None:
    """So many good requests on one connection."""
    data = request(INFER, GOOD, more=more)
    with plane.connect() as line:
        for _ in range(count):
            line.sendall(data)
            got = b""
            while b"]}]}" not in got:
                got += line.recv(65536)
            assert got.startswith(b"HTTP/1.1 200")


def test_a_request_is_a_span_of_its_callers_trace(
    traced: Callable[[float], Plane], collector: Collector
) -> None:
    plane = traced(0.0)
    headers = {"traceparent": SAMPLED, "x_request_id": "order-66"}
    assert plane.call("POST", INFER, GOOD, **headers).status == 200
    assert plane.call("POST", INFER, GOOD).status == 200  # nobody asked for its trace
    wait_for(collector.requests, "the span to arrive")
    plane.stop()

    (span,) = collector.requests()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert span.name == "POST /v2/models/{model}/infer"
    assert span.status.code == Status.STATUS_CODE_UNSET
    found = values(span.attributes)
    phases = collector.phases(span)
    assert found.pop("tapster.queue.seconds") == pytest.approx(length(phases["queue"]), abs=1e-6)
    assert found.pop("tapster.run.seconds") == pytest.approx(length(phases["run"]), abs=1e-6)
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "tapster.request.id": "order-66",
        "tapster.tenant": "default",
        "tapster.endpoint": "sum",
        "tapster.version": "1",
        "tapster.rows": 1,
    }
    assert collector.resources[0]["service.name"] == "tapster"
    assert collector.resources[0]["service.instance.id"].endswith("/0")
    ordered = [phases["queue"], phases["run"], phases["write"]]
    assert span.start_time_unix_nano == ordered[0].start_time_unix_nano
    assert all(
        one.end_time_unix_nano == next_one.start_time_unix_nano
        for one, next_one in pairwise(ordered)
    )
    assert ordered[-1].end_time_unix_nano <= span.end_time_unix_nano


def length(span: Span) -> float:
    """Seconds of a span."""
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_call_over_grpc_is_one_too(
    traced: Callable[[float], Plane], collector: Collector
) -> None:
    plane = traced(0.0)
    body = calling.infer_request("sum", calling.tensor("numeric", [[1, 2, 3]]))
    reply = calling.call(plane, calling.INFER, body, traceparent=SAMPLED, x_request_id="order-67")
    assert reply.code is grpc.StatusCode.OK
    assert calling.call(plane, calling.INFER, body, traceparent="0").code is grpc.StatusCode.OK
    missing = calling.infer_request("none", calling.tensor("numeric", [[1, 2, 3]]))
    reply = calling.call(plane, calling.INFER, missing, traceparent=SAMPLED)
    assert reply.code is grpc.StatusCode.NOT_FOUND
    wait_for(lambda: len(collector.requests()) == 2, "the spans to arrive")
    plane.stop()
    good, bad = (values(span.attributes) for span in collector.requests())
    assert all(span.trace_id.hex() == TRACE for span in collector.requests())
    assert {span.name for span in collector.requests()} == {calling.INFER}
    assert good["rpc.system.name"] == "grpc"
    assert good["rpc.method"] == calling.INFER
    assert (good["rpc.response.status_code"], bad["rpc.response.status_code"]) == (
        "OK",
        "NOT_FOUND",
    )
    assert (good["tapster.endpoint"], good["tapster.request.id"]) == ("sum", "order-67")
    assert (bad["tapster.endpoint"], bad["error.type"]) == ("other", "not_found")


def test_every_request_or_a_share_of_them(
    traced: Callable[[float], Plane], collector: Collector
) -> None:
    plane = traced(1.0)
    many(plane, 50)  # all but the first with a head that was seen before
    many(plane, 1, f"traceparent: 00-{TRACE}-{CALLER}-00\r\n")  # its caller wants no trace
    many(plane, 1, "traceparent: made-up\r\n")
    many(plane, 1, f"traceparent: {SAMPLED}\r\ntraceparent: {SAMPLED}\r\n")
    wait_for(lambda: len(collector.requests()) >= 52, "the spans to arrive")
    plane.stop()
    found = collector.requests()
    assert len(found) == len({span.trace_id for span in found}) == 52
    assert not any(span.parent_span_id or span.trace_id.hex() == TRACE for span in found)


def test_a_share_of_requests(traced: Callable[[float], Plane], collector: Collector) -> None:
    plane = traced(0.2)
    many(plane, 1000)
    wait_for(lambda: len(collector.requests()) > 100, "spans to arrive")
    plane.stop()
    assert 130 < len(collector.requests()) < 270


def test_failures_are_told_without_what_callers_sent(
    traced: Callable[[float], Plane], collector: Collector
) -> None:
    plane = traced(1.0)
    bodies = {
        INFER: {"inputs": [{"name": CANARY}]},
        f"/v2/models/{CANARY}/infer": GOOD,
        f"/v1/models/sum:predict?key={CANARY}": {"instances": [CANARY]},
    }
    for path, body in bodies.items():
        plane.call("POST", path, body, traceparent=f"{SAMPLED}", cookie=CANARY)
    plane.call("POST", INFER, GOOD, key=CANARY, traceparent=SAMPLED)
    wait_for(lambda: len(collector.requests()) == 3, "the spans to arrive")
    plane.stop()
    found = [values(span.attributes) for span in collector.requests()]
    assert [(each["http.response.status_code"], each["error.type"]) for each in found] == [
        (400, "invalid"),
        (404, "not_found"),
        (400, "invalid"),
    ]
    assert [each["tapster.endpoint"] for each in found] == ["sum", "other", "sum"]
    assert len(collector.requests()) == 3
    assert not any(b"canary" in body for body in collector.bodies)


def test_a_collector_that_fails_is_felt_by_nobody(
    traced: Callable[[float], Plane], collector: Collector
) -> None:
    collector.status = 400
    plane = traced(1.0)
    many(plane, 200)
    wait_for(lambda: "the collector answered 400" in plane.log(), "the log to tell")
    many(plane, 50)
    worker = plane.workers[0]
    collector.server.shutdown()
    worker.terminate()
    assert worker.wait(20) == 0


def test_without_a_collector_there_is_no_tracer(plane: Plane) -> None:
    assert tracer(load({}), 0) is None
    assert plane.call("POST", INFER, GOOD, traceparent=SAMPLED).status == 200
    profile = plane.call("GET", "/debug/profile?seconds=0.05").body
    assert b"log;" in profile
    assert b"traces;" not in profile


def test_long_and_odd_values_are_spelled_as_they_are() -> None:
    long, large = "é" * 5000, 1 << 62
    attributes = otlp.attribute("text", long) + otlp.attribute("number", large)
    attributes += otlp.attribute("none", "") + otlp.attribute("real", -0.1)
    spelled = otlp.span(b"t" * 16, b"s" * 8, b"", "it", (1, large), attributes=attributes)
    data = otlp.request({"service.name": "x"}, "tapster", [spelled] * 3)
    (group,) = ExportTraceServiceRequest.FromString(data).resource_spans
    (scope,) = group.scope_spans
    assert (scope.scope.name, len(scope.spans)) == ("tapster", 3)
    found = scope.spans[2]
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (1, large)
    assert (found.parent_span_id, found.kind) == (b"", Span.SPAN_KIND_INTERNAL)
    expected = {"text": long, "number": large, "none": "", "real": -0.1}
    assert values(found.attributes) == expected


def test_a_collector_that_is_busy_is_asked_again(
    new_plane: Callable[..., Plane], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=a%20b, x-other=c")
    collector.status = 503
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.start(otel_endpoint=collector.url + "/", otel_sample=1)
    plane.applied()
    many(plane, 3)
    wait_for(lambda: collector.asked, "the collector to be asked")
    collector.status = 200
    wait_for(lambda: len(collector.requests()) == 3, "the spans to arrive")
    assert collector.headers["x-token"] == "a b"
    assert collector.headers["x-other"] == "c"
    assert "traces" not in plane.log()


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (SAMPLED, True),
        (f"00-{TRACE}-{CALLER}-00", True),
        (f"cc-{TRACE}-{CALLER}-01-what-the-future-brings", True),
        (f"00-{TRACE}-{CALLER}-01-more", False),
        (f"ff-{TRACE}-{CALLER}-01", False),
        (f"00-{'0' * 32}-{CALLER}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{CALLER}-01", False),
        (f"00-{TRACE}-{CALLER}", False),
        (f"00-{TRACE}-{CALLER}-01\n", False),
        (f"cc-{TRACE}-{CALLER}-01-{'x' * 1000}", False),
        ("", False),
    ],
)
def test_a_traceparent_is_taken_or_ignored(header: str, valid: bool) -> None:
    found = parse(header.encode())
    assert (found is not None) == valid
    if found is not None:
        assert (f"{found.trace:032x}", f"{found.span:016x}") == (TRACE, CALLER)
        assert found.sampled == bool(re.search("-01($|-)", header[50:]))
