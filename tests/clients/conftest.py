"""Clients that nobody here wrote, against one installation with a model trained by it.

Each client runs in an environment of its own (see environments.py), in a process of its own, and
prints what it was told; the tests look at that.
"""

import csv
import json
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tapster
from tapster.runtimes import parity
from tests.clients import environments
from tests.conftest import Server

HERE = Path(__file__).resolve().parent
SECONDS = 120
INPUT = "numeric"
# What the model that gives every datatype back is given: extremes, signs, text of all sorts.
VALUES: dict[str, list[list[Any]]] = {
    "BOOL": [[True, False], [False, True]],
    "INT8": [[-128, 127], [0, 1]],
    "INT16": [[-32768, 32767], [0, 1]],
    "INT32": [[-(2**31), 2**31 - 1], [0, 1]],
    "INT64": [[-(2**63), 2**63 - 1], [2**53 + 1, -1]],
    "UINT8": [[0, 255], [1, 2]],
    "UINT16": [[0, 65535], [1, 2]],
    "UINT32": [[0, 2**32 - 1], [1, 2]],
    "UINT64": [[0, 2**64 - 1], [2**53 + 1, 2]],
    "FP16": [[0.5, -65504.0], [6.103515625e-05, 1.0]],
    "FP32": [[0.25, -3.4028234663852886e38], [1.401298464324817e-45, 1.0]],
    "FP64": [[0.1, -1.7976931348623157e308], [5e-324, 1.0]],
    "BYTES": [["", "Straße"], ["☃ 😀", 'a "b"\\\n']],
}
_ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
_preparing: dict[str, Future[Path]] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with the environments at once, when any test will want one."""
    wanted = any(
        item.path.is_relative_to(HERE) and "client" in getattr(item, "fixturenames", ())
        for item in session.items
    )
    if wanted and not session.config.option.collectonly:
        _preparing.update(environments.start(environments.names()))


@dataclass(frozen=True)
class Served:
    """An installation with two endpoints: `cancer`, trained, and `typed`, an import.

    `rows` are inputs that the trainer scored itself, `labels` and `shares` what it said.
    """

    server: Server
    rows: list[list[float]]
    labels: list[Any]
    shares: list[list[float]]

    @property
    def case(self) -> dict[str, Any]:
        """What a client is told."""
        return {
            "http": self.server.rest_url.removeprefix("http://"),
            "grpc": self.server.grpc_url,
            "key": self.server.key,
            "model": "cancer",
            "input": INPUT,
            "rows": self.rows,
            "typed": "typed",
            "values": VALUES,
        }

    def check(self, scores: dict[str, Any]) -> None:
        """Every answer in `scores`, however it was asked for, is what the trainer said."""
        assert scores
        for asked, outputs in scores.items():
            assert set(outputs) == {"prediction", "probabilities"}, asked
            assert outputs["prediction"] == self.labels, asked
            assert np.allclose(outputs["probabilities"], self.shares, atol=1e-5), asked


@pytest.fixture(scope="session")
def served(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """See Served."""
    folder = tmp_path_factory.mktemp("clients")
    with tapster.connect(server.url, key=server.key) as client:
        client.data_add("cancer", _table(folder / "cancer.csv"))
        job = client.train("cancer", "outcome", "cancer", algorithm="logistic", seed=1)
        client.wait(job)
        client.models_alias("cancer@1", "champion")
        client.deploy("cancer")
        client.models_import("typed", _giving_back(folder / "typed.onnx"))
        client.deploy("typed")
        package = client.models_export("cancer", folder / "cancer.tar")
    inputs, labels, shares = _recorded(package)
    return Served(server, inputs.tolist(), labels.tolist(), shares.tolist())


def _table(path: Path) -> Path:
    """scikit-learn's breast cancer data as a CSV file."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(name.replace(" ", "_") for name in found.feature_names), "outcome"])
        for row, target in zip(found.data, found.target, strict=True):
            writer.writerow([*row, found.target_names[target]])
    return path


def _giving_back(path: Path) -> Path:
    """A graph that answers `x_out` with what it was given as `x`, for every datatype x."""
    names = [datatype.lower() for datatype in VALUES]

    def values(suffix: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name + suffix, _ELEMENTS[datatype], [None, 2])
            for name, datatype in zip(names, VALUES, strict=True)
        ]

    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]
    graph = helper.make_graph(nodes, "typed", values(""), values("_out"))
    opsets = [helper.make_opsetid("", 18)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    return path


def _recorded(package: Path) -> tuple[Any, Any, Any]:
    """What an exported package's parity vectors hold: inputs, the trainer's labels and shares.

    Rows with missing numbers are left out: not every client can write NaN.
    """
    with tarfile.open(package) as tar:
        member = tar.extractfile("parity.msgpack")
        assert member is not None
        vectors = parity.load(member.read())
    inputs = np.concatenate([vector.inputs[INPUT] for vector in vectors])
    labels, shares = (
        np.concatenate([vector.outputs[name] for vector in vectors])
        for name in ("prediction", "probabilities")
    )
    whole = np.isfinite(inputs).all(axis=1)
    assert whole.sum() > 10
    return inputs[whole], labels[whole], shares[whole]


Client = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="session")
def client(served: Served) -> Client:
    """Run a script of `scripts/` in an environment: `client("kserve", "kserve_clients")`."""

    def run(environment: str, script: str) -> dict[str, Any]:
        interpreter = _preparing[environment].result(environments.INSTALL_SECONDS)
        done = subprocess.run(
            [interpreter, HERE / "scripts" / f"{script}.py"],
            input=json.dumps(served.case),
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.fixture(scope="session")
def interpreter(client: Client) -> Callable[[str], Path]:
    """The interpreter of an environment, for a client that is a command."""
    return lambda name: _preparing[name].result(environments.INSTALL_SECONDS)
