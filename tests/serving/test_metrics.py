"""The metrics page: what Prometheus reads, and that no caller makes it grow."""

import math
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from tapster.contract.plan import EndpointPlan, Options, PackageRef, Variant
from tapster.serving import slots as layout
from tapster.serving.slots import Slots
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, request, wait_for
from tests.serving.rest.test_protocol import GOOD, INFER
from tests.serving.test_logs import slow_body

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def page(plane: Plane) -> str:
    return plane.call("GET", "/metrics").body.decode()


def sample(plane: Plane, name: str, **labels: str) -> float:
    """The sum of the samples with this name and these labels."""
    return sum(
        found.value
        for family in text_string_to_metric_families(page(plane))
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


def pipelined(plane: Plane, requests: Iterator[bytes], size: int = 100) -> set[bytes]:
    """Send requests on one connection, so many at once; the statuses that came."""
    statuses: set[bytes] = set()
    with plane.connect() as line:
        while batch := [data for _, data in zip(range(size), requests, strict=False)]:
            line.sendall(b"".join(batch))
            got = b""
            while got.count(b"HTTP/1.1 ") < len(batch) or not got.endswith(b"}"):
                got += line.recv(1 << 20)
            statuses |= set(re.findall(rb"HTTP/1\.1 (\d+)", got))
    return statuses


def test_calls_are_counted_and_timed(plane: Plane) -> None:
    names = {"endpoint": "sum", "tenant": "default", "version": "1"}
    before = {
        name: sample(plane, name, **names)
        for name in (
            "tapster_rows_total",
            "tapster_batches_total",
            "tapster_request_duration_seconds_count",
            "tapster_queue_wait_seconds_count",
        )
    }
    seconds = {
        name: sample(plane, name, **names)
        for name in (
            "tapster_request_duration_seconds_sum",
            "tapster_queue_wait_seconds_sum",
            "tapster_compute_seconds_total",
        )
    }
    served = sample(plane, "tapster_requests_total", **names, code="2xx")
    batches = sample(plane, "tapster_batch_size_rows_count")
    began = time.perf_counter()
    for _ in range(4):
        assert plane.call("POST", INFER, GOOD).status == 200
    took = time.perf_counter() - began
    assert sample(plane, "tapster_requests_total", **names, code="2xx") == served + 4
    assert sample(plane, "tapster_batch_size_rows_count") == batches + 4
    for name, value in before.items():
        assert sample(plane, name, **names) == value + 4, name
    whole, wait, run = (sample(plane, name, **names) - seconds[name] for name in seconds)
    assert 0 < wait < wait + run < whole + 1e-5 < took + 2e-5
    assert sample(plane, "tapster_model_info", endpoint="sum-two", version="2") == 1
    assert sample(plane, "tapster_traffic_weight_ratio", endpoint="sum-two", version="2") == 0.9
    assert sample(plane, "tapster_package_workers", state="ready") >= 4
    sizes = sample(plane, "tapster_package_memory_bytes")
    assert sizes >= sample(plane, "tapster_models_memory_bytes") > 0


def test_both_formats_are_what_their_parsers_read(plane: Plane) -> None:
    assert plane.call("POST", INFER, GOOD).status == 200
    plain = plane.call("GET", "/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    newer = plane.call("GET", "/metrics", accept=OPENMETRICS)
    assert newer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    old = {each.name: each for each in text_string_to_metric_families(plain.body.decode())}
    new = {each.name: each for each in open_families(newer.body.decode())}  # type: ignore[no-untyped-call]
    assert {name.removesuffix("_info") for name in old} == set(new)
    for family in new.values():
        assert family.documentation.endswith("."), family.name
        assert family.name.startswith("tapster_")
        quiet = re.search("_(cache_requests|tokens|payloads|shadow|golden|inner)", family.name)
        assert family.samples or quiet, family.name
    units = re.compile(
        "_(seconds|bytes|rows|ratio|number|requests|workers|connections|fds|threads)"
    )
    gauges = [each for each in new.values() if each.type in {"gauge", "histogram"}]
    assert [each.name for each in gauges if not units.search(each.name + "_")] == [
        "tapster_worker_ready"
    ]
    labels = {name for each in new.values() for found in each.samples for name in found.labels}
    assert " ".join(sorted(labels)) == (
        "code endpoint le model package reason role state tenant version worker"
    )


@pytest.mark.parametrize(
    ("accept", "newer"),
    [
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;q=0,text/plain", False),
        ("text/html, application/OpenMetrics-Text;version=1.0.0;q=0.8", True),
    ],
)
def test_who_asks_for_openmetrics_gets_it(plane: Plane, accept: str, newer: bool) -> None:
    answer = plane.call("GET", "/metrics", accept=accept)
    assert ("openmetrics" in answer.headers["content-type"]) == newer
    assert answer.body.endswith(b"# EOF\n") == newer


def test_what_is_not_run_is_counted_by_reason(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.heavy(plane.home)
    missing = PackageRef(digest="0" * 64, key="packages/none")
    plane.plan(
        endpoint("slow", package, options=Options(queue=5)),
        endpoint("none", missing),
        packages=(package, missing),
    )
    plane.start()
    plane.applied()

    def rejected(reason: str, name: str = "slow") -> float:
        found = sample(plane, "tapster_rejected_requests_total", reason=reason, endpoint=name)
        everywhere = sample(plane, "tapster_rejected_requests_total", reason=reason)
        assert found == everywhere
        return found

    path = "/v2/models/slow/infer"
    with plane.connect() as first, plane.connect() as gone, plane.connect() as line:
        first.sendall(request(path, slow_body(600)))
        wait_for(lambda: sample(plane, "tapster_in_flight_requests") == 1, "the call to run")
        gone.sendall(request(path, slow_body(1)))
        wait_for(lambda: sample(plane, "tapster_queued_requests") == 1, "the call to wait")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        line.sendall(request(path, slow_body(1)) * 20)
        got = b""
        while got.count(b"HTTP/1.1 ") < 20:
            got += line.recv(1 << 20)
    statuses = Counter(re.findall(rb"HTTP/1\.1 (\d+)", got))
    assert set(statuses) == {b"200", b"503"}
    assert rejected("queue_full") == statuses[b"503"] >= 15
    assert rejected("cancelled") == 1
    assert rejected("expired") == 0
    for _ in range(3):
        assert plane.call("POST", "/v2/models/none/infer", GOOD).status == 503
    assert rejected("unavailable", "none") == 3
    assert rejected("limited") == 0


def test_unknown_names_make_no_series(plane: Plane) -> None:
    size = len(page(plane).splitlines())
    before = sample(plane, "tapster_requests_total", endpoint="other", code="4xx")
    refused = sample(plane, "tapster_refused_requests_total")
    count = 2000

    def flood() -> Iterator[bytes]:
        for number in range(count):
            yield request(f"/v2/models/unknown-{number}/infer", GOOD)
            yield request(f"/v2/models/sum/versions/unknown-{number}/infer", GOOD)
            yield request(f"/unknown-{number}", method="GET")
            yield request(f"/unknown-{number}", method="GET", key=f"unknown-{number}")

    assert pipelined(plane, flood()) == {b"401", b"404"}
    text = page(plane)
    assert len(text.splitlines()) < size + 50
    assert "unknown" not in text
    other = sample(plane, "tapster_requests_total", endpoint="other", code="4xx")
    assert other == before + 2 * count
    assert sample(plane, "tapster_refused_requests_total") == refused + count


def test_a_thousand_endpoints(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    names = [f"e{number:04}" for number in range(1000)]
    plane.plan(*(endpoint(name, package) for name in names), packages=(package,))
    plane.start()
    plane.applied()
    calls = (request(f"/v2/models/{name}/infer", GOOD) for name in names)
    assert pipelined(plane, calls, 20) == {b"200"}
    times = [math.inf]
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(
            lambda: [plane.call("POST", "/v2/models/e0000/infer", GOOD).status for _ in range(300)]
        )
        while not others.done() or (min(times) >= 0.2 and len(times) < 100):
            began = time.perf_counter()
            text = page(plane)
            times.append(time.perf_counter() - began)
        assert set(others.result()) == {200}
    assert min(times) < 0.2
    found = re.findall(r"^tapster_request_duration_seconds_count\{.*\} (\d+)$", text, re.MULTILINE)
    assert len(found) == 1000
    assert sum(map(int, found)) >= 1000


def test_places_are_forgotten_once_they_are_old(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    both = endpoint("sum", package), endpoint("gone", package, 7)
    plane.plan(*both, packages=(package,))
    plane.start()
    plane.applied()
    assert 'endpoint="gone",version="7",code="2xx"} 0' in page(plane)
    assert plane.call("POST", "/v2/models/gone/infer", GOOD).status == 200
    slots = Slots(plane.slots)
    number = slots.place("default", "gone", "7")
    changed = slots.region(0).place(number) + layout.CHANGED
    wait_for(lambda: slots.words[changed], "the change to be noticed")
    assert abs(slots.words[changed] - time.time()) < 30
    plane.plan(endpoint("sum", package), packages=(package,))
    plane.applied()
    assert 'endpoint="gone",version="7",code="2xx"} 1' in page(plane)
    slots.words[changed] -= 3601
    assert 'endpoint="gone"' not in page(plane)
    plane.plan(*both, packages=(package,))
    plane.applied()
    assert plane.call("POST", "/v2/models/gone/infer", GOOD).status == 200
    assert 'endpoint="gone",version="7",code="2xx"} 2' in page(plane)
    slots.close()


def test_any_worker_tells_of_all(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", package), packages=(package,))
    for index in (0, 1, 2):
        plane.start(index)
        plane.applied(index=index)
    plane.workers[2].kill()
    plane.workers[2].wait()
    plane.workers[1].kill()
    plane.workers[1].wait()
    plane.start(1)
    plane.applied(index=1)
    for _ in range(5):
        for worker in ("0", "1"):
            assert sample(plane, "tapster_plan_number", worker=worker) == 1
            assert sample(plane, "tapster_worker_resident_memory_bytes", worker=worker) > 10 << 20
            assert sample(plane, "tapster_worker_open_fds", worker=worker) > 5
            assert sample(plane, "tapster_worker_cpu_seconds_total", worker=worker) > 0
        assert sample(plane, "tapster_package_workers", state="ready") == 2
        assert sample(plane, "tapster_worker_restarts_total", worker="1") == 1
        assert sample(plane, "tapster_worker_restarts_total") == 1
    assert 'tapster_worker_threads{worker="2"}' not in page(plane)


def test_names_are_escaped(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    odd = 'a"b\\c%d'
    variant = Variant(model=odd, version=1, package=package.digest)
    plane.plan(EndpointPlan("e", "default", odd, (variant,)), packages=(package,))
    plane.start()
    plane.applied()
    assert plane.call("POST", "/v2/models/a%22b%5Cc%25d/infer", GOOD).status == 200
    assert sample(plane, "tapster_requests_total", endpoint=odd, code="2xx") == 1
    assert sample(plane, "tapster_model_info", endpoint=odd, model=odd) == 1
