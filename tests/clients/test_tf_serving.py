"""TensorFlow Serving: a client of others over gRPC, REST requests as its documents show them."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import INPUT, VALUES, Client, Served

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(client: Client) -> Found:
    return client("min-tfs-client", "tf_serving_grpc")


@pytest.fixture
def rest(served: Served) -> Iterator[httpx.Client]:
    server = served.server
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"{server.rest_url}/v1", headers=headers, timeout=30) as http:
        yield http


def test_grpc_predicts(found: Found, served: Served) -> None:
    served.check(found["scores"])


def test_grpc_tells_of_versions_and_signatures(found: Found) -> None:
    assert found["status"] == [{"version": 1, "state": "AVAILABLE", "error": 0}]
    assert found["signature"]["serving_default"] == {
        "method": "tensorflow/serving/predict",
        "inputs": {INPUT: [-1, 30]},
        "outputs": ["prediction", "probabilities"],
    }


def test_grpc_says_why_it_refuses(found: Found) -> None:
    said = found["refused"]
    assert {name: status for name, (status, _) in said.items()} == {
        "key": "UNAUTHENTICATED",
        "ghost": "NOT_FOUND",
        "version": "NOT_FOUND",
        "shape": "INVALID_ARGUMENT",
        "status": "NOT_FOUND",
    }


@pytest.mark.parametrize("place", ["", "/versions/1", "/labels/champion"])
def test_rows_are_answered_with_rows(rest: httpx.Client, served: Served, place: str) -> None:
    # The only input needs no name; several outputs make each prediction an object.
    body = {"signature_name": "serving_default", "instances": served.rows}
    answer = rest.post(f"/models/cancer{place}:predict", json=body)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"predictions"}
    predictions = answer.json()["predictions"]
    served.check({
        place: {
            name: [one[name] for one in predictions] for name in ("prediction", "probabilities")
        }
    })  # fmt: skip


def test_columns_are_answered_with_columns(rest: httpx.Client, served: Served) -> None:
    for inputs in (served.rows, {INPUT: served.rows}):
        answer = rest.post("/models/cancer:predict", json={"inputs": inputs})
        assert set(answer.json()) == {"outputs"}
        served.check({"columns": answer.json()["outputs"]})


def test_rows_of_several_inputs_are_objects(rest: httpx.Client) -> None:
    columns = {name.lower(): values for name, values in VALUES.items()}
    rows = [{name: values[row] for name, values in columns.items()} for row in range(2)]
    answer = rest.post("/models/typed:predict", json={"instances": rows})
    assert answer.status_code == 200, answer.text
    wanted = [{f"{name}_out": values[row] for name, values in columns.items()} for row in range(2)]
    assert answer.json()["predictions"] == wanted


def test_examples_are_classified(rest: httpx.Client, served: Served) -> None:
    told = rest.get(f"{served.server.rest_url}/v2/models/cancer").json()["parameters"]
    names = [column["name"] for column in told["columns"]]
    examples = [dict(zip(names, row, strict=True)) for row in served.rows]
    answer = rest.post("/models/cancer:classify", json={"examples": examples})
    assert answer.status_code == 200, answer.text
    # The documents call it `result`; the server (util/json_tensor_test.cc) writes `results`.
    assert set(answer.json()) == {"results"}
    scores = [dict(pairs) for pairs in answer.json()["results"]]
    found = [[one[label] for label in told["classes"]] for one in scores]
    assert np.allclose(found, served.shares, atol=1e-5)
    refusal = rest.post("/models/cancer:regress", json={"examples": examples})
    assert refusal.status_code == 400
    assert "does not give numbers" in refusal.json()["error"]


def test_status_and_metadata(rest: httpx.Client) -> None:
    (version,) = rest.get("/models/cancer").json()["model_version_status"]
    assert version == {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    told = rest.get("/models/cancer/versions/1/metadata").json()
    assert told["model_spec"] == {"name": "cancer", "signature_name": "", "version": "1"}
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"][INPUT]["dtype"] == "DT_FLOAT"
    assert signature["outputs"]["prediction"]["dtype"] == "DT_STRING"
    assert [d["size"] for d in signature["inputs"][INPUT]["tensor_shape"]["dim"]] == ["-1", "30"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/models/ghost:predict", {"instances": [[1.0]]}, 404),
        ("/models/cancer/versions/99:predict", {"instances": [[1.0]]}, 404),
        ("/models/cancer:predict", {"instances": [[1.0]]}, 400),
        ("/models/cancer:predict", {"instances": [], "inputs": []}, 400),
        ("/models/cancer:predict", {"signature_name": "ghost", "instances": [[1.0]]}, 400),
        ("/models/cancer:predict", {}, 400),
    ],
)
def test_refusals_have_one_shape(
    rest: httpx.Client, path: str, body: dict[str, Any], status: int
) -> None:
    answer = rest.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)


def test_text_comes_as_base64_too(rest: httpx.Client) -> None:
    rows = [{name.lower(): values[0] for name, values in VALUES.items()} for _ in range(2)]
    plain = [{**row, "bytes": ["a", "Straße"]} for row in rows]
    coded = [{**row, "bytes": [{"b64": "YQ=="}, {"b64": "U3RyYcOfZQ=="}]} for row in rows]
    answers = [
        rest.post("/models/typed:predict", json={"instances": one}) for one in (plain, coded)
    ]
    assert answers[0].status_code == answers[1].status_code == 200, answers[1].text
    assert answers[0].json() == answers[1].json()


def test_nobody_is_answered_without_a_key(served: Served) -> None:
    url = f"{served.server.rest_url}/v1/models/cancer:predict"
    answer = httpx.post(url, json={"instances": served.rows}, timeout=30)
    assert answer.status_code == 401
