"""Loading and running graphs with ONNX Runtime."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import StringStringEntryProto, TensorProto, helper

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Datatype, Manifest, Signature, TensorSpec
from tapster.core import heap, plugins
from tapster.runtimes import Stop
from tapster.runtimes.onnx import OnnxModel, OnnxRuntime, cleaned, signature_from_graph
from tests.runtimes.graphs import (
    FLOAT,
    INT,
    SIGNATURE,
    STRING,
    TOLERANCE,
    answers,
    classifier,
    model,
    sample,
    value,
)


def load(graph: bytes, signature: Signature = SIGNATURE, threads: int = 1) -> OnnxModel:
    manifest = Manifest("m", "other", "onnx", "model.onnx", signature, TOLERANCE, {})
    return OnnxRuntime().load(manifest, {"model.onnx": graph}, threads)


@pytest.fixture
def loaded() -> Iterator[OnnxModel]:
    made = load(classifier())
    yield made
    made.close()


def strings() -> bytes:
    """text [n, 2] of strings -> the same."""
    node = helper.make_node("Identity", ["text"], ["prediction"])
    made = model([node], [value("text", STRING, ["n", 2])], [value("prediction", STRING, ["n", 2])])
    return bytes(made.SerializeToString())


STRINGS = Signature(
    (TensorSpec("text", "BYTES", (-1, 2)),), (TensorSpec("prediction", "BYTES", (-1, 2)),)
)


def test_the_runtime_is_found_by_its_entry_point() -> None:
    assert plugins.load("tapster.runtimes", "onnx") is OnnxRuntime


def test_answers_are_numpys_own(loaded: OnnxModel) -> None:
    rows = sample()
    labels, scores = loaded.run({"numeric": rows})
    expected = answers(rows)
    assert labels.tolist() == expected["prediction"].tolist()
    np.testing.assert_allclose(scores, expected["probabilities"], rtol=1e-6)


def test_only_the_outputs_asked_for_in_that_order(loaded: OnnxModel) -> None:
    rows = sample(3)
    (only,) = loaded.run({"numeric": rows}, ["probabilities"])
    assert only.shape == (3, 2)
    scores, labels = loaded.run({"numeric": rows}, ("probabilities", "prediction"))
    assert (scores.shape, labels.shape) == ((3, 2), (3,))


def test_strings_travel_as_objects() -> None:
    words = np.array([["", "Köln"], ["🍷 <b>", "a" * 5000]], dtype=np.object_)
    (echo,) = load(strings(), STRINGS).run({"text": words})
    assert echo.tolist() == words.tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({}, (), "input 'numeric' is missing"),
        ({"numeric": sample(), "more": sample()}, (), "no input 'more'"),
        ({"numeric": sample().astype(np.float64)}, (), "must be FP32"),
        ({"numeric": sample()[:, :1]}, (), "must have shape [n, 2], not [12, 1]"),
        ({"numeric": sample()[0]}, (), "must have shape [n, 2], not [2]"),
        ({"numeric": np.array([["a", "b"]], dtype=np.object_)}, (), "must be FP32"),
        ({"numeric": sample()}, ["absent"], "no output 'absent'"),
    ],
)
def test_what_the_graph_does_not_take_is_invalid(
    loaded: OnnxModel, inputs: dict[str, Any], outputs: list[str], words: str
) -> None:
    with pytest.raises(TapsterError) as caught:
        loaded.run(inputs, outputs)
    assert caught.value.code == "invalid"
    assert words in caught.value.message
    assert caught.value.hint
    assert len(loaded.run({"numeric": sample()})) == 2


def test_a_failure_inside_the_graph_is_invalid_and_names_no_path() -> None:
    nodes = [helper.make_node("Gather", ["table", "index"], ["y"])]
    made = model(
        nodes,
        [value("index", INT, ["n"])],
        [value("y", FLOAT, ["n"])],
        {"table": np.arange(3, dtype=np.float32)},
    )
    signature = Signature((TensorSpec("index", "INT64", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    loaded = load(made.SerializeToString(), signature)
    assert loaded.run({"index": np.array([2])})[0].tolist() == [2.0]
    with pytest.raises(TapsterError) as caught:
        loaded.run({"index": np.array([7])})
    assert caught.value.code == "invalid"
    assert "failed on these inputs" in caught.value.message
    assert "/" not in caught.value.message


def test_messages_lose_their_paths() -> None:
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : /a/b/c/core/x.cc:12 said\n no to /home/me/f"
    )
    assert cleaned(error) == "x.cc:12 said no to f"
    assert cleaned(RuntimeError("")) == "RuntimeError"


def slow() -> tuple[bytes, Signature]:
    """x [n, n] -> x multiplied 400 times by itself, elementwise in between."""
    nodes, last = [], "x"
    for step in range(400):
        nodes.append(helper.make_node("MatMul", [last, "x"], [f"m{step}"]))
        nodes.append(helper.make_node("Tanh", [f"m{step}"], [f"t{step}"]))
        last = f"t{step}"
    made = model(nodes, [value("x", FLOAT, ["n", "n"])], [value(last, FLOAT, ["n", "n"])])
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec(last, "FP32", (-1, -1)),)
    )
    return bytes(made.SerializeToString()), signature


def test_a_run_ends_at_its_deadline_and_the_model_lives_on() -> None:
    loaded = load(*slow())
    big = np.full((600, 600), 0.01, dtype=np.float32)
    began = time.monotonic()
    with pytest.raises(TapsterError) as caught:
        loaded.run({"x": big}, (), time.monotonic() + 0.05)
    assert caught.value.code == "deadline"
    ended = time.monotonic() - began
    began = time.monotonic()
    loaded.run({"x": big})
    assert ended < time.monotonic() - began
    small = np.eye(2, dtype=np.float32)
    assert loaded.run({"x": small}, (), time.monotonic() + 60)[0].shape == (2, 2)


def test_a_deadline_in_the_past_runs_nothing(loaded: OnnxModel) -> None:
    with pytest.raises(TapsterError) as caught:
        loaded.run({"numeric": sample()}, (), time.monotonic() - 1)
    assert caught.value.code == "deadline"


def test_only_the_late_one_of_many_runs_is_ended() -> None:
    loaded = load(*slow())
    small, big = np.eye(4, dtype=np.float32), np.full((600, 600), 0.01, dtype=np.float32)
    outcomes: dict[str, int] = {"answered": 0, "deadline": 0}

    def ask(rows: Any, seconds: float, times: int) -> None:
        for _ in range(times):
            try:
                loaded.run({"x": rows}, (), time.monotonic() + seconds)
                outcomes["answered"] += 1
            except TapsterError as error:
                outcomes[error.code] += 1

    threads = [threading.Thread(target=ask, args=(small, 60, 20)) for _ in range(2)]
    threads.append(threading.Thread(target=ask, args=(big, 0.05, 1)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"answered": 40, "deadline": 1}


def test_a_run_that_is_called_off_ends_and_the_model_lives_on() -> None:
    loaded = load(*slow())
    big = np.full((600, 600), 0.01, dtype=np.float32)
    began = time.monotonic()
    loaded.run({"x": big})
    whole = time.monotonic() - began
    stop = Stop()
    timer = threading.Timer(whole / 10, stop.call)
    timer.start()
    began = time.monotonic()
    with pytest.raises(TapsterError) as caught:
        loaded.run({"x": big}, (), time.monotonic() + 60, stop)
    assert caught.value.code == "cancelled"
    assert time.monotonic() - began < whole
    timer.join()
    with pytest.raises(TapsterError) as caught:
        loaded.run({"x": big}, (), time.monotonic() + 60, stop)  # it was called before
    assert caught.value.code == "cancelled"
    small = np.eye(2, dtype=np.float32)
    assert loaded.run({"x": small}, (), time.monotonic() + 60, Stop())[0].shape == (2, 2)


def test_a_model_knows_what_it_takes() -> None:
    small = load(classifier())
    weights = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    wide = np.tile(weights, (1, 200_000))
    node = helper.make_node("MatMul", ["numeric", "w"], ["prediction"])
    made = model(
        [node],
        [value("numeric", FLOAT, ["n", 2])],
        [value("prediction", FLOAT, ["n", wide.shape[1]])],
        {"w": wide},
    )
    signature = Signature(
        SIGNATURE.inputs, (TensorSpec("prediction", "FP32", (-1, wide.shape[1])),)
    )
    large = load(made.SerializeToString(), signature)
    assert 0 < small.memory < 1 << 20
    assert wide.nbytes <= large.memory < 4 * wide.nbytes


def test_large_runs_leave_nothing_to_the_arena() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("ReduceSum", ["e"], ["y"])]
    made = model(nodes, [value("x", FLOAT, ["n"])], [value("y", FLOAT, [1])])
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (1,)),))
    loaded = load(made.SerializeToString(), signature)
    loaded.run({"x": np.zeros(10, np.float32)}, (), time.monotonic() + 60)
    rows = np.zeros(10 << 20, np.float32)
    before = heap.allocated()
    loaded.run({"x": rows}, (), time.monotonic() + 60)
    assert heap.allocated() - before < rows.nbytes / 2


def test_a_closed_model_is_unavailable(loaded: OnnxModel) -> None:
    loaded.close()
    with pytest.raises(TapsterError) as caught:
        loaded.run({"numeric": sample()})
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    "graph",
    [b"", b"garbage", b"\x00" * 100, classifier()[:-30], b"\x08\x07", b"ORTM" * 10, b"\xff" * 64],
)
def test_what_is_no_model_is_unprocessable(graph: bytes) -> None:
    with pytest.raises(TapsterError) as caught:
        load(graph)
    assert caught.value.code == "unprocessable"


def test_a_format_that_is_not_onnx_is_not_loaded() -> None:
    with pytest.raises(TapsterError) as caught:
        load(b"\x20\x00\x00\x00ORTM" + bytes(100))
    assert caught.value.code == "unprocessable"


@pytest.mark.parametrize(
    "signature",
    [
        Signature((TensorSpec("numeric", "FP32", (-1, 3)),), SIGNATURE.outputs),
        Signature((TensorSpec("numeric", "FP64", (-1, 2)),), SIGNATURE.outputs),
        Signature((TensorSpec("number", "FP32", (-1, 2)),), SIGNATURE.outputs),
        Signature((), SIGNATURE.outputs),
        Signature(SIGNATURE.inputs, (TensorSpec("prediction", "BYTES", (-1,)),)),
        Signature(SIGNATURE.inputs, (TensorSpec("scores", "FP32", (-1,)),)),
    ],
)
def test_a_signature_that_is_not_the_graphs_is_unprocessable(signature: Signature) -> None:
    with pytest.raises(TapsterError) as caught:
        load(classifier(), signature)
    assert caught.value.code == "unprocessable"


def test_the_signature_of_a_bare_graph() -> None:
    assert signature_from_graph(classifier()) == Signature(SIGNATURE.inputs, SIGNATURE.outputs)
    assert signature_from_graph(strings()) == STRINGS


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
    ],
)
def test_datatypes_of_a_bare_graph(kind: int, datatype: Datatype) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    made = model([node], [value("x", kind, ["n", 3])], [value("y", kind, ["n", 3])])
    found = signature_from_graph(made.SerializeToString())
    assert found.inputs == (TensorSpec("x", datatype, (-1, 3)),)


def test_a_graph_whose_output_is_no_tensor_is_refused() -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    made = model([node], [value("x", FLOAT, [2])], [sequence])
    with pytest.raises(TapsterError, match="not a tensor"):
        signature_from_graph(made.SerializeToString())


def test_weights_in_other_files_are_refused() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    for location in ("weights.bin", "../../etc/passwd", "/etc/passwd"):
        made = model([node], [value("x", FLOAT, [2])], [value("y", FLOAT, [2])])
        tensor = made.graph.initializer.add(
            name="w", dims=[2], data_type=FLOAT, data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.append(StringStringEntryProto(key="location", value=location))
        for attempt in (signature_from_graph, load):
            with pytest.raises(TapsterError, match="external data") as caught:
                attempt(made.SerializeToString())
            assert caught.value.code == "unprocessable"
