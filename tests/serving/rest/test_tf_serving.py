"""TensorFlow Serving v1: rows as values or objects, columns, labels, status, metadata."""

import json
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


CLASSIFY = "/v1/models/mixed:classify"
REGRESS = "/v1/models/sum:regress"


def test_classification_of_examples(plane: Plane) -> None:
    other = ROW | {"city": "Rome", "member": False}
    scores = [
        row["probabilities"]
        for row in predictions(plane, MIXED, {"instances": [ROW, other]})["predictions"]
    ]
    wanted = {"results": [[["no", no], ["yes", yes]] for no, yes in scores]}
    listed = {name: [value] for name, value in ROW.items()}
    shared = {name: value for name, value in ROW.items() if name != "city"}
    for body in (
        {"examples": [ROW, other]},
        {"examples": [listed, other], "signature_name": "classification"},
        {"examples": [ROW, other], "signature_name": "serving_default"},
    ):
        assert predictions(plane, CLASSIFY, body) == wanted
    by_context = {"context": shared, "examples": [{"city": {"b64": "VHVyaW4="}}]}
    assert predictions(plane, CLASSIFY, by_context) == {"results": wanted["results"][:1]}
    versioned = "/v1/models/mixed/versions/3:classify"
    assert predictions(plane, versioned, {"examples": [other]}) == {
        "results": wanted["results"][1:]
    }


def test_regression_of_examples(plane: Plane) -> None:
    examples = [{"alpha": 1, "gamma": [3]}, {"alpha": 4, "gamma": 6, "beta": 5}]
    body = {"context": {"beta": 2}, "examples": examples, "signature_name": "regression"}
    assert predictions(plane, REGRESS, body) == {"results": [7.0, 16.0]}
    nothing = b'{"examples":[{"alpha":NaN,"beta":1,"gamma":2}]}'
    assert plane.call("POST", REGRESS, nothing).body == b'{"results":[NaN]}'


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (CLASSIFY, {"examples": []}, "no examples"),
        (CLASSIFY, {"examples": [1]}, "expected `object`"),
        (CLASSIFY, {"instances": [ROW]}, "instances"),
        (CLASSIFY, {"examples": [ROW], "signature_name": "regression"}, "no signature"),
        (CLASSIFY, {"examples": [ROW | {"city": 5}]}, "city"),
        (CLASSIFY, {"examples": [ROW | {"size": [1, 2]}]}, "size"),
        (CLASSIFY, {"examples": [{}]}, "lacks"),
        (REGRESS, {"examples": [{"alpha": 1, "beta": 2}]}, "gamma"),
        (REGRESS, {"examples": [{"alpha": 1, "beta": 2, "gamma": 3}], "context": 5}, "context"),
        ("/v1/models/mixed:regress", {"examples": [ROW]}, "use :classify"),
        ("/v1/models/sum:classify", {"examples": [{"alpha": 1}]}, "use :regress"),
        ("/v1/models/words:regress", {"examples": [{"x_BYTES": "a"}]}, "does not give numbers"),
        (SUM, {"instances": [[1, 2, 3]], "signature_name": "classification"}, "no signature"),
    ],
)  # fmt: skip
def test_wrong_examples_are_refused(plane: Plane, path: str, body: Any, words: str) -> None:
    refused(plane.call("POST", path, body), words)
    if "examples" in body:
        twice = b'{"examples":[{"alpha":1,"alpha":1,"beta":2,"gamma":3}]}'
        refused(plane.call("POST", REGRESS, twice), "twice")


def test_bytes_in_base64(plane: Plane) -> None:
    pixels = "/v1/models/pixels:predict"
    assert predictions(plane, pixels, {"instances": [{"b64": "AP8C"}, {"b64": "AQID"}]}) == {
        "predictions": [[0, 255, 2], [1, 2, 3]]
    }
    named = {"instances": [{"x_UINT8": {"b64": "AP8C"}}]}
    assert predictions(plane, pixels, named) == {"predictions": [[0, 255, 2]]}
    words = "/v1/models/words:predict"
    assert predictions(plane, words, {"inputs": {"x_BYTES": [[{"b64": "bmHDr3Zl"}]]}}) == {
        "outputs": [["naïve"]]
    }
    refused(plane.call("POST", words, {"instances": [[{"b64": "/w=="}]]}), "not base64 of UTF-8")


def test_large_rows_are_like_small_ones(plane: Plane) -> None:
    rows = [[number % 7 / 4, 1, number % 5] for number in range(90_000)]
    wanted = [sum(row) + 1 for row in rows]
    body = json.dumps({"instances": rows}).encode()
    assert len(body) > 1 << 20
    assert predictions(plane, SUM, body) == {"predictions": wanted}
    compact = json.dumps({"signature_name": "predict", "inputs": rows}, separators=(",", ":"))
    assert predictions(plane, SUM, compact.encode()) == {"outputs": wanted}
    odd = plane.call("POST", SUM, body.replace(b"0.25", b"NaN", 1))
    assert odd.body.startswith(b'{"predictions":[2.0,NaN,')
    for bad, words in (
        (b"null", "null"), (b'"1"', "number"), (b"1e999", "range"), (b"x", "JSON"),
        (b"1, 1", "nested otherwise"), (b"[1]", "lists"),
    ):  # fmt: skip
        refused(plane.call("POST", SUM, body.replace(b"0.25", bad, 1)), words)
    twice = body[:-1] + b', "instances": []}'
    refused(plane.call("POST", SUM, twice), "twice")
