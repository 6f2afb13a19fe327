"""Exported torch programs: what they take and give, and that loading one unpickles nothing."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest, Signature, TensorSpec, Tolerance
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated
from tapster.runtimes.torch import TorchModel, TorchRuntime, cleaned_archive, open_program

FILE = "model.pt2"
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


class Scaled(torch.nn.Module):  # type: ignore[misc]
    """Parameters, a buffer, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: Any) -> Any:
        scores = self.linear(x) * self.scale
        return {"scores": scores, "best": scores.argmax(-1)}


class Several(torch.nn.Module):  # type: ignore[misc]
    """Two inputs, one a keyword; a tuple; sizes that depend on sizes."""

    def forward(self, ids: Any, *, weights: Any) -> Any:
        return ids.repeat(2, 1) + ids.shape[0], weights.to(torch.bfloat16), weights.half()


class One(torch.nn.Module):  # type: ignore[misc]
    """One output without a name."""

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.interpolate(x[None, None], scale_factor=2.0)[0, 0] > 0


def exported(module: Any, arguments: Any, keywords: Any = None, shapes: Any = None) -> bytes:
    program = torch.export.export(module.eval(), arguments, keywords, dynamic_shapes=shapes)
    made = io.BytesIO()
    torch.export.save(program, made)
    return made.getvalue()


@pytest.fixture(scope="module")
def scaled() -> bytes:
    return exported(Scaled(), (torch.zeros(2, 4),), shapes=({0: torch.export.Dim("n")},))


def loaded(data: bytes) -> TorchModel:
    runtime, files = TorchRuntime(), {FILE: data}
    signature = runtime.describe(files, FILE).signature
    manifest = Manifest("m", "other", "torch", FILE, signature, Tolerance(0, 0), {})
    return runtime.load(manifest, files, 1)


def test_a_program_answers_in_a_process_of_its_own(tmp_path: Path, scaled: bytes) -> None:
    (tmp_path / FILE).write_bytes(scaled)
    with torch.inference_mode():
        expected = Scaled().eval()(torch.from_numpy(ROWS))
    with Isolated.of_draft(tmp_path, "torch", FILE, Limits()) as model:
        assert model.signature == Signature(
            inputs=(TensorSpec("x", "FP32", (-1, 4)),),
            outputs=(TensorSpec("scores", "FP32", (-1, 3)), TensorSpec("best", "INT64", (-1,))),
        )
        for rows in (ROWS, ROWS[:1]):
            scores, best = model.run({"x": rows})
            np.testing.assert_allclose(scores, expected["scores"][: len(rows)], rtol=1e-6)
            assert best.tolist() == expected["best"][: len(rows)].tolist()
        with pytest.raises(TapsterError) as caught:
            model.run({"x": ROWS[:, :3]})
        assert caught.value.code == "invalid"


def test_inputs_by_keyword_types_and_sizes_of_sizes() -> None:
    n = torch.export.Dim("n", min=2)
    given = {"weights": torch.ones(2, 3, dtype=torch.float64)}
    shapes = {"ids": {0: n}, "weights": {0: n}}
    data = exported(Several(), (torch.zeros(2, 2, dtype=torch.int64),), given, shapes)
    model = loaded(data)
    assert [(s.name, s.datatype) for s in model.signature.inputs] == [
        ("ids", "INT64"),
        ("weights", "FP64"),
    ]
    assert [(s.name, s.datatype, s.shape) for s in model.signature.outputs] == [
        ("output_0", "INT64", (-1, 2)),
        ("output_1", "BF16", (-1, 3)),
        ("output_2", "FP16", (-1, 3)),
    ]
    weights = np.full((5, 3), 1.5)
    first, second, third = model.run({"ids": np.ones((5, 2), np.int64), "weights": weights})
    assert (first.shape, set(first.ravel().tolist())) == ((10, 2), {6})
    assert set(second.ravel().tolist()) == {0x3FC0}  # 1.5, the upper half of a 32-bit float
    assert set(third.ravel().tolist()) == {1.5}


def test_a_lone_output_and_a_fixed_size() -> None:
    model = loaded(exported(One(), (torch.zeros(2, 2),)))
    assert model.signature == Signature(
        (TensorSpec("x", "FP32", (2, 2)),), (TensorSpec("output", "BOOL", (4, 4)),)
    )
    (answer,) = model.run({"x": np.array([[1, -1], [-1, 1]], np.float32)})
    assert answer[0].tolist() == [True, True, False, False]


# -- nothing is unpickled, and no name looked up that is no operator


class Canary:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("canary-was-here",))


Change = Callable[[dict[str, bytes]], object]


def altered(data: bytes, change: Change) -> bytes:
    """The archive after a change to its files, by their names below the root."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].partition("/")[0]
        files = {n.removeprefix(f"{root}/"): archive.read(n) for n in archive.namelist()}
    change(files)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{root}/{name}", content)
    return made.getvalue()


def in_json(name: str, change: Callable[[Any], None]) -> Change:
    def apply(files: dict[str, bytes]) -> None:
        content = json.loads(files[name])
        change(content)
        files[name] = json.dumps(content).encode()

    return apply


PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
PICKLE = pickle.dumps(Canary())


def sampled(files: dict[str, bytes]) -> None:
    made = io.BytesIO()
    torch.save(Canary(), made)
    files["data/sample_inputs/model.pt"] = made.getvalue()


def pickled_weight(files: dict[str, bytes]) -> None:
    files["data/weights/weight_0"] = PICKLE
    in_json(WEIGHTS, lambda c: c["config"]["scale"].update(use_pickle=True))(files)


def opaque_constant(files: dict[str, bytes]) -> None:
    files["data/constants/opaque_obj_0"] = PICKLE
    payload = {"path_name": "opaque_obj_0", "use_pickle": False, "is_param": False}
    in_json(CONSTANTS, lambda c: c["config"].update(x={**payload, "tensor_meta": None}))(files)


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def node(program: Any) -> Any:
    return graph(program)["nodes"][0]


def size(program: Any) -> Any:
    return graph(program)["tensor_values"]["x"]["sizes"][0]["as_expr"]


def target(name: str) -> Change:
    return in_json(PROGRAM, lambda p: node(p).update(target=name))


def expression(text: str) -> Change:
    return in_json(PROGRAM, lambda p: size(p).update(expr_str=text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickled_weight, "is pickled"),
        (opaque_constant, "is a pickle or code"),
        (lambda files: files.update({"data/weights/model.pt": PICKLE}), "is a pickle or code"),
        (lambda files: files.update({"data/constants/model.pt": PICKLE}), "is a pickle or code"),
        (lambda files: files.update({"data/aotinductor/model/x.so": b""}), "compiled code"),
        (lambda files: files.update({"models/other.json": b"{}"}), "several programs"),
        (target("torch.serialization.os.mkdir"), "torch.serialization.os.mkdir"),
        (target("torch.hub.load"), "torch.hub.load"),
        (target("torch.ops.aten.from_file.default"), "from_file"),
        (target("torch.ops.mine.run.default"), "torch.ops.mine"),
        (target("_operator.methodcaller"), "methodcaller"),
        (target("#mine:run"), "#mine"),
        (expression("__import__('os').mkdir('canary-was-here')"), "it computes a size by"),
        (expression("Symbol('s1').__class__"), "it computes a size by"),
        (expression("open('canary-was-here', 'w')"), "it computes a size by"),
        (expression("[].append"), "it computes a size by"),
        (
            in_json(PROGRAM, lambda p: graph(p).update(custom_obj_values={"a": 1})),
            "script objects",
        ),
    ],
)
def test_what_could_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: bytes, change: Change, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TapsterError) as caught:
        open_program(altered(scaled, change))
    assert caught.value.code == "forbidden"
    assert words in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_sample_inputs_and_guards_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    guards = in_json(PROGRAM, lambda p: p.update(guards_code=["__import__('os').mkdir('canary')"]))
    data = altered(altered(scaled, sampled), guards)
    model = loaded(data)
    assert model.run({"x": ROWS}, ["best"])[0].shape == (3,)
    assert list(tmp_path.iterdir()) == []
    # What torch makes of it by itself shows that the canary sings.
    (tmp_path / FILE).write_bytes(data)
    code = f"import torch; torch.export.load({FILE!r})"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (tmp_path / "canary-was-here").is_dir()


def test_the_programs_that_torch_writes_pass(scaled: bytes) -> None:
    once = cleaned_archive(scaled)
    assert b"data.pkl" in scaled
    assert b"data.pkl" not in once
    assert b"test_torch.py" not in once  # where the code came from
    assert cleaned_archive(once) == cleaned_archive(cleaned_archive(once))


@pytest.mark.parametrize("step", range(8))
def test_what_is_no_program_is_refused(scaled: bytes, step: int) -> None:
    made = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, made)
    broken = [
        b"",
        b"PK\x03\x04",
        PICKLE,
        made.getvalue(),
        scaled[: len(scaled) // 2],
        altered(scaled, lambda files: files.pop(PROGRAM)),
        altered(scaled, lambda files: files.update({PROGRAM: b"{}"})),
        altered(scaled, lambda files: files.update({"archive_format": b"pt3"})),
    ][step]
    with pytest.raises(TapsterError) as caught:
        open_program(broken)
    assert caught.value.code == "unprocessable"
