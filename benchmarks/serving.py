"""Tapster beside the usual ways of serving a model, each on one core: requests a second, p50, p99.

Every server answers the same one-row Open Inference v2 JSON bodies with the same 100-tree random
forest. It runs alone, on one core, while `load.py` drives it from another; rounds take turns, and
the medians are compared. Tapster runs as it is installed: `tapster up` with its control plane on
the same core, keys checked, usage metered, metrics counted. Each peer has a virtual environment
of its own under `.venvs`, made here from the requirements in its file, and is set up as fast as
its authors' documents allow. Exit code 0 if the goals are met, 1 if not.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks.peers import (  # noqa: E402 - found from the line above
    MODEL,
    PATH,
    PEERS,
    Address,
    Workload,
    ensure_environment,
    on_core,
    peer_running,
    say,
    wait_for_answer,
)

from tapster.client.transport import read_run  # noqa: E402
from tapster.contract.errors import TapsterError  # noqa: E402

OURS: Final = "Tapster"
CASES: Final = 64
# What both sides must have in one version, or they would not run the same model.
SHARED: Final = ("numpy", "onnxruntime", "scikit-learn")


@dataclass(frozen=True)
class Contestant:
    """A server by label, and how to run it for one round."""

    label: str
    run: Callable[[], AbstractContextManager[Address]]
    goal: float | None = None


# -- the model and the requests


def make_workload(folder: Path) -> Workload:
    """Train the forest on breast cancer (30 numbers a row); write it as a pickle and as ONNX."""
    import numpy as np
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    table, target = load_breast_cancer(return_X_y=True)
    table = table.astype(np.float32)
    pipeline = make_pipeline(
        SimpleImputer(strategy="median"), RandomForestClassifier(100, random_state=0)
    ).fit(table, target)
    (folder / "model.pickle").write_bytes(pickle.dumps(pipeline))
    inputs = [("numeric", FloatTensorType([None, table.shape[1]]))]
    graph = to_onnx(
        pipeline,
        initial_types=inputs,
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    rows = table[:: len(table) // CASES][:CASES]
    scores: list[list[float]] = pipeline.predict_proba(rows).tolist()
    return Workload(folder, [body_of([float(str(cell)) for cell in row]) for row in rows], scores)


def body_of(row: list[float]) -> str:
    """An Open Inference request of one row."""
    tensor = {"name": "numeric", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    return json.dumps({"inputs": [tensor]})


# -- ourselves


@contextmanager
def tapster_running(home: Path, workload: Workload, cpu: int) -> Iterator[Address]:
    """An installation on its core; at its first start, the model is imported and deployed."""
    import tapster

    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with on_core(cpu):
        client = tapster.connect(home=home)
    with client:
        if not client.endpoints():
            client.models_import(MODEL, workload.folder / "model.onnx")
            client.deploy(MODEL)
        headers = {"Authorization": f"Bearer {client.address.key}"}
        running = read_run(home)
        assert running is not None
        address = Address(client.rest_url + PATH, int(running["pid"]), headers)
        wait_for_answer(address, workload)
        yield address


# -- measuring


def drive(
    address: Address, workload: Workload, options: argparse.Namespace, cpu: int
) -> dict[str, Any]:
    """One round of load; what `load.py` says of it."""
    plan = {
        "url": address.url,
        "headers": address.headers,
        "bodies": workload.bodies,
        "expected": workload.expected,
        "connections": options.connections,
        "seconds": options.seconds,
        "warm_up": min(options.seconds / 3, 2.0),
        "cpu": cpu,
        "server": address.process,
    }
    path = workload.folder / "plan.json"
    path.write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, HERE / "load.py", path], check=False, capture_output=True, text=True
    )
    if not done.stdout:
        raise RuntimeError(f"the load generator failed: {done.stderr[-1000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(
    contestants: Sequence[Contestant],
    workload: Workload,
    options: argparse.Namespace,
    cpu: int,
) -> dict[str, list[dict[str, Any]]]:
    """Rounds in turns; a server that fails is left out of the following ones."""
    rounds: dict[str, list[dict[str, Any]]] = {one.label: [] for one in contestants}
    failed: set[str] = set()
    for number in range(options.rounds):
        for one in contestants:
            if one.label in failed:
                continue
            try:
                with one.run() as address:
                    result = drive(address, workload, options, cpu)
            except (RuntimeError, TapsterError) as error:
                failed.add(one.label)
                say(f"round {number + 1}: {one.label} failed: {error}")
                continue
            rounds[one.label].append(result)
            say(f"round {number + 1}: {one.label}: {spell(result)}")
    return rounds


def spell(result: dict[str, Any]) -> str:
    """One round in a line."""
    text = (
        f"{result['rate']:,.0f} req/s, p99 {result['p99_ms']:.2f} ms, "
        f"{result['cpu_us']:.1f} us of CPU a request, "
        f"generator {result['generator_busy']:.0%} busy"
    )
    if result["errors"]:
        text += f", {result['errors']} ERRORS, the first: {result['first_error']}"
    return text


# -- the report


def summarise(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of each server; those that never answered are left out."""
    figures = ("rate", "p50_ms", "p99_ms", "cpu_us", "errors", "generator_busy")
    return {
        label: {name: statistics.median(one[name] for one in results) for name in figures}
        for label, results in rounds.items()
        if results and all(one["requests"] for one in results)
    }


def table(medians: dict[str, dict[str, float]]) -> str:
    """Markdown: each server's figures, and ours in multiples of them."""
    ours = medians.get(OURS)
    lines = [
        "| server | req/s | p50 ms | p99 ms | CPU us a call | our req/s : its | its p99 : ours |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for label, one in sorted(medians.items(), key=lambda item: item[1]["rate"]):
        ratios = "| | |"
        if ours and label != OURS:
            more, longer = ours["rate"] / one["rate"], one["p99_ms"] / ours["p99_ms"]
            ratios = f"| {more:.1f} | {longer:.1f} |"
        figures = (
            f"{one['rate']:,.0f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {one['cpu_us']:.0f}"
        )
        lines.append(f"| {label} | {figures} {ratios}")
    return "\n".join(lines)


def goals(
    contestants: Sequence[Contestant], medians: dict[str, dict[str, float]]
) -> list[tuple[str, bool]]:
    """What was promised and whether it came true; a peer that did not run is not a success."""
    found: list[tuple[str, bool]] = []
    ours = medians.get(OURS, {"rate": 0.0, "p99_ms": float("inf"), "errors": 1.0})
    for one in contestants:
        if one.goal is None:
            continue
        peer = medians.get(one.label)
        text = f"at least {one.goal:.0f} times the req/s of {one.label}, with a lower p99"
        if peer is None:
            found.append((f"{text} (it did not run)", False))
            continue
        ratio = ours["rate"] / peer["rate"]
        met = ratio >= one.goal and ours["p99_ms"] < peer["p99_ms"]
        found.append((f"{text}: {ratio:.1f} times", met))
    found.append(("no wrong or failed answer of ours", not ours["errors"]))
    return found


def choose_cores() -> tuple[int, int]:
    """The servers' core and the load generator's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("warning: only one core; server and load generator share it")
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"warning: the machine is not quiet (load {load:.1f}); trust ratios, not absolutes")
    return cores[0], cores[-1]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of load a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names, metavar="PEER",
                        help=f"of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--without-tapster", action="store_true", help="measure only the peers")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: does it work?")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    return options


def assemble(
    options: argparse.Namespace, workload: Workload, folder: Path, cpu: int
) -> list[Contestant]:
    """Tapster and the peers that can be installed."""
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED))
    found: list[Contestant] = []
    for peer in PEERS:
        if peer.name not in options.peers:
            continue
        if problem := ensure_environment(peer, constraints):
            say(f"left out: {peer.label} cannot be installed: {problem}")
            continue
        found.append(
            Contestant(peer.label, lambda peer=peer: peer_running(peer, workload, cpu), peer.goal)  # type: ignore[misc]
        )
    if not options.without_tapster:
        home = folder / "home"
        found.append(Contestant(OURS, lambda: tapster_running(home, workload, cpu)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = parse(arguments)
    server_cpu, load_cpu = choose_cores()
    with tempfile.TemporaryDirectory(prefix="tapster-benchmark-") as name:
        folder = Path(name)
        workload = make_workload(folder)
        contestants = assemble(options, workload, folder, server_cpu)
        rounds = measure(contestants, workload, options, load_cpu)
    medians = summarise(rounds)
    verdicts = [] if options.without_tapster else goals(contestants, medians)
    if options.json:
        promised = [{"goal": text, "met": met} for text, met in verdicts]
        print(json.dumps({"medians": medians, "goals": promised, "rounds": rounds}, indent=2))
    else:
        print(table(medians))
        for text, met in verdicts:
            print(f"goal {'met' if met else 'NOT MET'}: {text}")
    return 0 if all(met for _, met in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
