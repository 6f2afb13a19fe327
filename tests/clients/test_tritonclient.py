"""Triton's client: HTTP in JSON and in binary, compressed and not, gRPC, streams, asyncio."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import HERE, SECONDS, VALUES, Client, Served
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint

Found = dict[str, Any]


@pytest.fixture(scope="module")
def http(client: Client) -> Found:
    return client("tritonclient", "triton_http")


@pytest.fixture(scope="module")
def grpc(client: Client) -> Found:
    return client("tritonclient", "triton_grpc")


def test_http_describes_the_server_and_the_model(http: Found) -> None:
    said = http["described"]
    assert [said[name] for name in ("live", "ready", "model ready", "version ready")] == [True] * 4
    assert said["ghost ready"] is False
    assert said["server"]["name"] == "tapster"
    assert "binary_tensor_data" in said["server"]["extensions"]
    assert said["model"]["inputs"] == [{"name": "numeric", "datatype": "FP32", "shape": [-1, 30]}]
    assert {output["name"] for output in said["model"]["outputs"]} == {
        "prediction",
        "probabilities",
    }
    index = {model["name"]: model for model in said["index"]}
    assert index["cancer"]["state"] == "READY"


def test_http_answers_alike_however_it_is_asked(http: Found, served: Served) -> None:
    served.check(http["scores"])
    served.check(http["asyncio"]["scores"])
    assert http["asyncio"]["ready"] is True


def test_http_gives_only_the_outputs_asked_for_and_the_id_back(http: Found) -> None:
    assert http["selected"] == {"id": "42", "outputs": ["probabilities"], "model": "cancer"}


@pytest.mark.parametrize("form", ["binary", "JSON"])
def test_http_carries_every_datatype(http: Found, form: str) -> None:
    sent = {f"{name.lower()}_out": values for name, values in VALUES.items()}
    assert http["typed"][form] == sent


def test_http_says_why_it_refuses(http: Found) -> None:
    said = http["refused"]
    assert {name: status for name, (status, _) in said.items()} == {
        "ghost": "404",
        "shape": "400",
        "key": "401",
        "version": "404",
        "output": "400",
    }
    assert "shape [n, 30], not" in said["shape"][1]
    assert "ghost" in said["ghost"][1]


def test_grpc_describes_the_server_and_the_model(grpc: Found, served: Served) -> None:
    said = grpc["described"]
    assert [said[name] for name in ("live", "ready", "model ready", "version ready")] == [True] * 4
    assert said["server"]["name"] == "tapster"
    assert said["model"]["inputs"] == [
        {"name": "numeric", "datatype": "FP32", "shape": ["-1", "30"]}
    ]
    assert said["config"]["config"]["name"] == "cancer"
    (statistics,) = said["statistics"]["model_stats"]
    assert statistics["name"] == "cancer"
    index = {model["name"]: model for model in said["index"]["models"]}
    assert index["cancer"]["state"] == "READY"


def test_grpc_answers_alike_however_it_is_asked(grpc: Found, served: Served) -> None:
    served.check(grpc["scores"])
    served.check(grpc["asyncio"]["scores"])
    assert len(grpc["asyncio"]["scores"]) == 90


def test_grpc_gives_only_the_outputs_asked_for_and_the_id_back(grpc: Found) -> None:
    assert grpc["selected"] == {"id": "42", "outputs": ["probabilities"], "model": "cancer"}


def test_grpc_carries_every_datatype(grpc: Found) -> None:
    assert grpc["typed"] == {f"{name.lower()}_out": values for name, values in VALUES.items()}


def test_a_stream_outlives_a_refusal(grpc: Found, served: Served) -> None:
    refused = [one["error"] for one in grpc["stream"] if "error" in one]
    answers = {one["id"]: one["scores"] for one in grpc["stream"] if "error" not in one}
    assert len(refused) == 1
    assert "ghost" in refused[0]
    assert set(answers) == {*map(str, range(50)), "after"}
    served.check(answers)


def test_grpc_says_why_it_refuses(grpc: Found) -> None:
    said = grpc["refused"]
    assert {name: status for name, (status, _) in said.items()} == {
        "ghost": "StatusCode.NOT_FOUND",
        "shape": "StatusCode.INVALID_ARGUMENT",
        "key": "StatusCode.UNAUTHENTICATED",
        "version": "StatusCode.NOT_FOUND",
        "output": "StatusCode.INVALID_ARGUMENT",
    }
    assert "shape [n, 30], not" in said["shape"][1]


def test_models_come_and_go_in_every_worker(
    interpreter: Callable[[str], Path], tmp_path: Path
) -> None:
    planes = [Plane(tmp_path / "home"), Plane(tmp_path / "home")]
    package = packages.regressor(tmp_path / "home", 1.0)
    planes[0].plan(endpoint("sum", package), packages=(package,))
    try:
        for index, plane in enumerate(planes):
            plane.start(index)
            plane.applied(planes[0].number, index)
        case = {
            "http": [f"127.0.0.1:{plane.port}" for plane in planes],
            "grpc": [f"127.0.0.1:{plane.grpc_port}" for plane in planes],
            "key": KEY,
            "model": "sum",
            "states": [str(tmp_path / "home" / "run" / f"worker-{n}.json") for n in (0, 1)],
        }
        script = HERE / "scripts" / "triton_repository.py"
        done = subprocess.run(
            [interpreter("tritonclient"), script],
            input=json.dumps(case),
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    finally:
        for plane in planes:
            plane.stop()
    steps = json.loads(done.stdout)
    assert len(steps) == 8
    for wanted, states, said in steps:
        assert states == [wanted] * 2
        assert said == [["READY", True]] * 4
