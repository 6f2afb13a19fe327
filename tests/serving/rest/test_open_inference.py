"""Open Inference v2: what clients send and read, and everything that is refused with a 400."""

import json
from typing import Any

import pytest

from tests.serving.conftest import Answer, Plane

INFER = "/v2/models/sum/infer"


def numeric(data: Any, shape: Any = (1, 3), **more: Any) -> dict[str, Any]:
    tensor = {"name": "numeric", "shape": shape, "datatype": "FP32", "data": data, **more}
    return {"inputs": [tensor]}


def refused(answer: Answer, words: str = "", status: int = 400) -> str:
    """The error's text, of an answer that clients of this wire can read."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    text = document["error"]
    assert isinstance(text, str)
    assert words in text
    for secret in ("/tmp", "Traceback", "site-packages", ".py"):
        assert secret not in text
    return text


def test_a_call_is_answered_with_its_id(plane: Plane) -> None:
    body = numeric([1, 2, 3.5, 4, 5, 6], [2, 3]) | {"id": "naïve-😀"}
    answer = plane.call("POST", INFER, body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "sum",
        "model_version": "1",
        "id": "naïve-😀",
        "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [2], "data": [7.5, 16.0]}],
    }


def test_nothing_may_be_said_by_null(plane: Plane) -> None:
    body = numeric([1, 2, 3], parameters=None) | dict.fromkeys(("id", "outputs", "parameters"))
    assert plane.call("POST", INFER, body).json() == {
        "model_name": "sum",
        "model_version": "1",
        "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [1], "data": [7.0]}],
    }


@pytest.mark.parametrize("rows", [1, 500])
def test_the_largest_number_may_be_spelled_shortly(plane: Plane, rows: int) -> None:
    """As Go, Java and Rust spell it, by every wire and in any number."""
    largest = 3.4028235e38
    row = [largest, -largest, 0]
    named = {"alpha": largest, "beta": -largest, "gamma": 0}
    bodies: list[tuple[str, Any]] = [
        (INFER, numeric(row * rows, [rows, 3])),
        (INFER, numeric([row] * rows, [rows, 3])),
        ("/v1/models/sum:predict", {"instances": [row] * rows}),
        ("/v1/endpoints/sum/predict", {"rows": [named] * rows}),
    ]
    for path, body in bodies:
        answer = plane.call("POST", path, body)
        assert answer.status == 200, (path, answer)
    table = "alpha,beta,gamma\n" + "3.4028235e38,-3.4028235e38,0\n" * rows
    path = "/v1/endpoints/sum/predict"
    assert plane.call("POST", path, table.encode(), Content_Type="text/csv").status == 200
    refused(plane.call("POST", INFER, numeric([[3.4028236e38, 0, 0]])), "cannot hold")


def test_data_may_be_nested(plane: Plane) -> None:
    answer = plane.call("POST", INFER, numeric([[1, 2, 3], [4, 5, 6]], [2, 3]))
    assert answer.json()["outputs"][0]["data"] == [7.0, 16.0]


@pytest.mark.parametrize(
    "kind", [None, "application/json; charset=utf-8", "application/octet-stream"]
)
def test_content_types_of_real_clients(plane: Plane, kind: str | None) -> None:
    headers = {} if kind is None else {"Content_Type": kind}
    assert plane.call("POST", INFER, numeric([1, 2, 3]), **headers).status == 200


def test_versions_and_weights(plane: Plane) -> None:
    def biased(path: str) -> Any:
        return plane.call("POST", f"/v2/models/sum-two{path}/infer", numeric([0, 0, 0])).json()

    drawn = [biased("") for _ in range(100)]
    assert all(a["outputs"][0]["data"] == [float(a["model_version"])] for a in drawn)
    assert 5 < sum(a["model_version"] == "2" for a in drawn) <= 100
    assert biased("/versions/1")["outputs"][0]["data"] == [1.0]
    assert biased("/versions/1")["model_version"] == "1"
    refused(
        plane.call("POST", "/v2/models/sum-two/versions/3/infer", numeric([0, 0, 0])),
        "does not serve version '3'; it serves: 1, 2",
        404,
    )


def test_mixed_inputs_by_tensor_and_by_column(plane: Plane) -> None:
    by_tensor = {
        "inputs": [
            {"name": "numeric", "shape": [2, 3], "datatype": "FP32", "data": [0.5, 1, 0, 0, 0, 0]},
            {"name": "text", "shape": [2, 2], "datatype": "BYTES", "data": ["Turin", "", "x", "y"]},
        ]
    }
    by_column = {
        "inputs": [
            {"name": "size", "shape": [2], "datatype": "FP64", "data": [0.5, 0]},
            {"name": "city", "shape": [2, 1], "datatype": "BYTES", "data": [["Turin"], ["x"]]},
            {"name": "member", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            {"name": "since", "shape": [2], "datatype": "BYTES", "data": ["1970-01-01"] * 2},
            {"name": '<b>"quoted"\'; 😀', "shape": [2], "datatype": "BYTES", "data": ["", "y"]},
        ]
    }
    answers = [
        plane.call("POST", "/v2/models/mixed/infer", b).json() for b in (by_tensor, by_column)
    ]
    assert answers[0] == answers[1]
    labels, scores = answers[0]["outputs"]
    assert labels == {
        "name": "prediction",
        "datatype": "BYTES",
        "shape": [2],
        "data": ["yes", "no"],
    }
    assert scores["shape"] == [2, 2]
    assert scores["data"][1] > 0.8 > scores["data"][3]


def test_outputs_can_be_chosen(plane: Plane) -> None:
    body = {
        "inputs": [
            {"name": "text", "shape": [1, 2], "datatype": "BYTES", "data": ["Turin", "x"]},
            {"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [0.5, 1, 0]},
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    answer = plane.call("POST", "/v2/models/mixed/infer", body).json()
    assert [output["name"] for output in answer["outputs"]] == ["probabilities"]
    body["outputs"] = [{"name": "nothing"}]
    refused(plane.call("POST", "/v2/models/mixed/infer", body), "no output 'nothing'")


def test_whole_numbers_are_exact(plane: Plane) -> None:
    big = 2**63 - 1
    body = {
        "inputs": [
            {"name": "i8", "shape": [1], "datatype": "INT8", "data": [-128]},
            {"name": "i64", "shape": [1, 2], "datatype": "INT64", "data": [big, -big - 1]},
            {"name": "flag", "shape": [1], "datatype": "BOOL", "data": [True]},
        ]
    }
    answer = plane.call("POST", "/v2/models/typed/infer", body)
    assert [output["data"] for output in answer.json()["outputs"]] == [
        [-128],
        [big, -big - 1],
        [True],
    ]
    for name, value, words in (
        ("i8", 300, "INT8 cannot hold"),
        ("i8", 1.5, "whole numbers"),
        ("i8", True, "whole numbers"),
        ("i64", 2**63, "INT64 cannot hold"),
        ("flag", 1, "true or false"),
        ("flag", "true", "true or false"),
    ):
        bad: Any = json.loads(json.dumps(body))
        for tensor in bad["inputs"]:
            if tensor["name"] == name:
                tensor["data"][0] = value
        refused(plane.call("POST", "/v2/models/typed/infer", bad), words)


def test_not_a_number_goes_both_ways(plane: Plane) -> None:
    body = b'{"inputs":[{"name":"numeric","shape":[2,3],"datatype":"FP32","data":[NaN,1,2,1,1,1]}]}'
    answer = plane.call("POST", INFER, body)
    assert answer.status == 200
    assert b'"data":[NaN,4.0]' in answer.body
    infinite = plane.call("POST", INFER, body.replace(b"NaN", b"-Infinity"))
    assert b'"data":[-Infinity,4.0]' in infinite.body
    refused(plane.call("POST", INFER, body.replace(b"NaN", b"1e999")), "out of range")
    refused(plane.call("POST", INFER, body.replace(b"NaN", b"1e39")), "FP32 cannot hold")
    refused(plane.call("POST", INFER, body.replace(b"NaN", b"null")), "null")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (numeric([1, 2, 3], [16, 2**60 + 2]), "no data could fill"),
        (numeric([1, 2, 3], [4, 2**60 + 2]), "no data could fill"),
        (numeric([], [0, 2**70]), "no data could fill"),
        (numeric([], [0, 2**40, 2**40]), "no data could fill"),
        (numeric([1, 2, 3], [-1, 3]), "negative"),
        (numeric([1, 2, 3], [1.0, 3]), "expected `int`"),
        (numeric([1, 2, 3], ["1", 3]), "expected `int`"),
        (numeric([1, 2, 3], [None, 3]), "expected `int`"),
        (numeric([1, 2, 3], [True, 3]), "expected `int`"),
        (numeric([1, 2], [1, 3]), "has 2 values"),
        (numeric([1, 2, 3], [1] * 10_000), "10000 dimensions"),
        (numeric([], [0, 3]), "no rows"),
        (numeric([1, 2, 3], datatype="fp32"), "datatype 'fp32'"),
        (numeric([1, 2, 3], datatype="OBJECT"), "datatype 'OBJECT'"),
        (numeric([1, 2, 3], datatype="BF16"), "binary data"),
        (numeric([1, 2, 3], datatype="FP64"), "must be FP32"),
        (numeric(["1", "2", "3"]), "strings"),
        (numeric([1, True, 3]), "true or false"),
        (numeric([1, None, 3]), "missing number is NaN"),
        (numeric([1, {"a": 1}, 3]), "numbers"),
        (numeric([[1, 2], [3]], [1, 3]), "nested otherwise"),
        (numeric([1, 2, 3, 4], [1, 4]), "must have shape [n, 3], not [1, 4]"),
        (numeric([1, 2, 3], name="Numeric"), "'Numeric'"),
        ({"inputs": []}, "input 'numeric' is missing"),
        ({"inputs": numeric([1, 2, 3])["inputs"] * 2}, "same name"),
        ({"inputs": 5}, "expected `array`"),
        ({}, "missing required field"),
        ([], "expected `object`"),
        (numeric([1, 2, 3]) | {"id": "a\nb"}, "control character"),
        (numeric([1, 2, 3]) | {"id": "x" * 5000}, "longer"),
        (numeric([1, 2, 3]) | {"id": 7}, "expected `str"),
        (numeric([1, 2, 3]) | {"outputs": [{"name": "prediction"}] * 2}, "twice"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_wrong(plane: Plane, body: Any, words: str) -> None:
    refused(plane.call("POST", INFER, body), words)


GOOD = b'{"inputs":[{"name":"numeric","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'


def test_large_calls_are_like_small_ones(plane: Plane) -> None:
    rows = 70_000
    values = [number % 97 / 8 for number in range(3 * rows)]
    body = json.dumps(numeric(values, [rows, 3]))
    assert len(body) > 1 << 20
    answer = plane.call("POST", INFER, body.encode())
    assert answer.status == 200
    sums = [sum(values[start : start + 3]) + 1 for start in range(0, 3 * rows, 3)]
    assert answer.json()["outputs"][0]["data"] == sums
    assert plane.call("POST", INFER, body.replace(", ", " ,\n ").encode()).body == answer.body
    nested = [values[start : start + 3] for start in range(0, 3 * rows, 3)]
    again = plane.call("POST", INFER, numeric(nested, [rows, 3]))
    assert again.body == answer.body
    for bad, words in (("null", "null"), ('"1"', "strings"), ("1e999", "range"), ("x", "JSON")):
        refused(plane.call("POST", INFER, body.replace("0.125", bad, 1).encode()), words)
    refused(plane.call("POST", INFER, body.replace("0.125", "0.125, 1", 1).encode()), "values")


def test_what_a_model_is(plane: Plane) -> None:
    assert plane.call("GET", "/v2").json()["name"] == "tapster"
    described = plane.call("GET", "/v2/models/mixed").json()
    assert described["versions"] == ["3"]
    assert described["inputs"] == [
        {"name": "numeric", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "text", "datatype": "BYTES", "shape": [-1, 2]},
    ]
    assert described["parameters"]["classes"] == ["no", "yes"]
    assert [c["kind"] for c in described["parameters"]["columns"]] == [
        "number", "text", "boolean", "date", "text",
    ]  # fmt: skip
    assert plane.call("GET", "/v2/models/sum-two/versions/2").json()["versions"] == ["1", "2"]
    assert plane.call("GET", "/v2/models/sum/ready").json()["ready"] is True
    refused(plane.call("GET", "/v2/models/nothing"), "no endpoint 'nothing'", 404)
    refused(plane.call("GET", "/v2/models/nothing/ready"), "no endpoint 'nothing'", 404)


def test_health_is_public_and_has_the_bodies_that_clients_want(plane: Plane) -> None:
    live = plane.call("GET", "/v2/health/live", key=None)
    ready = plane.call("GET", "/v2/health/ready", key=None)
    assert (live.status, live.body) == (200, b'{"live":true}')
    assert (ready.status, ready.body) == (200, b'{"ready":true}')


def test_many_rows_by_column(plane: Plane) -> None:
    def columns(rows: int) -> dict[str, Any]:
        values = {"alpha": list(range(rows)), "beta": [0.5] * rows, "gamma": [-1] * rows}
        tensors = [
            {"name": name, "shape": [rows], "datatype": "FP64", "data": data}
            for name, data in values.items()
        ]
        return {"inputs": tensors}

    answer = plane.call("POST", INFER, columns(10_000)).json()
    assert answer["outputs"][0]["data"] == [n + 0.5 for n in range(10_000)]
    for row in (0, 4095, 4096, 9999):
        bad = columns(10_000)
        bad["inputs"][0]["data"][row] = 1e300
        refused(plane.call("POST", INFER, bad), f"row {row}, column 'alpha'")
    uneven = columns(10_000)
    uneven["inputs"][1] |= {"shape": [9_999], "data": [1] * 9_999}
    refused(plane.call("POST", INFER, uneven), "column 'beta' has 9999 values")


@pytest.mark.parametrize("timeout", [2**64, 10**400])
def test_a_timeout_may_be_as_long_as_it_likes(plane: Plane, timeout: int) -> None:
    answer = plane.call("POST", INFER, {**numeric([1, 2, 3]), "parameters": {"timeout": timeout}})
    assert answer.status == 200, answer
