"""The job that trains: data in, a sealed and unsigned package out.

A task holds: dataset, dataset_version, dataset_digest, target, model, task, algorithm, search,
trials, cv, metric, time_limit, recipe, split_lineage, seed. The inputs are `data` (data.parquet)
and, for a recorded split, `split` (split.parquet).
"""

import json
import os
import platform
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from threadpoolctl import threadpool_limits

from tapster.contract.manifest import Lineage
from tapster.jobs.context import JobContext
from tapster.runtimes import package
from tapster.training import assignment, evaluation, metrics, models, sketches, targets, trainers
from tapster.training.assignment import Assignment, Table
from tapster.training.comparing import compare
from tapster.training.promotion import Winner, promote
from tapster.training.search import NAIVE, Search
from tapster.training.vocabulary import gain

EVALUATION: Final = "evaluation.json"
LIBRARIES: Final = ("scikit-learn", "numpy", "polars", "onnx", "onnxruntime", "skl2onnx")
DEFAULTS: Final[dict[str, Any]] = {
    "task": "auto",
    "algorithm": "auto",
    "search": "",
    "trials": None,
    "cv": None,
    "metric": "",
    "time_limit": None,
    "recipe": None,
    "seed": 0,
}


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """See jobs.context.Runner. The package is left in `context.output("package")`."""
    # Read when OpenMP is loaded, later: threads that spin while waiting starve those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    work = Assignment({**DEFAULTS, **task}, context)
    context.progress(0.01, "reading", "reading the data")
    table = assignment.read(work)
    with threadpool_limits(limits=table.problem.threads):
        search = compare(work, table)
        winner = promote(work, table, search)
        context.progress(0.95, "evaluating", "measuring on held-out rows")
        report = _evaluate(work, table, search, winner)
        digest = _seal(work, table, winner, report)
    kept = ("metric", "metrics", "baseline", "leaderboard", "rejected", "rows", "warnings")
    return {
        "digest": digest,
        "task": table.target.task,
        "algorithm": winner.candidate.algorithm,
        "parameters": winner.candidate.parameters,
        "trials": len(search.candidates),
        **{name: report[name] for name in kept},
    }


def _evaluate(work: Assignment, table: Table, search: Search, winner: Winner) -> dict[str, Any]:
    """What goes into the package's evaluation.json: no times, so that equal runs write equally."""
    target, metric = table.target, search.judge.metric
    held, values = table.features.take(table.test), target.values[table.test]
    report = evaluation.evaluate(target, values, winner.model.scores(held), work.seed)
    known = target.values[table.train]
    naive = models.fit(NAIVE, {}, table.problem, table.known, known)
    report["baseline"] = metrics.report(target.task, values, naive.scores(held), work.seed)
    ours, theirs = (report[part][metric]["value"] for part in ("metrics", "baseline"))
    promoted = winner.candidate.algorithm != NAIVE and None not in (ours, theirs)
    if promoted and gain(metric, ours) <= gain(metric, theirs):
        work.warn(f"on the held-out rows the model does not beat the baseline in {metric}")
    return report | {
        "metric": metric,
        "rows": {"train": len(table.train), "test": len(table.test)},
        "leaderboard": search.leaderboard(),
        "rejected": winner.rejected,
        "warnings": list(work.warnings),
    }


def _seal(work: Assignment, table: Table, winner: Winner, report: dict[str, Any]) -> str:
    work.context.progress(0.97, "sealing", "writing the package")
    folder = work.context.output("package")
    (folder / package.MODEL).write_bytes(winner.graph)
    (folder / package.PARITY).write_bytes(winner.vectors)
    (folder / EVALUATION).write_text(json.dumps(report, indent=1, sort_keys=True))
    _sketch(folder, table, winner)
    return package.seal(
        folder,
        name=work.task["model"],
        task=winner.model.task,
        signature=winner.signature,
        tolerance=winner.tolerance,
        lineage=_lineage(work, winner),
        metrics=report["metrics"],
        created=time.time(),
    )


def _lineage(work: Assignment, winner: Winner) -> Lineage:
    task = work.task
    own_split = {"kind": "held-out fifth", "seed": work.seed}
    libraries = {name: version(name) for name in LIBRARIES}
    for module in trainers.get(winner.candidate.algorithm).requires:
        libraries[module] = str(getattr(import_module(module), "__version__", "unknown"))
    return Lineage(
        dataset=task.get("dataset", ""),
        dataset_version=task.get("dataset_version", 0),
        dataset_digest=task.get("dataset_digest", ""),
        target=task["target"],
        split=task.get("split_lineage") or own_split,
        recipe=task["recipe"] or {},
        algorithm=winner.candidate.algorithm,
        parameters=winner.candidate.parameters,
        seed=work.seed,
        code_version=version("tapster"),
        environment={**libraries, "python": platform.python_version()},
    )


def _sketch(folder: Path, table: Table, winner: Winner) -> None:
    """Reference sketches of the training rows and the answers to them, for later drift checks."""
    known = table.known
    tensors = {"numeric": known.numeric, "text": known.text}
    values = {c.name: tensors[c.tensor][:, c.position] for c in table.columns}
    answers = dict(winner.model.outputs(known))
    if "probabilities" in answers:
        wide = answers.pop("probabilities")
        for code, label in enumerate(table.target.classes):
            answers[f"probability {targets.spelled(label)}"] = wide[:, code]
    kinds = {column.name: column.kind for column in table.columns}
    sketches.write_sketches(folder, values, kinds, answers)
