"""Tapster beside the usual ways of serving a model, each on one core: requests a second, p50, p99.

Every server answers the same requests with the same model: JSON and binary tensors over HTTP, and
gRPC, where it speaks them. It runs alone, on one core, while `load.py` drives it from another;
rounds take turns, and the medians are compared. Tapster runs as it is installed: its control plane
on the same core, keys checked, usage metered, metrics counted. Each peer has a virtual environment
of its own under `.venvs`, made here from the requirements in its file, and is set up as fast as
its authors' documents allow. Exit code 0 if the goals are met, 1 if not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import report, subjects, wires  # noqa: E402 - found from the line above
from benchmarks.load import Plan  # noqa: E402
from benchmarks.peers import (  # noqa: E402
    PEERS,
    Address,
    Peer,
    ensure_environment,
    on_core,
    peer_running,
    say,
    wait_for_answer,
)
from benchmarks.report import ALONE, OURS, Cell, Result  # noqa: E402
from benchmarks.subjects import Subject  # noqa: E402

from tapster.client.transport import read_run  # noqa: E402
from tapster.contract.errors import TapsterError  # noqa: E402

CASES: Final = 64
MOST_BYTES: Final = 8 << 20
# What both sides must have in one version, or they would not run the same model.
SHARED: Final = ("numpy", "onnxruntime", "scikit-learn")
# Rows on their way at once, beyond which a round would be too short for a heavy model.
MOST_ROWS: Final = {"forest": 1 << 20, "cnn": 512, "bert": 256}
HEAVY_CONNECTIONS: Final = 8
HEAVY_SECONDS: Final = 2.0  # times as long: what batches finish at the edges must not matter


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the models, the folder, the cores, the length of a round."""

    subjects: dict[str, Subject]
    folder: Path
    server_cpu: int
    load_cpu: int
    seconds: float

    def length(self, cell: Cell) -> float:
        """Seconds of load for a cell."""
        return self.seconds * (1.0 if cell.model == "forest" else HEAVY_SECONDS)


class Contestant(Protocol):
    """Something to measure."""

    label: str
    cells: list[Cell]

    def visit(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Measure cells of one model and number of workers, with one start.

        Raises RuntimeError or TapsterError when it does not run or answer.
        """
        ...


# -- the contestants


class Alone:
    """ONNX Runtime in a loop, without a server."""

    label = ALONE

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells

    def visit(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """See Contestant."""
        import numpy as np

        for cell in cells:
            subject = bench.subjects[cell.model]
            path = bench.folder / "rows.npy"
            np.save(path, subject.batch(0, cell.batch)[0])
            model = subject.folder / "model.onnx"
            length = str(bench.length(cell))
            yield cell, _printed("inprocess.py", str(model), str(path), length, bench.server_cpu)


class Server(Protocol):
    """How a server is run with a model."""

    def __call__(self, bench: Bench, cell: Cell) -> Any:
        """A context manager that gives its Address."""
        ...


class Served:
    """A server: one of the peers, or ourselves."""

    def __init__(self, label: str, cells: list[Cell], run: Server, checked: bool = True) -> None:
        self.label = label
        self.cells = cells
        self._run = run
        self._checked = checked

    def visit(self, bench: Bench, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """See Contestant."""
        with self._run(bench, cells[0]) as address:
            for cell in cells:
                if cell.wire == "grpc" and not address.grpc_port:
                    raise RuntimeError("it has no gRPC port")
                plan = plan_for(bench, cell, address, self._checked)
                wait_for_answer(plan)
                path = bench.folder / "plan.json"
                path.write_text(json.dumps(asdict(plan)))
                yield cell, _printed("load.py", str(path))


def plan_for(bench: Bench, cell: Cell, address: Address, checked: bool) -> Plan:
    """The load of a cell on a server."""
    subject = bench.subjects[cell.model]
    port = address.grpc_port if cell.wire == "grpc" else address.http_port
    host = f"127.0.0.1:{port}"
    bodies: list[str] = []
    expected: list[list[float]] = []
    size = 0
    while len(bodies) < CASES and size < MOST_BYTES:
        rows, scores = subject.batch(len(bodies), cell.batch)
        body, extra = wires.spell(cell.wire, cell.model, subject.input, rows)
        if cell.wire != "grpc":
            path = wires.infer_path(cell.model)
            body = wires.http_request(path, host, address.headers, body, extra)
        bodies.append(b64encode(body).decode())
        expected.append(scores)
        size += len(body)
    metadata = {name.lower(): text for name, text in address.headers.items()}
    seconds = bench.length(cell)
    return Plan(
        wire=cell.wire,
        host="127.0.0.1",
        port=port,
        bodies=bodies,
        expected=expected,
        output=subject.output if checked else "",
        headers={":authority": host, ":path": wires.METHOD, **metadata},
        connections=cell.connections,
        seconds=seconds,
        warm_up=min(seconds / 3, 2.0),
        cpu=bench.load_cpu,
        server=address.process,
    )


def _printed(script: str, *arguments: object) -> Result:
    """What a program of ours printed about one measurement."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"{script} failed: {done.stderr[-1000:]}")
    result: Result = json.loads(done.stdout)
    return result


@contextmanager
def tapster_running(bench: Bench, cell: Cell) -> Iterator[Address]:
    """An installation on its core; at its first start, the model is imported and deployed."""
    import tapster

    home = bench.folder / f"home-{cell.model}"
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.environ.update(TAPSTER_WORKERS=str(cell.workers), TAPSTER_GRPC_PORT="0")
    with on_core(bench.server_cpu):
        client = tapster.connect(home=home)
    with client:
        if not client.endpoints():
            client.models_import(cell.model, bench.subjects[cell.model].folder / "model.onnx")
            client.deploy(cell.model)
        running = read_run(home)
        assert running is not None
        http, grpc = urlsplit(client.rest_url).port, running.get("grpc_port", 0)
        headers = {"Authorization": f"Bearer {client.address.key}"}
        yield Address(http or 0, int(grpc), int(running["pid"]), headers)


# -- measuring


def measure(
    contestants: Sequence[Contestant], bench: Bench, rounds: int
) -> dict[tuple[str, Cell], list[Result]]:
    """Rounds in turns; a server that fails with a model is left out of the following ones."""
    found: dict[tuple[str, Cell], list[Result]] = {}
    failed: set[tuple[str, str]] = set()
    for number in range(1, rounds + 1):
        for one in contestants:
            for (model, _), cells in groupby(one.cells, lambda cell: (cell.model, cell.workers)):
                if (one.label, model) in failed:
                    continue
                try:
                    for cell, result in one.visit(bench, list(cells)):
                        found.setdefault((one.label, cell), []).append(result)
                        say(f"round {number}: {one.label}: {cell}: {report.spell(result)}")
                except (RuntimeError, TapsterError) as error:
                    failed.add((one.label, model))
                    say(f"round {number}: {one.label} failed: {error}")
    return found


def choose_cores() -> tuple[int, int]:
    """The servers' core and the load generator's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("warning: only one core; server and load generator share it")
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"warning: the machine is not quiet (load {load:.1f}); trust ratios, not absolutes")
    return cores[0], cores[-1]


# -- what to measure


def default_cells(peer: Peer | None) -> list[Cell]:
    """What decides the goals; `peer` is None for ourselves."""
    small = [Cell("forest", wire) for wire in (peer.wires if peer else wires.WIRES)]
    if peer is not None:
        return small
    heavy = [
        Cell(model, wire, connections=HEAVY_CONNECTIONS)
        for model in ("cnn", "bert")
        for wire in wires.WIRES
    ]
    many = [Cell("forest", connections=64, workers=workers) for workers in (1, 2)]
    return [*small, *many, *heavy]


def chosen_cells(options: argparse.Namespace, peer: Peer | None) -> list[Cell]:
    """All combinations of what was asked for and `peer` has."""
    cells = [
        Cell(model, wire, batch, connections)
        for model, wire, batch, connections in product(
            options.models, options.wires, options.batches, options.connections
        )
        if batch * connections <= MOST_ROWS[model]
    ]
    if peer is None:
        return cells
    return [cell for cell in cells if cell.wire in peer.wires and cell.model in peer.models]


def cells_alone(theirs: Sequence[Cell]) -> list[Cell]:
    """The loops without a server that heavy models are compared with."""
    return sorted({
        replace(cell, wire="", connections=1, workers=1)
        for cell in theirs
        if cell.model != "forest"
    })  # fmt: skip


def assemble(options: argparse.Namespace) -> list[Contestant]:
    """Tapster, the peers that can be installed, and ONNX Runtime alone."""
    constraints = "".join(f"{name}=={version(name)}\n" for name in SHARED)
    found: list[Contestant] = []
    cells = chosen_cells if options.matrix else lambda _, peer: default_cells(peer)
    for peer in PEERS:
        wanted = cells(options, peer) if peer.name in options.peers else []
        if not wanted:
            continue
        if problem := ensure_environment(peer, constraints):
            say(f"{peer.label} cannot be installed: {problem}")
        found.append(Served(peer.label, wanted, _runner(peer), peer.name != "bare"))
    if not options.without_tapster:
        found.append(Served(OURS, cells(options, None), tapster_running))
    if alone := cells_alone([cell for one in found for cell in one.cells]):
        found.append(Alone(alone))
    return found


def _runner(peer: Peer) -> Server:
    return lambda bench, cell: peer_running(
        peer, bench.subjects[cell.model].folder, bench.server_cpu
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `matrix` says that cells were chosen by it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    add = parser.add_argument
    add("--seconds", type=float, help="of load a measurement (4; --full: 2)")
    add("--rounds", type=int, help="(3; --full: 1)")
    add("--peers", nargs="*", choices=names, default=names, metavar="PEER", help=", ".join(names))
    add("--models", nargs="+", choices=list(subjects.MAKERS))
    add("--wires", nargs="+", choices=wires.WIRES)
    add("--batches", nargs="+", type=int, metavar="ROWS", help="rows a request")
    add("--connections", nargs="+", type=int, metavar="N")
    add("--full", action="store_true", help="all models, wires, batches of 1, 8 and 64 rows, and\n"
        "1, 32 and 256 connections: half an hour a round")  # fmt: skip
    add("--quick", action="store_true", help="one round of 1 s: does it work?")
    add("--without-tapster", action="store_true", help="measure only the peers")
    add("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    axes = ("models", "wires", "batches", "connections")
    options.matrix = options.full or any(getattr(options, name) for name in axes)
    options.models = options.models or (list(subjects.MAKERS) if options.full else ["forest"])
    options.wires = options.wires or list(wires.WIRES)
    options.batches = options.batches or ([1, 8, 64] if options.full else [1])
    options.connections = options.connections or ([1, 32, 256] if options.full else [32])
    short = options.quick or options.full
    options.rounds = options.rounds or (1 if short else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0 if options.full else 4.0)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = parse(arguments)
    server_cpu, load_cpu = choose_cores()
    with tempfile.TemporaryDirectory(prefix="tapster-benchmark-") as name:
        folder = Path(name)
        contestants = assemble(options)
        models = sorted({cell.model for one in contestants for cell in one.cells})
        made = {model: subjects.make(model, folder) for model in models}
        bench = Bench(made, folder, server_cpu, load_cpu, options.seconds)
        rounds = measure(contestants, bench, options.rounds)
    medians = report.medians(rounds)
    planned = [(one.label, cell) for one in contestants for cell in one.cells]
    judge = report.Judge(medians, planned, PEERS)
    verdicts = [] if options.without_tapster else judge.verdicts()
    if options.json:
        print(report.as_json(medians, rounds, verdicts))
    else:
        print(report.tables(medians))
        print(report.spell_goals(verdicts))
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
