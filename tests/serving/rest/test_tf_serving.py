"""TensorFlow Serving v1: rows as values or objects, columns, labels, status, metadata."""

from typing import Any

import pytest

from tests.serving.conftest import Plane
from tests.serving.rest.test_open_inference import refused

SUM = "/v1/models/sum:predict"
MIXED = "/v1/models/mixed:predict"
QUOTED = '<b>"quoted"\'; 😀'
ROW: dict[str, Any] = {
    "size": 0.5, "city": "Turin", "member": True, "since": "1970-01-01", QUOTED: "",
}  # fmt: skip


def predictions(plane: Plane, path: str, body: Any) -> Any:
    answer = plane.call("POST", path, body)
    assert answer.status == 200, answer
    return answer.json()


def test_rows_as_values_and_as_objects(plane: Plane) -> None:
    wanted = {"predictions": [7.0, 16.0]}
    rows = [[1, 2, 3], [4, 5, 6]]
    assert predictions(plane, SUM, {"instances": rows}) == wanted
    objects = [dict(zip(("gamma", "beta", "alpha"), row[::-1], strict=True)) for row in rows]
    assert predictions(plane, SUM, {"instances": objects}) == wanted
    tensors = [{"numeric": row} for row in rows]
    assert predictions(plane, SUM, {"instances": tensors}) == wanted
    assert (
        predictions(plane, SUM, {"signature_name": "serving_default", "instances": rows}) == wanted
    )


def test_columns(plane: Plane) -> None:
    wanted = {"outputs": [7.0, 16.0]}
    assert predictions(plane, SUM, {"inputs": [[1, 2, 3], [4, 5, 6]]}) == wanted
    assert predictions(plane, SUM, {"inputs": {"numeric": [[1, 2, 3], [4, 5, 6]]}}) == wanted
    columns = {"alpha": [1, 4], "beta": [[2], [5]], "gamma": [3, 6]}
    assert predictions(plane, SUM, {"inputs": columns}) == wanted


def test_several_outputs_are_objects(plane: Plane) -> None:
    by_row = predictions(plane, MIXED, {"instances": [ROW]})["predictions"]
    values = [list(ROW.values())]
    assert predictions(plane, MIXED, {"instances": values})["predictions"] == by_row
    assert by_row[0]["prediction"] == "yes"
    assert len(by_row[0]["probabilities"]) == 2
    columns = {name: [value] for name, value in ROW.items()}
    by_column = predictions(plane, MIXED, {"inputs": columns})["outputs"]
    assert by_column == {name: [value] for name, value in by_row[0].items()}
    encoded = ROW | {"city": {"b64": "VHVyaW4="}}
    assert predictions(plane, MIXED, {"instances": [encoded]})["predictions"] == by_row


def test_missing_values_are_null_in_objects_only(plane: Plane) -> None:
    nothing = dict.fromkeys(ROW)
    answer = predictions(plane, MIXED, {"instances": [nothing, ROW]})["predictions"]
    assert answer[1]["prediction"] == "yes"
    raw = b'{"instances": [[NaN, 1, 2]]}'
    assert plane.call("POST", SUM, raw).body == b'{"predictions":[NaN]}'
    refused(plane.call("POST", SUM, {"instances": [[None, 1, 2]]}), "null")
    refused(
        plane.call("POST", SUM, {"inputs": {"alpha": [None], "beta": [1], "gamma": [1]}}), "null"
    )


def test_versions_and_labels(plane: Plane) -> None:
    body = {"instances": [[0, 0, 0]]}
    for path, bias in (("/versions/2", 2.0), ("/versions/1", 1.0), ("/labels/champion", 1.0)):
        answer = predictions(plane, f"/v1/models/sum-two{path}:predict", body)
        assert answer == {"predictions": [bias]}
    assert predictions(plane, "/v1/models/sum-two:predict", body)["predictions"][0] in {1.0, 2.0}
    answer = plane.call("POST", "/v1/models/sum-two/labels/nobody:predict", body)
    refused(answer, "label 'nobody'", 404)


def test_status_and_metadata(plane: Plane) -> None:
    status = plane.call("GET", "/v1/models/sum-two").json()
    assert [each["version"] for each in status["model_version_status"]] == ["1", "2"]
    assert status["model_version_status"][0] == {
        "version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""},
    }  # fmt: skip
    one = plane.call("GET", "/v1/models/sum-two/versions/2").json()
    assert [each["version"] for each in one["model_version_status"]] == ["2"]
    metadata = plane.call("GET", "/v1/models/mixed/metadata").json()
    assert metadata["model_spec"]["name"] == "mixed"
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["text"]["dtype"] == "DT_STRING"
    listed = plane.call("GET", "/v1/models").json()
    assert "mixed" in listed["models"]
    assert "theirs" not in listed["models"]
    assert [each["id"] for each in listed["data"]] == listed["models"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either"),
        ({"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, "either"),
        ({"instances": []}, "no rows"),
        ({"instances": 5}, "expected `array"),
        ({"instances": [[1, 2]]}, "must have shape [n, 3]"),
        ({"instances": [[1, 2, 3], [1, 2]]}, "nested otherwise"),
        ({"instances": [["1", 2, 3]]}, "number"),
        ({"instances": [[1, 2, 3], {"alpha": 1}]}, "some rows are objects"),
        ({"instances": [{"alpha": 1, "beta": 2}]}, "gamma"),
        ({"instances": [{"alpha": 1, "beta": 2, "gama": 3}]}, "gamma"),
        ({"instances": [{"alpha": 1, "beta": 2, "gamma": "x"}]}, "gamma"),
        ({"instances": [{"alpha": {"b64": "!"}, "beta": 2, "gamma": 1}]}, "base64"),
        ({"inputs": {"numeric": [[1, 2, 3]], "extra": [1]}}, "extra"),
        ({"instances": [[1, 2, 3]], "signature_name": "other"}, "no signature 'other'"),
        ({"instances": [[1, 2, 3]], "surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_wrong(plane: Plane, body: Any, words: str) -> None:
    refused(plane.call("POST", SUM, body), words)


def test_duplicate_keys_are_refused(plane: Plane) -> None:
    refused(plane.call("POST", SUM, b'{"instances":[[1,2,3]],"instances":[[1,2,3]]}'), "twice")
    twice = b'{"instances":[{"alpha":1,"beta":2,"gamma":3,"alpha":4}]}'
    refused(plane.call("POST", SUM, twice), "'alpha' is there twice")


def test_other_verbs_are_refused(plane: Plane) -> None:
    refused(plane.call("POST", "/v1/models/sum:classify", {"examples": []}), ":predict")
