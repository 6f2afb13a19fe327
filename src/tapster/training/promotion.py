"""From the leaderboard to a winner: trained on all rows, converted, and proven to answer alike."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Signature, Tolerance
from tapster.core import settings
from tapster.runtimes import parity
from tapster.training import conversion, goldens, models
from tapster.training.assignment import Assignment, Table
from tapster.training.candidates import Candidate
from tapster.training.models import Model
from tapster.training.search import NAIVE, Search
from tapster.training.vocabulary import gain

CHECKED_ROWS: Final = 2_000
ATTEMPTS: Final = 5
BATCHES: Final = (1, 2, 17)


@dataclass
class Winner:
    """A candidate that was trained on all rows, converted and checked.

    `rejected` are the better ones that were not: {"algorithm", "parameters", "reason"}.
    """

    candidate: Candidate
    model: Model
    graph: bytes
    signature: Signature
    tolerance: Tolerance
    vectors: bytes
    rejected: list[dict[str, Any]]


def promote(work: Assignment, table: Table, search: Search) -> Winner:
    """The best candidate that beats the baseline and answers the same through ONNX.

    Raises TapsterError(unprocessable) when there is none.
    """
    board = search.leaderboard()
    work.context.progress(0.86, "converting", "training the best on all rows", leaderboard=board)
    rejected: list[dict[str, Any]] = []
    for candidate in _first_of_each(promotable(work.algorithm, search)):
        try:
            winner = _prove(work, table, candidate, rejected)
        except TapsterError as error:
            reason = {"algorithm": candidate.algorithm, "parameters": candidate.parameters}
            rejected.append(reason | {"reason": error.message})
            work.warn(f"{candidate.algorithm} was rejected: {error.message}")
            continue
        work.warnings.extend(f"{candidate.algorithm}: {note}" for note in winner.model.notes)
        return winner
    reasons = "; ".join(f"{row['algorithm']}: {row['reason']}" for row in rejected)
    raise TapsterError(
        "unprocessable",
        f"no candidate gives the trainer's answers through ONNX: {reasons}"[:2000],
        hint="train with another algorithm, or with auto and a longer time limit",
    )


def promotable(algorithm: str, search: Search) -> list[Candidate]:
    """Candidates better than the naive one in cross-validation, best first.

    Only who asks for the naive algorithm gets it. Raises TapsterError(unprocessable) when nothing
    is better than it.
    """
    ranking, judge = search.ranking(), search.judge
    if algorithm == NAIVE:
        return ranking
    naive = max((judge.gain(c) for c in ranking if c.algorithm == NAIVE), default=-np.inf)
    others = [c for c in ranking if c.algorithm != NAIVE]
    better = [c for c in others if judge.gain(c) > naive]
    if better:
        return better
    failed = [c for c in search.candidates if c.state == "failed"]
    if not others and failed:
        raise TapsterError(
            "unprocessable",
            f"no algorithm could be trained; {failed[-1].algorithm}: {failed[-1].reason}",
            hint="look at the columns with `tapster data show`, or train with another algorithm",
        )
    best = f"{others[0].algorithm} has {others[0].value:.4g}" if others else "nothing was scored"
    raise TapsterError(
        "unprocessable",
        f"no model beats the naive baseline in {judge.metric}: it has"
        f" {gain(judge.metric, naive):.4g}, {best}",
        hint="try --algorithm auto, --search tpe or another --metric; the columns may also tell"
        " nothing about the target: see `tapster data show`;"
        " `--algorithm naive` registers the baseline itself",
    )


def _first_of_each(candidates: list[Candidate]) -> list[Candidate]:
    """The best of every algorithm: what one converts badly, its neighbours will too."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.algorithm, candidate)
    return list(first.values())[:ATTEMPTS]


def _prove(
    work: Assignment, table: Table, candidate: Candidate, rejected: list[dict[str, Any]]
) -> Winner:
    known, values = table.known, table.target.values[table.train]
    model = _trained(candidate, table)
    signature = models.signature_of(model, table.columns)
    work.context.progress(0.88, "converting", f"converting {candidate.algorithm} to ONNX")
    graph = conversion.convert(
        model,
        known.numeric.shape[1],
        known.text.shape[1],
        work.context.scratch(f"conversion-{len(rejected)}-{time.monotonic_ns()}"),
        settings.load().conversion_timeout,
    )
    tolerance = goldens.tolerance_of(model, 0.0 if model.classes else float(values.std()))
    golden = goldens.golden_rows(known, work.seed)
    for rows in (golden, table.features.take(table.test[:CHECKED_ROWS])):
        if found := goldens.check(model, graph, signature, tolerance, rows):
            raise parity.mismatch_error(found)
    vectors = parity.record(golden.tensors(), model.outputs(golden), BATCHES)
    return Winner(candidate, model, graph, signature, tolerance, vectors, rejected)


def _trained(candidate: Candidate, table: Table) -> Model:
    values = table.target.values[table.train]
    try:
        return models.fit(
            candidate.algorithm, candidate.parameters, table.problem, table.known, values
        )
    except Exception as error:
        raise TapsterError(
            "unprocessable", f"it could not be trained on all rows: {str(error)[:200]}"
        ) from error
