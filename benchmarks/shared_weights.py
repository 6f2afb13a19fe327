"""What a large model costs in memory, one process and two, and how fast it is meanwhile.

The model is a chain of matrix products, 200 MB of weights. `own copy` is ONNX Runtime as it comes:
it copies the weights and packs them for its kernels. `unpacked` is the same without packing.
`shared` is what Tapster's workers do (`runtimes/sessions.py`): weights and packed weights are
mapped from a file that the first process makes. PSS is the memory that a process would give back:
what two processes share counts half in each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

WIDTH: Final = 2048
LAYERS: Final = 12
ROWS: Final = (1, 4, 16, 64)
KINDS: Final = ("own copy", "unpacked", "shared")
MIB: Final = 1 << 20


def make(path: Path) -> None:
    """Write the model."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        matrix = random.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]))
        last = f"t{layer}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", last)
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def child(kind: str, model: Path, shelf: Path) -> None:
    """Load the model, time it, then say on request what memory this process takes."""
    from benchmarks import planes

    from tapster.core import heap
    from tapster.runtimes.sessions import open_session, open_shelved
    from tapster.runtimes.weights import split

    began = time.perf_counter()
    data = model.read_bytes()
    if kind == "shared":
        parts = split(data)
        assert parts is not None
        shared = open_shelved(parts, shelf, 1)
        assert shared is not None
        session = shared[0]
        del parts
    else:
        more = {"session.disable_prepacking": "1"} if kind == "unpacked" else None
        session = open_session(data, 1, None, more)
    del data
    loaded = time.perf_counter() - began
    times = {rows: _time(session, rows) for rows in ROWS}
    heap.trim()
    print(json.dumps({"load_s": loaded, "ms": times}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(planes.memory(os.getpid(), "Pss", "Anonymous")), flush=True)


def _time(session: Any, rows: int) -> float:
    """Milliseconds of the fastest of a few runs."""
    import numpy as np

    given = {"x": np.ones((rows, WIDTH), np.float32)}
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        session.run(None, given)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


class Child:
    """A process with the model."""

    def __init__(self, kind: str, model: Path, shelf: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", kind, str(model), str(shelf)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.found = self._hear()

    def memory(self) -> dict[str, int]:
        """Its memory now."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, int] = self._hear()
        return found

    def end(self) -> None:
        """End it."""
        self._process.communicate("", timeout=60)

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, model, shelf = options.child
        child(kind, Path(model), Path(shelf))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "model.onnx")
        heads = ["PSS, one", "PSS, each of two", "private, each of two", "load 1st", "load 2nd"]
        print("| | " + " | ".join([*heads, *(f"{rows} rows" for rows in ROWS)]) + " |")
        print("|---" * (1 + len(heads) + len(ROWS)) + "|")
        for kind in KINDS:
            first = Child(kind, folder / "model.onnx", folder / "shelf")
            alone = first.memory()["Pss"]
            second = Child(kind, folder / "model.onnx", folder / "shelf")
            both = [first.memory(), second.memory()]
            cells = [f"{alone / MIB:.0f} MiB"]
            cells += [
                f"{sum(m[word] for m in both) / 2 / MIB:.0f} MiB" for word in ("Pss", "Anonymous")
            ]
            cells += [f"{each.found['load_s']:.2f} s" for each in (first, second)]
            cells += [f"{second.found['ms'][str(rows)]:.1f} ms" for rows in ROWS]
            print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
            first.end()
            second.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
