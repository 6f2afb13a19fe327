"""The plain wire: rows in, predictions out; errors with four parts."""

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
