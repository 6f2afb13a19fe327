"""The plain wire: rows in, predictions out; errors with four parts."""

import json
from typing import Any

import pytest

from tests.serving.conftest import Plane
from tests.serving.rest.test_tf_serving import QUOTED, ROW

MIXED = "/v1/endpoints/mixed/predict"
SUM = "/v1/endpoints/sum/predict"


def test_classifiers_give_labels_and_probabilities(plane: Plane) -> None:
    answer = plane.call("POST", MIXED, {"rows": [ROW, ROW | {"city": None, "member": False}]})
    assert answer.status == 200
    first, second = answer.json()["predictions"]
    assert list(first) == ["prediction", "probabilities"]
    assert (first["prediction"], second["prediction"]) == ("yes", "no")
    assert list(first["probabilities"]) == ["no", "yes"]
    assert sum(first["probabilities"].values()) == pytest.approx(1)


def test_regressors_give_numbers(plane: Plane) -> None:
    answer = plane.call("POST", SUM, {"rows": [{"alpha": 1, "beta": 2, "gamma": 3}]})
    assert answer.json() == {"predictions": [{"prediction": 7.0}]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [1]}, "rows[0]"),
        ({"rows": [[1, 2, 3]]}, "rows[0]"),
        ({"rows": [{"alpha": 1, "beta": 2}]}, "gamma"),
        ({"rows": [{"alpha": 1, "beta": 2, "gamma": 3, "delta": 4}]}, "delta"),
        ({"rows": [{"alpha": 1, "beta": 2, "gamma": "three"}]}, "rows[0].gamma"),
        ({"rows": [{"alpha": 1, "beta": 2, "gamma": [3]}]}, "rows[0]"),
        ({"rows": [{"alpha": 1, "beta": 2, "gamma": 1e300}]}, "rows[0].gamma"),
        ({"row": []}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_errors_have_four_parts(plane: Plane, body: Any, field: str) -> None:
    answer = plane.call("POST", SUM, body)
    assert answer.status == 400
    error = answer.json()["error"]
    assert list(error) == ["code", "message", "hint", "field"]
    assert error["code"] == "invalid"
    assert error["field"].startswith(field)


def test_unusual_names_are_inert(plane: Plane) -> None:
    answer = plane.call("POST", MIXED, {"rows": [ROW | {QUOTED: "'; DROP TABLE x; --"}]})
    assert answer.json()["predictions"][0]["prediction"] == "yes"


def test_a_repeated_column_is_refused(plane: Plane) -> None:
    answer = plane.call("POST", SUM, b'{"rows":[{"alpha":1,"alpha":1,"beta":2,"gamma":3}]}')
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "the key 'alpha' is there twice"


def test_rows_keep_their_order(plane: Plane) -> None:
    rows = [{"alpha": number, "beta": 0, "gamma": 0} for number in range(3000)]
    answer = plane.call("POST", SUM, {"rows": rows}).json()
    assert [p["prediction"] for p in answer["predictions"]] == [n + 1.0 for n in range(3000)]


def test_large_calls_are_like_small_ones(plane: Plane) -> None:
    rows = [{"alpha": number % 7 / 4, "beta": 1, "gamma": number % 5} for number in range(40_000)]
    wanted = [{"prediction": sum(row.values()) + 1} for row in rows]
    body = json.dumps({"rows": rows}).encode()
    assert len(body) > 1 << 20
    assert plane.call("POST", SUM, body).json() == {"predictions": wanted}
    last = body.rindex(b'"gamma": 4')
    for bad, field in (
        (b'"gamma": "4"', "rows[39999].gamma"),
        (b'"gamma": [4]', "rows[39999][...]"),
        (b'"gamma": 4, "gamma": 4', "gamma"),
        (b'"gama": 4', "gamma"),
        (b'"gamma": 4, "x": "},{"', "x"),
        (b'"gamma": 4 x', ""),
        (b'"gamma": 4}{', ""),
    ):
        answer = plane.call("POST", SUM, body[:last] + bad + body[last + len(b'"gamma": 4') :])
        assert answer.status == 400
        assert answer.json()["error"]["field"] == field, answer


def test_braces_in_texts_are_no_ends_of_rows(plane: Plane) -> None:
    rows = [ROW | {QUOTED: '},{"x":' * 30}, ROW | {"city": "Rome"}] * 3000
    body = json.dumps({"rows": rows}).encode()
    assert len(body) > 1 << 20
    answer = plane.call("POST", MIXED, body)
    assert answer.status == 200
    assert [p["prediction"] for p in answer.json()["predictions"]] == ["yes", "yes"] * 3000
