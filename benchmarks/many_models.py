"""A thousand models in one worker: memory a model, time to load, latency beside one model's.

One worker on one core serves copies of a small model, each at an endpoint of its own, while
`load.py` drives it from another core. Printed are: how long loading takes, alone and under
traffic, and what it does to that traffic; memory a model; latency at one endpoint with one model
loaded, with all loaded, and of calls spread over all; and, with a budget that holds only some of
them, how long a call takes whose model must come back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import planes, subjects, wires  # noqa: E402
from benchmarks.load import Plan  # noqa: E402
from benchmarks.planes import Plane  # noqa: E402
from numpy.typing import NDArray  # noqa: E402 - found from the line above

MIB: Final = 1 << 20
CONNECTIONS: Final = 32


class Bench:
    """One kind of model, and how the load is made."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.model, self.rows = _model(options.model, folder)

    def plane(self, name: str, **settings: str) -> Plane:
        """A data plane in a folder of its own."""
        return Plane(self.folder / name, self.options.server_cpu, settings)

    def drive(self, plane: Plane, endpoints: Sequence[int], connections: int) -> "Driving":
        """Begin a round of load that goes to these endpoints by turns."""
        body, headers = wires.spell("json", "", "numeric", self.rows[:1])
        sent = {**headers, **planes.HEADERS}
        requests = [
            wires.http_request(wires.infer_path(f"m{number}"), "127.0.0.1", sent, body, {})
            for number in endpoints
        ]
        plan = Plan(
            wire="json",
            host="127.0.0.1",
            port=plane.port,
            bodies=[b64encode(each).decode() for each in requests],
            expected=[],
            output="",
            connections=connections,
            warm_up=0.5,
            seconds=self.options.seconds,
            cpu=self.options.load_cpu,
            server=plane.pids[0],
        )
        path = self.folder / "plan.json"
        path.write_text(json.dumps(asdict(plan)))
        return Driving(path)


class Driving:
    """A round of load that is going on."""

    def __init__(self, plan: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "load.py", plan], stdout=subprocess.PIPE, text=True
        )

    def result(self) -> dict[str, Any]:
        """What it has seen. Raises RuntimeError for any answer but a good one."""
        text, _ = self._process.communicate()
        found: dict[str, Any] = json.loads(text)
        if found["errors"]:
            raise RuntimeError(f"{found['errors']} errors: {found['first_error']}")
        return found


def loading(bench: Bench) -> None:
    """One model, then all: times, memory, latencies."""
    count = bench.options.models
    with bench.plane("loading") as plane:
        packages = plane.packages(bench.model, bench.rows, count)
        plane.plan(packages[:1])
        plane.start()
        plane.applied()
        before = planes.memory(plane.pids[0], "Rss")["Rss"]
        show("one model loaded, calls to it", bench.drive(plane, [0], CONNECTIONS).result())
        show("the same, one connection", bench.drive(plane, [0], 1).result())
        plane.plan(packages)
        took = plane.applied()
        grown = planes.memory(plane.pids[0], "Rss")["Rss"] - before
        each = took / max(count - 1, 1) * 1e3
        print(f"{count - 1} more loaded: {took:.1f} s, {each:.1f} ms a model")
        print(f"memory: {grown / max(count - 1, 1) / 1024:.0f} KiB a model (RSS)")
        show(f"{count} models loaded, calls to one", bench.drive(plane, [0], CONNECTIONS).result())
        show("the same, one connection", bench.drive(plane, [0], 1).result())
        show("calls spread over all", bench.drive(plane, range(count), CONNECTIONS).result())
        show("the same, one connection", bench.drive(plane, range(count), 1).result())


def under_traffic(bench: Bench) -> None:
    """All models load while one of them is called."""
    with bench.plane("traffic") as plane:
        packages = plane.packages(bench.model, bench.rows, bench.options.models)
        plane.plan(packages[:1])
        plane.start()
        plane.applied()
        driving = bench.drive(plane, [0], 1)
        plane.plan(packages)
        took = plane.applied()
        found = driving.result()
        show("one connection while all load", found)
        print(f"they were loaded in {took:.1f} s, of {bench.options.seconds + 0.5:g} s of load")


def coming_back(bench: Bench) -> None:
    """A budget for some of the models; calls go round all of them, so each must come back."""
    count, budget = bench.options.models, bench.options.budget
    with bench.plane("budget", resident_memory=str(budget)) as plane:
        plane.plan(plane.packages(bench.model, bench.rows, count))
        plane.start()
        took = plane.applied()
        cold = plane.states().count("cold")
        print(f"{count} models loaded and checked in {took:.1f} s; {cold} are cold again")
        memory = planes.memory(plane.pids[0], "Rss")["Rss"]
        print(f"memory: {memory / MIB:.0f} MiB (RSS) with a budget of {budget / MIB:.0f} MiB")
        driving = bench.drive(plane, range(count), 1)
        show("one connection, every call to a cold model", driving.result())


def show(what: str, found: dict[str, Any]) -> None:
    """One line of results."""
    print(
        f"{what}: {found['rate']:.0f} req/s, p50 {found['p50_ms']:.2f} ms,"
        f" p99 {found['p99_ms']:.2f} ms, longest {found['max_ms']:.1f} ms,"
        f" {found['cpu_us']:.0f} us of processor a request",
        flush=True,
    )


def _model(kind: str, folder: Path) -> tuple[Path, NDArray[Any]]:
    if kind == "linear":
        return planes.linear(folder)
    subject = subjects.make(kind, folder)
    return subject.folder / "model.onnx", subject.rows[:4]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--model", choices=("linear", "forest"), default="forest")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--budget", type=int, default=100 * MIB, help="bytes for the last part")
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for name in options.only or PARTS:
            PARTS[name](bench)
    return 0


PARTS: Final = {"loading": loading, "traffic": under_traffic, "returning": coming_back}

if __name__ == "__main__":
    sys.exit(main())
