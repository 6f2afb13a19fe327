"""What a process of its own costs a model: a call, a start, memory; and what it saves.

The same ONNX graph (Relu) runs in this process and in one of its own, in turn; times are medians.
"One row" is 30 floats, "4 MB" a tensor of 1,048,576. A model that hangs is a Python model. Exit
code 0 if every goal is met, 1 if not.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Manifest, Signature, TensorSpec, Tolerance
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated
from tapster.runtimes.onnx import OnnxRuntime

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.startup import Figure, rollup, say

CALLS: Final = {"one row": 4000, "4 MB": 400}
ROUNDS: Final = 5
HANGS: Final = {"sleeps": "time.sleep(1000)", "spins in C": "7 ** 10**9"}
ATTEMPTS: Final = 5
DEADLINE: Final = 0.2
WIDTH: Final = {"one row": 30, "4 MB": 1 << 20}

PYTHON: Final = """
import time
class Model:
    def load(self, folder):
        pass
    def predict(self, inputs):
        if inputs["x"].flat[0] < 0:
            {hang}
        return {{"y": inputs["x"]}}
"""


def graph() -> bytes:
    """y = max(x, 0), FP32 [n, m]."""
    specs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "m"]) for n in ("x", "y")]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", specs[:1], specs[1:])
    opset = helper.make_opsetid("", 18)
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())


def calls(folder: Path) -> Iterator[Figure]:
    """What a call takes here and there, with a deadline as requests have."""
    data = graph()
    (folder / "model.onnx").write_bytes(data)
    spec = (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),)
    manifest = Manifest("m", "other", "onnx", "model.onnx", Signature(*spec), Tolerance(0, 0), {})
    here = OnnxRuntime().load(manifest, {"model.onnx": data}, 1)
    with Isolated.of_draft(folder, "onnx", "model.onnx", Limits()) as there:
        for name, width in WIDTH.items():
            x = np.ones((1, width), np.float32)
            times: dict[str, list[float]] = {"in this process": [], "in its own": []}
            for _ in range(ROUNDS):
                for where, model in zip(times, (here, there), strict=True):
                    times[where] += each(model, x, CALLS[name] // ROUNDS)
            found = {where: statistics.median(taken) * 1e6 for where, taken in times.items()}
            for where, taken in found.items():
                yield Figure(f"{name}, {where}", taken, "us a call")
            extra = found["in its own"] - found["in this process"]
            yield Figure(f"  {name}, what its own process adds", extra, "us")


def each(model: Any, x: Any, count: int) -> list[float]:
    """Seconds of every call, after some that do not count."""
    taken = []
    for turn in range(count + 20):
        began = time.perf_counter()
        model.run({"x": x}, ["y"], time.monotonic() + 10)
        if turn >= 20:
            taken.append(time.perf_counter() - began)
    return taken


def deaths(folder: Path) -> Iterator[Figure]:
    """How late the error of a run without end is, and how soon the model answers again."""
    os.environ["TAPSTER_PYTHON_MODELS"] = "true"
    declared = {"datatype": "FP32", "shape": [-1, -1]}
    said = {"inputs": [{"name": "x", **declared}], "outputs": [{"name": "y", **declared}]}
    (folder / "model.json").write_text(json.dumps(said))
    for name, hang in HANGS.items():
        (folder / "model.py").write_text(PYTHON.format(hang=hang))
        late, back = [], []
        for _ in range(ATTEMPTS):
            with Isolated.of_draft(folder, "python", "model.py", Limits()) as model:
                seconds, again = hung(model)
            late.append(seconds)
            back.append(again)
        yield Figure(f"{name}: the error after the deadline, worst", max(late) * 1e3, "ms", 250)
        yield Figure(f"{name}: answers again after the error, worst", max(back) * 1e3, "ms", 5000)


def hung(model: Isolated) -> tuple[float, float]:
    """Seconds from the deadline to the error, and from the error to the next answer."""
    one = np.ones((1, 4), np.float32)
    model.run({"x": one}, ["y"], time.monotonic() + 10)
    deadline = time.monotonic() + DEADLINE
    code = ""
    try:
        model.run({"x": -one}, ["y"], deadline)
    except TapsterError as error:
        code = error.code
    heard = time.monotonic()
    if code != "deadline":
        raise RuntimeError(f"not refused for its deadline, but {code or 'answered'}")
    model.run({"x": one}, ["y"], time.monotonic() + 60)
    return heard - deadline, time.monotonic() - heard


def starts(folder: Path) -> Iterator[Figure]:
    """What a process takes to start and to be, by runtime, for a small model."""
    os.environ["TAPSTER_PYTHON_MODELS"] = "true"
    for runtime, make in MODELS.items():
        inside = folder / runtime
        inside.mkdir()
        try:
            file = make(inside)
        except ImportError:
            say(f"{runtime}: not installed")
            continue
        taken, memory = [], []
        for _ in range(3):
            began = time.perf_counter()
            with Isolated.of_draft(inside, runtime, file, Limits()) as model:
                taken.append(time.perf_counter() - began)
                memory.append(rollup(model.pids[0])["Pss"])
        yield Figure(f"{runtime}: start", statistics.median(taken) * 1e3, "ms")
        yield Figure(f"{runtime}: memory of the process (PSS)", min(memory) / 1e6, "MB")


def onnx_model(folder: Path) -> str:
    """The graph of `calls`."""
    (folder / "model.onnx").write_bytes(graph())
    return "model.onnx"


def python_model(folder: Path) -> str:
    """A class that uses numpy."""
    tensor = {"datatype": "FP32", "shape": [-1, -1]}
    said = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    (folder / "model.json").write_text(json.dumps(said))
    (folder / "model.py").write_text(PYTHON.format(hang="pass"))
    return "model.py"


def skops_model(folder: Path) -> str:
    """A logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from skops.io import dump

    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    dump(LogisticRegression().fit(x, np.arange(10) % 2), folder / "model.skops")
    return "model.skops"


def torch_model(folder: Path) -> str:
    """A linear layer."""
    import torch

    program = torch.export.export(torch.nn.Linear(4, 2).eval(), (torch.zeros(1, 4),))
    torch.export.save(program, folder / "model.pt2")
    return "model.pt2"


MODELS: Final[dict[str, Callable[[Path], str]]] = {
    "onnx": onnx_model,
    "python": python_model,
    "skops": skops_model,
    "torch": torch_model,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # every death here is meant
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"warning: the machine is not quiet (load {load:.1f})")
    figures = []
    for part in (calls, deaths, starts):
        with tempfile.TemporaryDirectory(prefix="tapster-isolation-") as name:
            for figure in part(Path(name)):
                figures.append(figure)
                say(str(figure)) if options.json else print(figure, flush=True)
    if options.json:
        print(json.dumps([{**vars(one), "met": one.met} for one in figures], indent=2))
    return 0 if all(one.met for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
