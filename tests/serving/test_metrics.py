"""The metrics page: what Prometheus reads, and that no caller makes it grow."""

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import Plane
from tests.serving.rest.test_protocol import GOOD, INFER


def sample(plane: Plane, name: str, **labels: str) -> float:
    text = plane.call("GET", "/metrics").body.decode()
    return sum(
        found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


def test_calls_are_counted_and_timed(plane: Plane) -> None:
    names = {"endpoint": "sum", "tenant": "default"}
    requests = {**names, "code": "2xx"}
    before = {
        name: sample(plane, name, **names)
        for name in ("tapster_rows_total", "tapster_request_duration_seconds_count")
    }
    served = sample(plane, "tapster_requests_total", **requests)
    batches = sample(plane, "tapster_batch_size_rows_count")
    for _ in range(4):
        assert plane.call("POST", INFER, GOOD).status == 200
    assert sample(plane, "tapster_requests_total", **requests) == served + 4
    assert sample(plane, "tapster_batch_size_rows_count") == batches + 4
    for name, value in before.items():
        assert sample(plane, name, **names) == value + 4
    assert sample(plane, "tapster_model_info", endpoint="sum-two", version="2") == 1
    assert sample(plane, "tapster_package_workers", state="ready") == 4


def test_unknown_names_make_no_series(plane: Plane) -> None:
    size = len(plane.call("GET", "/metrics").body.splitlines())
    for number in range(300):
        assert plane.call("POST", f"/v2/models/unknown-{number}/infer", GOOD).status == 404
        assert plane.call("GET", f"/unknown-{number}", key=f"k{number}").status == 401
    page = plane.call("GET", "/metrics").body
    assert len(page.splitlines()) == size
    assert b"unknown" not in page
    assert sample(plane, "tapster_requests_total", endpoint="other", code="4xx") >= 300
