"""Many tenants on one data plane: what they cost, and what one who floods does to the others.

**Metering** is in `metering.py`, **population** in `population.py`.

**Flooding:** `load.py` drives one worker on one core from another core. So many connections, each
with one request on its way, are spread evenly over ten tenants; then nine of these have one
connection each and the tenth has all the others. Compared is what the nine wait: their 99th
percentile with the flooder, in multiples of that without. For orientation: the same where all are
one tenant, so that nobody is protected, and the nine by themselves.

Exit code 0 if the goals are met, 1 if not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

from benchmarks import metering, population, subjects, wires  # noqa: E402 - found from the line above
from benchmarks.load import Plan  # noqa: E402
from benchmarks.planes import Plane, key_grant  # noqa: E402
from benchmarks.report import Verdict, spell_goals  # noqa: E402
from benchmarks.subjects import Subject  # noqa: E402

from tapster.contract.plan import EndpointPlan, Price, TenantGrant, Variant  # noqa: E402

POLITE: Final = 9
GOAL: Final = 1.5
FLOODER: Final = "flooder"
OWNER: Final = "default"
CALLERS: Final = 32
ROUNDS: Final = 3
CASES: Final = 16
QUANTILES: Final = 500
# Models, the wires that they are asked by, and connections in all.
CELLS: Final = {
    ("forest", "json"): 100,
    ("forest", "grpc"): 100,
    ("cnn", "binary"): 40,
    ("cnn", "grpc"): 40,
}

MODELS: Final = tuple(dict.fromkeys(model for model, _ in CELLS))

Results = dict[str, dict[str, Any]]


class Group(NamedTuple):
    """Connections of a tenant; `name` is whom they are counted as."""

    name: str
    tenant: str
    connections: int


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    options: argparse.Namespace

    def plane(self, name: str, **settings: str) -> Plane:
        """A data plane in a folder of its own."""
        return Plane(self.folder / name, self.options.server_cpu, settings)

    def drive(self, plane: Plane, subject: Subject, wire: str, groups: Sequence[Group]) -> Results:
        """What each group has seen, all at the same time."""
        plans = [self._plan(plane, subject, wire, group) for group in groups]
        path = self.folder / "plans.json"
        path.write_text(json.dumps([asdict(plan) for plan in plans]))
        done = subprocess.run(
            [sys.executable, HERE / "load.py", path], stdout=subprocess.PIPE, text=True, check=False
        )
        results: list[dict[str, Any]] = json.loads(done.stdout)
        for group, result in zip(groups, results, strict=True):
            if result["errors"]:
                what = (
                    f"{group.name}: {result['errors']} errors, the first: {result['first_error']}"
                )
                raise RuntimeError(what)
        return {group.name: result for group, result in zip(groups, results, strict=True)}

    def _plan(self, plane: Plane, subject: Subject, wire: str, group: Group) -> Plan:
        key = {"authorization": f"Bearer {key_of(group.tenant)}"}
        bodies = []
        for case in range(CASES):
            rows, _ = subject.batch(case, 1)
            body, headers = wires.spell(wire, "m", subject.input, rows)
            if wire != "grpc":
                path = wires.infer_path("m")
                body = wires.http_request(path, "127.0.0.1", {**headers, **key}, body, {})
            bodies.append(b64encode(body).decode())
        return Plan(
            wire=wire,
            host="127.0.0.1",
            port=plane.grpc_port if wire == "grpc" else plane.port,
            bodies=bodies,
            expected=[subject.batch(case, 1)[1] for case in range(CASES)],
            output=subject.output,
            headers={":authority": "127.0.0.1", ":path": wires.METHOD, **key},
            connections=group.connections,
            warm_up=1.0,
            seconds=self.options.seconds,
            cpu=self.options.load_cpu,
            server=plane.pids[0],
            quantiles=QUANTILES,
        )


def key_of(tenant: str) -> str:
    """The key that a tenant has here."""
    return f"tap_{tenant}"


def serve(
    plane: Plane,
    subject: Subject,
    tenants: Sequence[str],
    grants: Sequence[TenantGrant] = (),
    prices: tuple[Price, ...] = (),
) -> None:
    """Have a worker serve a model of one tenant to these, as `m`."""
    packages = plane.packages(subject.folder / "model.onnx", subject.rows[:4], 1)
    variants = (Variant("m", 1, packages[0].digest),)
    shared = EndpointPlan("ep", OWNER, "m", variants, shared=("*",), prices=prices)
    keys = [key_grant(key_of(tenant), tenant) for tenant in (OWNER, *tenants)]
    plane.serve([shared], packages, keys, grants)
    plane.start()
    plane.applied()


# -- one who floods


def names() -> list[str]:
    """The polite tenants."""
    return [f"polite-{number}" for number in range(POLITE)]


def arrangements(connections: int) -> dict[str, list[Group]]:
    """Who has how many connections."""
    polite, each = names(), connections // (POLITE + 1)
    rest = connections - POLITE
    return {
        "evenly": [Group(name, name, each) for name in (*polite, FLOODER)],
        "flooded": [*(Group(n, n, 1) for n in polite), Group(FLOODER, FLOODER, rest)],
        "as one": [*(Group(n, FLOODER, 1) for n in polite), Group(FLOODER, FLOODER, rest)],
        "alone": [Group(name, name, 1) for name in polite],
    }


def waited(results: Results, share: float) -> float:
    """A percentile of all that the polite ones have waited, in milliseconds."""
    each = [results[name] for name in names()]
    waits = sorted((wait, one["requests"]) for one in each for wait in one["quantiles_ms"])
    left = share * sum(weight for _, weight in waits)
    for wait, weight in waits:
        left -= weight
        if left <= 0:
            return float(wait)
    raise RuntimeError("nobody was answered")


def rates(results: Results) -> tuple[float, float, float]:
    """Requests a second of the polite ones, and of everybody; the server's processor time for each,
    in microseconds."""
    each = {name: result["rate"] for name, result in results.items()}
    everybody = sum(each.values())
    spent = statistics.mean(result["cpu_us"] * each[name] for name, result in results.items())
    return everybody - each.get(FLOODER, 0.0), everybody, spent / everybody


def flooding(bench: Bench) -> Iterator[Verdict]:
    """One flooding and nine polite tenants."""
    heads = ["model, wire", "connections", "polite req/s", "all req/s", "CPU us a call"]
    heads += ["polite p50 ms", "p99 ms", ": evenly"]
    print(f"| {' | '.join(heads)} |")
    print("|---|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for model in bench.options.models:
        place = bench.folder / "flooding"
        place.mkdir(exist_ok=True)
        subject = subjects.make(model, place)
        with bench.plane(f"plane-{model}") as plane:
            serve(plane, subject, [*names(), FLOODER])
            for (name, wire), connections in CELLS.items():
                if name == model:
                    yield _flooded(bench, plane, subject, wire, connections)


def _flooded(bench: Bench, plane: Plane, subject: Subject, wire: str, connections: int) -> Verdict:
    groups = arrangements(connections)
    rounds: dict[str, list[Results]] = {name: [] for name in groups}
    for _ in range(bench.options.rounds):
        for name, found in rounds.items():
            found.append(bench.drive(plane, subject, wire, groups[name]))
    p50, p99 = (
        {
            name: statistics.median(waited(one, share) for one in found)
            for name, found in rounds.items()
        }
        for share in (0.5, 0.99)
    )
    for name, found in rounds.items():
        polite, everybody, spent = (
            statistics.median(each) for each in zip(*map(rates, found), strict=True)
        )
        print(
            f"| {subject.name}, {wire} | {name} | {polite:,.0f} | {everybody:,.0f} | {spent:.1f} |"
            f" {p50[name]:.2f} | {p99[name]:.2f} | {p99[name] / p99['evenly']:.2f} |",
            flush=True,
        )
    ratio = p99["flooded"] / p99["evenly"]
    goal = f"{subject.name}, {wire}: polite p99 under {GOAL} times that without a flooder"
    return Verdict(goal, f"{ratio:.2f}", ratio < GOAL)


def metered(bench: Bench) -> Iterator[Verdict]:
    """The gate, the limits and the counting."""
    subject = subjects.make("forest", bench.folder)
    print("| wire | of the caller | req/s | CPU us a call | more |\n|---|---|--:|--:|--:|")
    for wire in ("json", "grpc"):

        def drive(plane: Plane, wire: str = wire) -> dict[str, Any]:
            return bench.drive(plane, subject, wire, [Group("", "caller", CALLERS)])[""]

        def prepare(
            plane: Plane, grants: tuple[TenantGrant, ...], prices: tuple[Price, ...]
        ) -> None:
            serve(plane, subject, ["caller"], grants, prices)

        yield from metering.measure(wire, bench.options.rounds, bench.plane, prepare, drive)


def populated(bench: Bench) -> Iterator[Verdict]:
    """Very many tenants and keys."""
    options = bench.options
    return population.measure(bench.folder, options.tenants, options.keys, options.changes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="of the flood")
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument("--tenants", type=int, default=10_000, help="how many there are in all")
    parser.add_argument("--keys", type=int, default=10, help="keys of each")
    parser.add_argument("--changes", type=int, default=30, help="keys that are made and revoked")
    parser.add_argument("--only", choices=sorted(PARTS), action="append")
    options = parser.parse_args()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for name in options.only or PARTS:
            verdicts += PARTS[name](bench)
            print()
    print(spell_goals(verdicts))
    return 0 if all(verdict.met for verdict in verdicts) else 1


PARTS: Final = {"metering": metered, "population": populated, "flooding": flooding}

if __name__ == "__main__":
    sys.exit(main())
