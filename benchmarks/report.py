"""What the measurements of `serving.py` mean: medians, tables in Markdown, and the goals."""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from benchmarks.peers import BARE, Peer

OURS: Final = "Tapster"
ALONE: Final = "no server: ONNX Runtime in a loop"
OF_BARE: Final = 0.35
OF_ALONE: Final = 0.95
OF_ONE_WORKER: Final = 0.9
FIGURES: Final = ("rate", "p50_ms", "p99_ms", "cpu_us", "errors", "generator_busy")

Result = dict[str, Any]


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement: a model, a wire, rows a request, connections, and our workers."""

    model: str
    wire: str = "json"
    batch: int = 1
    connections: int = 32
    workers: int = 1

    def __str__(self) -> str:
        rows = "1 row" if self.batch == 1 else f"{self.batch} rows"
        callers = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        if not self.wire:
            return f"{self.model}, {rows}"
        more = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{self.model}, {self.wire}, {rows}, {callers}{more}"


@dataclass(frozen=True)
class Verdict:
    """A goal, what was measured, and whether it is met."""

    goal: str
    measured: str
    met: bool


Medians = dict[tuple[str, Cell], Result]


def medians(rounds: dict[tuple[str, Cell], list[Result]]) -> Medians:
    """Of each figure over the rounds; what never answered is left out."""
    return {
        key: {name: statistics.median(one[name] for one in results) for name in FIGURES}
        for key, results in rounds.items()
        if results and all(one["requests"] for one in results)
    }


def spell(result: Result) -> str:
    """One measurement in a line."""
    text = (
        f"{result['rate']:,.0f} req/s, p99 {result['p99_ms']:.2f} ms, "
        f"{result['cpu_us']:.1f} us of CPU a request, "
        f"generator {result['generator_busy']:.0%} busy"
    )
    if result["errors"]:
        text += f", {result['errors']} ERRORS, the first: {result['first_error']}"
    return text


def as_json(
    found: Medians, rounds: dict[tuple[str, Cell], list[Result]], verdicts: Sequence[Verdict]
) -> str:
    """Everything as one document."""
    measured = [
        {"server": label, **asdict(cell), "medians": median, "rounds": rounds[label, cell]}
        for (label, cell), median in found.items()
    ]
    goals = [asdict(verdict) for verdict in verdicts]
    return json.dumps({"measured": measured, "goals": goals}, indent=2)


# -- tables


def tables(found: Medians) -> str:
    """Markdown: for each model, wire and load, the servers and ours in multiples of them."""
    cells = sorted({cell for _, cell in found if cell.wire and cell.workers == 1})
    return "\n\n".join(_table(found, cell) for cell in cells) + "\n"


def _table(found: Medians, cell: Cell) -> str:
    ours = found.get((OURS, cell))
    lines = [
        f"**{cell}**",
        "",
        "| server | req/s | p50 ms | p99 ms | CPU us a call | our req/s : its | its p99 : ours |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    rows = [(label, one) for (label, where), one in found.items() if where == cell]
    rows += [
        (f"{OURS}, {where.workers} workers", one)
        for (_, where), one in found.items()
        if where.workers > 1 and replace(where, workers=1) == cell
    ]
    if (alone := found.get((ALONE, Cell(cell.model, "", cell.batch, 1)))) is not None:
        rows.append((ALONE, alone))
    for label, one in sorted(rows, key=lambda row: float(row[1]["rate"])):
        lines.append(f"| {label} | {_figures(one)} {_ratios(label, one, ours)}")
    return "\n".join(lines)


def _figures(one: Result) -> str:
    return f"{one['rate']:,.0f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {one['cpu_us']:.0f}"


def _ratios(label: str, one: Result, ours: Result | None) -> str:
    if ours is None or label.startswith(OURS):
        return "| | |"
    more, longer = ours["rate"] / one["rate"], one["p99_ms"] / ours["p99_ms"]
    return f"| {more:.2f} | {longer:.2f} |"


# -- goals


class Judge:
    """What was promised, as far as it was to be measured; who did not run is not beaten."""

    def __init__(
        self, found: Medians, planned: Iterable[tuple[str, Cell]], peers: Iterable[Peer]
    ) -> None:
        self._found = found
        self._planned = set(planned)
        self._peers = tuple(peers)

    def verdicts(self) -> list[Verdict]:
        """All goals that the planned measurements decide."""
        found = [*self._beaten(), *self._of_bare(), *self._quickest(), *self._grpc()]
        found += [*self._heavy(), *self._workers()]
        return [*found, self._faultless()]

    def _faultless(self) -> Verdict:
        ours = {cell for label, cell in self._planned if label == OURS}
        lost = [cell for cell in ours if (OURS, cell) not in self._found]
        wrong = sum(one["errors"] for (label, _), one in self._found.items() if label == OURS)
        measured = f"{wrong:.0f}" if not lost else f"{len(lost)} measurements without an answer"
        return Verdict("no wrong or failed answer of ours", measured, not (wrong or lost))

    def _compare(
        self,
        goal: str,
        ours: Cell,
        other: tuple[str, Cell],
        least: float,
        figure: str = "rate",
    ) -> list[Verdict]:
        """Whether we have `least` times what the other has: of time, that is what it takes more."""
        if not {(OURS, ours), other} <= self._planned:
            return []
        mine, theirs = self._found.get((OURS, ours)), self._found.get(other)
        if mine is None or theirs is None:
            return [Verdict(goal, "did not run", False)]
        ratio = mine[figure] / theirs[figure]
        ratio = ratio if figure == "rate" else 1 / ratio
        return [Verdict(goal, f"{ratio:.2f}", ratio >= least)]

    def _beaten(self) -> Iterator[Verdict]:
        cell = Cell("forest")
        for peer in self._peers:
            if peer.goal is not None:
                goal = f"small model: {peer.goal:g} times the req/s of {peer.label}"
                yield from self._compare(goal, cell, (peer.label, cell), peer.goal)

    def _of_bare(self) -> list[Verdict]:
        cell = Cell("forest")
        goal = f"small model: {OF_BARE} of the bare protocol's req/s"
        return self._compare(goal, cell, (BARE, cell), OF_BARE)

    def _quickest(self) -> Iterator[Verdict]:
        """The lowest p99 of all; on gRPC of all that are written in Python."""
        for wire in ("json", "binary", "grpc"):
            cell = Cell("forest", wire)
            for peer in self._peers:
                judged = peer.python if wire == "grpc" else peer.label != BARE
                if wire in peer.wires and judged:
                    goal = f"small model, {wire}: a lower p99 than {peer.label}"
                    yield from self._compare(goal, cell, (peer.label, cell), 1.0, "p99_ms")

    def _grpc(self) -> Iterator[Verdict]:
        cell = Cell("forest", "grpc")
        for peer in self._peers:
            if peer.python and "grpc" in peer.wires:
                goal = f"small model, grpc: more req/s than {peer.label}"
                yield from self._compare(goal, cell, (peer.label, cell), 1.0)

    def _heavy(self) -> Iterator[Verdict]:
        """Raw tensors; JSON of long rows costs what it costs, so it is shown and not judged."""
        for label, cell in sorted(self._planned):
            if label == OURS and cell.wire != "json" and cell.connections > 1:
                goal = f"{cell}: {OF_ALONE} of ONNX Runtime's own loop"
                alone = (ALONE, Cell(cell.model, "", cell.batch, 1))
                yield from self._compare(goal, cell, alone, OF_ALONE)

    def _workers(self) -> Iterator[Verdict]:
        for label, cell in sorted(self._planned):
            if label == OURS and cell.workers > 1:
                goal = f"{cell}: {OF_ONE_WORKER} of one worker's requests a CPU-second"
                share = cell.connections // cell.workers
                for connections in dict.fromkeys((cell.connections, share)):
                    one = (OURS, replace(cell, workers=1, connections=connections))
                    shown = f"{goal} with {connections} connections"
                    yield from self._compare(shown, cell, one, OF_ONE_WORKER, "cpu_us")


def spell_goals(verdicts: Sequence[Verdict]) -> str:
    """Markdown: the goals."""
    lines = ["| goal | measured | |", "|---|--:|---|"]
    for verdict in verdicts:
        lines.append(
            f"| {verdict.goal} | {verdict.measured} | {'met' if verdict.met else '**missed**'} |"
        )
    return "\n".join(lines)
