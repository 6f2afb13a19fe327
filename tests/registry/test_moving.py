"""A model moves between two running installations, and a bare file becomes an endpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.runtimes.graphs import FLOAT, INT, answers, classifier, model, sample, value
from tests.serving.conftest import wait_for


def connected(server: Server) -> Client:
    import tapster

    return tapster.connect(server.url, key=server.key)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "a model.onnx"
    path.write_bytes(classifier())
    return path


def test_a_model_moves_between_installations(
    server: Server, new_server: Callable[..., Server], bare: Path, tmp_path: Path
) -> None:
    with connected(server) as here, connected(new_server()) as there:
        made = here.models_import("moving", bare)
        here.models_alias("moving@1", "champion")
        file = here.models_export("moving:champion", tmp_path / "moving.tapster")
        with pytest.raises(TapsterError, match="not trusted") as caught:
            there.models_import("moved", file)
        assert caught.value.code == "forbidden"
        own = next(key["public_key"] for key in here.trust_list() if key["own"])
        there.trust_add("here", own)
        moved = there.models_import("moved", file)
        assert (moved.digest, moved.signer) == (made.digest, own)
        assert moved.signature == made.signature
        assert there.deploy("moved").status == "live"
        damaged = tmp_path / "damaged.tapster"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        with pytest.raises(TapsterError, match="refused"):
            there.models_import("moved", damaged)
        assert [v.version for v in there.models_versions("moved")] == [1]


def test_what_is_served_is_not_deleted(server: Server, bare: Path) -> None:
    with connected(server) as here:
        made = here.models_import("kept", bare)
        here.deploy("kept", "kept-endpoint")
        with pytest.raises(TapsterError, match="kept-endpoint") as caught:
            here.models_delete("kept@1")
        assert caught.value.code == "conflict"
        here.endpoint_delete("kept-endpoint")
        assert here.models_delete("kept") == {"freed": made.bytes}
        with pytest.raises(TapsterError, match="no model"):
            here.models_show("kept")


def test_a_graph_that_is_not_vetted_is_served_in_a_process_of_its_own(
    server: Server, tmp_path: Path
) -> None:
    import httpx

    node = helper.make_node("NonZero", ["x"], ["y"])
    made = model([node], [value("x", FLOAT, ["n", 2])], [value("y", INT, [2, "found"])])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [0, 1, 2, 0]}
    with connected(server) as here:
        assert here.models_import("unvetted", tmp_path / "m.onnx").unvetted
        assert here.deploy("unvetted").status == "live"
        answer = httpx.post(
            f"{server.rest_url}/v2/models/unvetted/infer",
            json={"inputs": [tensor]},
            headers={"Authorization": f"Bearer {server.key}"},
        )
        assert answer.json()["outputs"][0]["data"] == [0, 1, 1, 0], answer.text
        assert len(server.children("isolated.child")) == 1
        here.endpoint_delete("unvetted")
        here.models_delete("unvetted")
    wait_for(lambda: not server.children("isolated.child"), "the end of the model's process")


def test_a_bare_file_answers_as_itself(server: Server, bare: Path) -> None:
    import httpx

    rows = sample(5)
    with connected(server) as here:
        here.models_import("bare", bare)
        here.deploy("bare")
    body: dict[str, Any] = {
        "inputs": [
            {"name": "numeric", "shape": [5, 2], "datatype": "FP32", "data": rows.ravel().tolist()}
        ]
    }
    answer = httpx.post(
        f"{server.rest_url}/v2/models/bare/infer",
        json=body,
        headers={"Authorization": f"Bearer {server.key}"},
    )
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["prediction"] == answers(rows)["prediction"].tolist()
    assert outputs["probabilities"] == pytest.approx(
        answers(rows)["probabilities"].ravel().tolist(), rel=1e-5
    )
