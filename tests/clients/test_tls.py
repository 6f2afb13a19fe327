"""Stock clients of inference over TLS, with the certificate that the server has made."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import tapster
from tests.clients.conftest import HERE, SECONDS
from tests.conftest import Server


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Server]:
    """An installation that speaks TLS, with an endpoint that gives its input back."""
    running = Server(tmp_path / "home", {"TAPSTER_TLS": "auto"}).start()
    shape: list[str | int | None] = ["rows", 2]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["fp32"], ["y"])],
        "line",
        [helper.make_tensor_value_info("fp32", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "line.onnx"
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    with tapster.connect(home=running.home, start=False) as client:
        client.models_import("line", path)
        client.deploy("line")
    yield running
    assert running.stop() == 0


def test_triton_clients_speak_tls(encrypted: Server, interpreter: Callable[[str], Path]) -> None:
    case = {
        "http": encrypted.rest_url.removeprefix("https://"),
        "grpc": encrypted.grpc_url,
        "key": encrypted.key,
        "authority": str(encrypted.home / "tls" / "cert.pem"),
    }
    done = subprocess.run(
        [interpreter("tritonclient"), HERE / "scripts" / "triton_tls.py"],
        input=json.dumps(case),
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = {"live": True, "y": [[0.25, 0.5]]}
    assert json.loads(done.stdout) == {"http": answer, "grpc": answer}
