"""What is said of models: metadata, state, statistics, the repository; who may ask for it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tapster.contract.plan import EndpointPlan, Variant
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, grant, wait_for
from tests.serving.rest.test_open_inference import INFER, numeric, refused
from tests.serving.rest.test_protocol import GOOD


def test_each_family_of_clients_finds_its_own_fields(plane: Plane) -> None:
    listed = plane.call("GET", "/v1/models").json()
    assert "mixed" in listed["models"]
    assert "theirs" not in listed["models"]
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == listed["models"]
    assert plane.call("GET", "/openai/v1/models").json() == listed
    card = plane.call("GET", "/openai/v1/models/mixed").json()
    assert card == plane.call("GET", "/v1/models/mixed").json()
    openai = ("id", "object", "created", "owned_by")
    assert [card[name] for name in openai] == ["mixed", "model", 0, "default"]
    assert (card["name"], card["ready"]) == ("mixed", True)
    assert [each["version"] for each in card["model_version_status"]] == ["3"]


def test_state_of_versions(plane: Plane) -> None:
    status = plane.call("GET", "/v1/models/sum-two").json()
    assert status["model_version_status"] == [
        {
            "version": version,
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        for version in ("1", "2")
    ]
    for path, version in (("versions/2", "2"), ("labels/champion", "1")):
        one = plane.call("GET", f"/v1/models/sum-two/{path}").json()
        assert [each["version"] for each in one["model_version_status"]] == [version]
    refused(plane.call("GET", "/v1/models/sum-two/versions/9"), "version '9'", 404)
    refused(plane.call("GET", "/v1/models/nothing"), "no endpoint 'nothing'", 404)


def test_metadata_names_the_signatures_that_fit(plane: Plane) -> None:
    def signatures(name: str) -> Any:
        found = plane.call("GET", f"/v1/models/{name}/metadata").json()
        assert found["model_spec"]["name"] == name
        return found["metadata"]["signature_def"]["signature_def"]

    mixed = signatures("mixed")
    assert list(mixed) == ["serving_default", "predict", "classification"]
    assert mixed["serving_default"]["inputs"]["text"]["dtype"] == "DT_STRING"
    assert mixed["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert mixed["classification"]["method_name"] == "tensorflow/serving/classify"
    assert list(signatures("sum")) == ["serving_default", "predict", "regression"]
    assert list(signatures("words")) == ["serving_default", "predict"]


def test_statistics_count_rows_batches_and_errors(plane: Plane) -> None:
    def counted(path: str = "/v2/models/sum-two/versions/1/stats") -> Any:
        (found,) = plane.call("GET", path).json()["model_stats"]
        return found

    before = counted()
    path = "/v2/models/sum-two/versions/1/infer"
    assert plane.call("POST", path, numeric([1, 2, 3, 4, 5, 6], [2, 3])).status == 200
    assert plane.call("POST", path, b"{").status == 400
    after = counted()
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    assert (after["name"], after["version"]) == ("sum-two", "1")
    wait_for(lambda: counted()["last_inference"] > 1.7e12, "the time of the last inference")
    for kind, count in (("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1)):
        now, then = after["inference_stats"][kind], before["inference_stats"][kind]
        assert now["count"] - then["count"] == count
        assert (now["ns"] > then["ns"]) is (kind != "fail")
    both = plane.call("GET", "/v2/models/sum-two/stats").json()["model_stats"]
    assert [each["version"] for each in both] == ["1", "2"]
    everything = plane.call("GET", "/v2/models/stats").json()["model_stats"]
    assert {"sum", "mixed"} < {each["name"] for each in everything}
    assert "theirs" not in {each["name"] for each in everything}


def test_the_index_shows_what_a_caller_may_ask(plane: Plane) -> None:
    for body in (None, {}, {"ready": True}):
        lines = plane.call("POST", "/v2/repository/index", body, key="caller").json()
        assert {"name": "mixed", "version": "3", "state": "READY", "reason": ""} in lines
        assert "theirs" not in {line["name"] for line in lines}
    refused(plane.call("POST", "/v2/repository/index", {"ready": 1}), "expected `bool`")
    extensions = plane.call("GET", "/v2").json()["extensions"]
    assert extensions == ["binary_tensor_data", "model_repository", "statistics"]


@pytest.fixture
def repository(new_plane: Callable[..., Plane]) -> Plane:
    plane = new_plane()
    good, bad = packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0, spoil=True)
    plane.plan(endpoint("sum", good), packages=(good,))
    plane.start()
    plane.applied()
    variants = tuple(
        Variant("made", number, package.digest, weight)
        for number, package, weight in ((1, good, 1.0), (2, bad, 0.0))
    )
    plane.plan(
        EndpointPlan("ep-default-sum", "default", "sum", variants),
        packages=(good, bad),
        keys=(grant("tap_test-key"), grant("caller", "predict"), grant("theirs", tenant="other")),
    )
    plane.applied()
    return plane


def test_a_version_that_failed_to_load_says_why(repository: Plane) -> None:
    first, second = repository.call("GET", "/v1/models/sum").json()["model_version_status"]
    assert (first["version"], first["state"]) == ("1", "AVAILABLE")
    assert (second["version"], second["state"]) == ("2", "END")
    assert second["status"]["error_code"] == "FAILED_PRECONDITION"
    assert "recorded answers" in second["status"]["error_message"]
    one = repository.call("GET", "/v1/models/sum/versions/2").json()["model_version_status"]
    assert one == [second]
    lines = repository.call("POST", "/v2/repository/index").json()
    assert [(line["version"], line["state"]) for line in lines] == [
        ("1", "READY"),
        ("2", "UNAVAILABLE"),
    ]
    ready = repository.call("POST", "/v2/repository/index", {"ready": True}).json()
    assert ready == lines[:1]


def test_a_tenant_unloads_nothing_of_another(new_plane: Callable[..., Plane]) -> None:
    """Not even when both serve the same package."""
    plane = new_plane()
    made = packages.regressor(plane.home, 1.0)
    both = (endpoint("sum", made), endpoint("sum", made, tenant="other"))
    keys = (grant("tap_test-key"), grant("theirs", tenant="other"))
    plane.plan(*both, packages=(made,), keys=keys)
    plane.start()
    plane.applied()
    unload = "/v2/repository/models/sum/unload"
    assert plane.call("POST", unload, key="theirs").status == 200
    plane.plan(*both, packages=(made,), keys=keys)
    assert [package.state for package in plane.applied().packages] == ["ready"]
    plane.plan(endpoint("sum", made), packages=(made,))
    plane.applied()
    assert plane.call("POST", unload).status == 200
    wait_for(lambda: [one.state for one in plane.applied().packages] == ["cold"], "it to leave")


def test_models_are_loaded_and_unloaded_by_those_who_may(repository: Plane) -> None:
    load, unload = (f"/v2/repository/models/sum/{verb}" for verb in ("load", "unload"))
    wanted = repository.call("POST", INFER, GOOD).json()["outputs"]
    for _ in range(2):
        for path, body in ((unload, {"parameters": {"unload_dependents": True}}), (load, None)):
            answer = repository.call("POST", path, body)
            assert (answer.status, answer.body) == (200, b"{}")
            assert repository.call("POST", INFER, GOOD).json()["outputs"] == wanted
    refused(repository.call("POST", load, key="caller"), "right", 403)
    refused(repository.call("POST", load, key="theirs"), "no endpoint", 404)
    refused(repository.call("POST", "/v2/repository/models/x/load"), "no endpoint", 404)
    refused(repository.call("POST", load, b"["))
    for odd in (5, True, "x", [["x"]]):
        refused(repository.call("POST", load, {"parameters": odd}), "parameters")
    config = {"parameters": {"config": json.dumps({"backend": "python"}), "file:1/model.py": "x"}}
    refused(repository.call("POST", load, config), "does not change what a model is")
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert repository.call(method, unload).status == 405
