"""Large weights apart from their model: found, left out, put into a file, and shared by runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, load_from_string, numpy_helper

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest, Signature, TensorSpec
from tapster.runtimes import sessions
from tapster.runtimes.onnx import OnnxModel, OnnxRuntime
from tapster.runtimes.operators import refuse_external_data, vet
from tapster.runtimes.weights import PAGE, split
from tests.runtimes.graphs import FLOAT, TOLERANCE, model, value

WIDTH = 600  # a matrix of 1.4 MB
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, 1)),))


def matrices(count: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        f"w{number}": random.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        for number in range(count)
    }


def large(count: int = 3) -> ModelProto:
    """y = sum(tanh(... tanh(x @ w0) @ w1 ...)), with a small bias among the weights."""
    weights = {**matrices(count), "bias": np.ones(WIDTH, np.float32), "axes": np.array([1])}
    nodes = [helper.make_node("Add", ["x", "bias"], ["t"])]
    last = "t"
    for number in range(count):
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"t{number}"]))
        last = f"t{number}"
    nodes.append(helper.make_node("ReduceSum", [last, "axes"], ["y"], keepdims=1))
    return model(nodes, [value("x", FLOAT, ["n", WIDTH])], [value("y", FLOAT, ["n", 1])], weights)


def load(graph: bytes, shelf: Path | None) -> OnnxModel:
    manifest = Manifest("m", "other", "onnx", "model.onnx", SIGNATURE, TOLERANCE, {})
    return OnnxRuntime().load(manifest, {"model.onnx": graph}, 1, shelf)


def sample(rows: int) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)


def test_a_model_is_the_same_without_its_weights() -> None:
    whole = large()
    parts = split(whole.SerializeToString())
    assert parts is not None
    assert [bytes(weight) for weight in parts.weights] == [
        matrices()[f"w{number}"].tobytes() for number in range(3)
    ]
    bare = parts.bare()
    assert len(bare) < 10_000
    assert vet(bare) == []
    refuse_external_data(bare)
    expected = ModelProto()
    expected.CopyFrom(whole)
    for tensor in expected.graph.initializer:
        if tensor.name.startswith("w"):
            tensor.ClearField("raw_data")
    assert load_from_string(bare) == expected


def test_the_weights_lie_in_the_file_where_the_thin_model_says(tmp_path: Path) -> None:
    parts = split(large().SerializeToString())
    assert parts is not None
    parts.write(tmp_path / "raw")
    data = (tmp_path / "raw").read_bytes()
    thin = ModelProto.FromString(parts.thin("raw"))
    found = {}
    for tensor in thin.graph.initializer:
        words = {entry.key: entry.value for entry in tensor.external_data}
        if words:
            assert tensor.data_location == TensorProto.EXTERNAL
            assert words["location"] == "raw"
            start, length = int(words["offset"]), int(words["length"])
            assert start % PAGE == 0
            found[tensor.name] = data[start : start + length]
    assert found == {name: matrix.tobytes() for name, matrix in matrices().items()}


def test_what_is_small_is_left_in_one_piece() -> None:
    assert split(large(2).SerializeToString()) is None
    assert split(b"") is None
    many = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", FLOAT, ["n", 1])],
        [value("y", FLOAT, ["n", 1])],
        {f"w{number}": np.zeros(1000, np.float32) for number in range(2000)},
    )
    assert split(many.SerializeToString()) is None


def unusual() -> list[bytes]:
    """Models with large weights that no exporter writes so."""
    whole = large().SerializeToString()
    two_graphs = whole + b"\x3a\x00"
    twice = large()
    twice.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = twice.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return [
        two_graphs,
        twice.SerializeToString(),
        whole[:-1],
        whole + b"\x3b",
        whole + b"\xff" * 20,
        b"\x0a" + b"\xff" * 9 + b"\x01" + bytes(5 << 20),
        bytes(range(256)) * (1 << 15),
    ]


@pytest.mark.parametrize("index", range(7))
def test_what_is_spelled_unusually_goes_the_common_way(index: int, tmp_path: Path) -> None:
    graph = unusual()[index]
    assert split(graph) is None
    if index == 0:  # ONNX Runtime reads it, and so do we
        load(graph, tmp_path / "shelf").run({"x": sample(1)})
    else:
        with pytest.raises(TapsterError) as caught:
            load(graph, tmp_path / "shelf")
        assert caught.value.code == "unprocessable"
    assert not (tmp_path / "shelf").exists()


def test_answers_are_the_same_from_the_shelf(tmp_path: Path) -> None:
    graph = large().SerializeToString()
    shelf = tmp_path / "shelf" / "package"
    plain, first, second = load(graph, None), load(graph, shelf), load(graph, shelf)
    for rows in (1, 3, 16):
        wanted = plain.run({"x": sample(rows)})[0]
        assert np.array_equal(first.run({"x": sample(rows)})[0], wanted)
        assert np.array_equal(second.run({"x": sample(rows)})[0], wanted)
    assert plain.memory >= 3 * WIDTH * WIDTH * 4
    assert first.memory >= 3 * WIDTH * WIDTH * 4
    assert os.stat(shelf).st_mode & 0o077 == 0
    (folder,) = (entry for entry in shelf.iterdir() if entry.is_dir())
    assert {entry.name for entry in folder.iterdir()} == {
        "graph.onnx",
        "weights.bin",
        "seal.json",
    }


@pytest.mark.parametrize("name", ["graph.onnx", "weights.bin", "seal.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_was_altered_on_the_shelf_is_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    graph = large().SerializeToString()
    shelf = tmp_path / "shelf"
    wanted = load(graph, shelf).run({"x": sample(2)})[0]
    (path,) = shelf.glob(f"*/{name}")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    assert np.array_equal(load(graph, shelf).run({"x": sample(2)})[0], wanted)
    (path,) = shelf.glob(f"*/{name}")
    if damage == "flipped" and name != "seal.json":
        assert path.read_bytes() != data


def test_a_shelf_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    graph = large().SerializeToString()
    assert load(graph, tmp_path / "file" / "shelf").run({"x": sample(2)})[0].shape == (2, 1)


def test_another_processor_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = large().SerializeToString()
    load(graph, tmp_path)
    (before,) = (entry.name for entry in tmp_path.iterdir() if entry.is_dir())
    monkeypatch.setattr(sessions, "_machine", lambda: "another")
    load(graph, tmp_path)
    after = [entry.name for entry in tmp_path.iterdir() if entry.is_dir()]
    assert after == ["another"] != [before]


def test_processes_share_one_copy(tmp_path: Path) -> None:
    """Three processes hold little more private memory than the weights take once."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(large(24).SerializeToString())
    code = f"""
import sys, numpy as np
from pathlib import Path
from tests.runtimes.test_weights import load, sample
from tapster.core import heap
first = load(Path({str(graph)!r}).read_bytes(), Path({str(tmp_path / "shelf")!r}))
first.run({{"x": sample(8)}})
heap.trim()
print("ready", flush=True)
sys.stdin.read()
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        weights = 24 * WIDTH * WIDTH * 4
        mapped = [_mapped(process.pid) for process in running]
        assert all(size["Rss"] > 0.9 * weights for size in mapped)
        assert sum(size["Pss"] for size in mapped) < 2.2 * weights
        assert all(size["Private_Dirty"] == 0 or size["Shared_Dirty"] > 0 for size in mapped)
    finally:
        for process in running:
            process.communicate("", timeout=60)


def _mapped(pid: int) -> dict[str, int]:
    """Bytes of the mappings of a shelf's weights, by kind."""
    found = dict.fromkeys(("Rss", "Pss", "Private_Dirty", "Shared_Dirty"), 0)
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split()[0]:
            ours = line.endswith("weights.bin")
        elif ours and name in found:
            found[name] += int(rest.split()[0]) * 1024
    return found


def test_numbers_of_a_large_weight_survive_every_type(tmp_path: Path) -> None:
    """Weights of other types than FP32 come back from the shelf as they are."""
    kinds = (np.float64, np.int64, np.float16, np.int8)
    arrays = {f"c{i}": (np.arange(1 << 20) % 100).astype(kind) for i, kind in enumerate(kinds)}
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Gather", [name, "x"], [f"g{name}"]) for name in arrays] + [
        helper.make_node("Cast", [f"g{name}"], [f"y{name}"], to=FLOAT) for name in arrays
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.INT64, ["n"])],
        [value(f"y{name}", FLOAT, ["n"]) for name in arrays],
        held,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    signature = Signature(
        (TensorSpec("x", "INT64", (-1,)),),
        tuple(TensorSpec(f"y{name}", "FP32", (-1,)) for name in arrays),
    )
    manifest = Manifest("m", "other", "onnx", "model.onnx", signature, TOLERANCE, {})
    files = {"model.onnx": made.SerializeToString()}
    rows = {"x": np.array([0, 77, 100_000, (1 << 20) - 1])}
    plain = OnnxRuntime().load(manifest, files, 1).run(rows)
    shelved = OnnxRuntime().load(manifest, files, 1, tmp_path).run(rows)
    assert all(np.array_equal(a, b) for a, b in zip(plain, shelved, strict=True))
    assert next(tmp_path.glob("*/weights.bin")).stat().st_size > 4 << 20
