"""The job that trains: data in, a sealed and unsigned package out.

What a task holds: dataset, dataset_version, dataset_digest, target, model, task, algorithms,
algorithm, search, trials, cv, metric, time_limit, recipe, split, seed, conversion_timeout.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column, Lineage, Signature, Tolerance
from tapster.jobs.context import JobContext
from tapster.runtimes import package, parity
from tapster.training import conversion, evaluation, features, goldens, metrics, models, targets
from tapster.training import sketches, trainers
from tapster.training.candidates import Candidate, Fold, Judge, folds_of
from tapster.training.features import Features, Index
from tapster.training.models import Model
from tapster.training.search import Plan, Search
from tapster.training.targets import Target

SEARCHED_ROWS: Final = 30_000
CHECKED_ROWS: Final = 2_000
SMALL: Final = 5_000
ATTEMPTS: Final = 5
NAIVE: Final = "naive"
EVALUATION: Final = "evaluation.json"
LIBRARIES: Final = ("scikit-learn", "numpy", "polars", "onnx", "onnxruntime", "skl2onnx")


@dataclass
class Table:
    """The data of a job, encoded, and which of its rows are for what."""

    columns: tuple[Column, ...]
    features: Features
    target: Target
    train: Index
    validation: Index
    test: Index
    threads: int


@dataclass
class Winner:
    """A candidate that was fitted on all training rows, converted and checked."""

    candidate: Candidate
    model: Model
    graph: bytes
    signature: Signature
    tolerance: Tolerance
    vectors: bytes


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """See jobs.context.Runner. The package is left in `context.output("package")`."""
    warnings: list[str] = []
    context.progress(0.01, "reading", "reading the data")
    threads = len(os.sched_getaffinity(0))
    with threadpool_limits(limits=threads):
        table = _read(task, context, warnings, threads)
        search = _search(task, table, context, warnings)
        rejected: list[dict[str, Any]] = []
        winner = _winner(task, table, search, rejected, context, warnings)
        context.progress(0.95, "evaluating", "measuring on held-out rows")
        report = _evaluate(task, table, search, winner, rejected, warnings)
        digest = _seal(task, table, winner, report, context)
    return {
        "digest": digest,
        "task": table.target.task,
        "algorithm": winner.candidate.algorithm,
        "parameters": winner.candidate.parameters,
        "metric": search.judge.metric,
        "metrics": report["metrics"],
        "baseline": report["baseline"],
        "leaderboard": report["leaderboard"],
        "rejected": rejected,
        "rows": report["rows"],
        "trials": len(search.candidates),
        "warnings": warnings,
    }


def _read(
    task: dict[str, Any], context: JobContext, warnings: list[str], threads: int
) -> Table:
    frame = pl.read_parquet(context.inputs["data"] / "data.parquet")
    parts = None
    if "split" in context.inputs:
        parts = pl.read_parquet(context.inputs["split"] / "split.parquet")["part"]
        if len(parts) != frame.height:
            raise TapsterError("unprocessable", "the split was made for another table",
                               hint="make a split of this dataset version", field="split")  # fmt: skip
        frame = frame.with_columns(parts.alias("\0part"))
    frame = targets.drop_missing(frame, task["target"], warnings)
    if parts is not None:
        parts = frame["\0part"]
        frame = frame.drop("\0part")
    target = targets.read(frame[task["target"]], task.get("task") or "auto", warnings)
    rest = frame.drop(task["target"])
    columns = features.columns_of(rest, warnings)
    encoded = features.encode(rest, columns, warnings)
    if parts is None:
        train, test = targets.hold_out(target, task["seed"])
        validation = np.empty(0, np.intp)
    else:
        train, validation, test = targets.recorded(parts.to_numpy(), target)
    return Table(columns, encoded, target, train, validation, test, threads)


def _search(
    task: dict[str, Any], table: Table, context: JobContext, warnings: list[str]
) -> Search:
    metric = task.get("metric") or metrics.DEFAULT[table.target.task]
    if metric not in metrics.of_task(table.target.task):
        raise TapsterError(
            "unprocessable",
            f"metric {metric!r} does not fit a {table.target.task} target",
            hint=f"choose one of: {', '.join(metrics.of_task(table.target.task))}",
            field="metric",
        )
    algorithms = _algorithms(task, table, warnings)
    folds, repeats = _folds(task, table, warnings)
    judge = Judge(table.features, table.target, folds, metric, task["seed"], table.threads)
    plan = Plan(algorithms, task.get("search") or "tpe", _trials(task), task.get("time_limit"))

    def report(share: float, message: str, board: list[dict[str, Any]]) -> None:
        context.progress(0.05 + 0.8 * share, "searching", message, leaderboard=board)

    search = Search(judge, plan, report)
    search.run()
    if repeats:
        again = Judge(table.features, table.target, repeats, metric, task["seed"], table.threads)
        search.look_again(again)
    return search


def _trials(task: dict[str, Any]) -> int | None:
    """One algorithm by itself is searched only when that was asked for."""
    if task.get("trials") is None and task["algorithm"] != "auto" and not task.get("search"):
        return 0
    trials: int | None = task.get("trials")
    return trials


def _algorithms(task: dict[str, Any], table: Table, warnings: list[str]) -> list[str]:
    kind, asked = table.target.task, task["algorithm"]
    if asked != "auto":
        trainer = trainers.get(asked)
        if kind not in trainer.tasks:
            fitting = [n for n in trainers.names() if kind in trainers.get(n).tasks]
            raise TapsterError(
                "unprocessable",
                f"{asked} does not do {kind}, which the target {table.target.name!r} asks for",
                hint=f"choose one of: {', '.join(fitting)}",
                field="algorithm",
            )
        if missing := trainers.absent(trainer):
            raise trainers.not_installed(asked, missing)
        return [NAIVE] if asked == NAIVE else [NAIVE, asked]
    chosen = []
    for name in trainers.names():
        trainer = trainers.get(name)
        if kind not in trainer.tasks:
            continue
        if trainers.absent(trainer):
            warnings.append(f"{name} is not installed and was left out (pip install 'tapster[boost]')")
        elif len(table.train) > trainer.largest:
            warnings.append(f"{name} is too slow for {len(table.train)} rows and was left out")
        else:
            chosen.append(name)
    return chosen


def _folds(
    task: dict[str, Any], table: Table, warnings: list[str]
) -> tuple[list[Fold], list[Fold]]:
    """Folds to search on and, where rows are few, further ones to compare the best again."""
    train, target, seed = table.train, table.target, task["seed"]
    if len(table.validation):
        fold = (train, table.validation)
        table.train = np.union1d(train, table.validation)
        return [fold], []
    asked: int | None = task.get("cv")
    count = asked or 5
    if len(train) < count:
        raise TapsterError(
            "unprocessable",
            f"{len(train)} rows to train on are fewer than {count} folds",
            hint="use fewer folds (--cv) or more rows",
            field="cv",
        )
    if target.classes:
        smallest = int(np.bincount(target.values[train]).min())
        if smallest < count:
            warnings.append(f"the rarest class has {smallest} rows to train on: {smallest} folds")
            count = max(2, smallest)
    rows = train
    if len(train) > SEARCHED_ROWS:
        generator = np.random.default_rng(seed)
        rows = np.sort(generator.choice(train, SEARCHED_ROWS, replace=False))
        warnings.append(
            f"algorithms were compared on {SEARCHED_ROWS} of {len(train)} rows to train on;"
            " the winner was then trained on all of them"
        )
    repeats = [folds_of(target, rows, count, seed + repeat) for repeat in (1, 2)]
    few = len(train) <= SMALL and task["algorithm"] == "auto"
    return folds_of(target, rows, count, seed), repeats[0] + repeats[1] if few else []


def _winner(
    task: dict[str, Any],
    table: Table,
    search: Search,
    rejected: list[dict[str, Any]],
    context: JobContext,
    warnings: list[str],
) -> Winner:
    """The best candidate that beats the baseline and answers the same through ONNX."""
    context.progress(0.86, "converting", "training the best on all rows",
                     leaderboard=search.leaderboard())  # fmt: skip
    tried: set[str] = set()
    for candidate in _promotable(task, search):
        if candidate.algorithm in tried or len(tried) >= ATTEMPTS:
            continue
        tried.add(candidate.algorithm)
        try:
            winner = _convert(task, table, candidate, context, len(tried))
        except TapsterError as error:
            rejected.append({"algorithm": candidate.algorithm, "parameters": candidate.parameters,
                             "reason": error.message})  # fmt: skip
            continue
        for row in rejected:
            warnings.append(f"{row['algorithm']} was rejected: {row['reason']}")
        warnings.extend(f"{candidate.algorithm}: {note}" for note in winner.model.notes)
        return winner
    reasons = "; ".join(f"{row['reason']}" for row in rejected)
    raise TapsterError(
        "unprocessable",
        f"no candidate gives the same answers through ONNX: {reasons}"[:2000],
        hint="train with another algorithm, or with auto and a longer time limit",
    )


def _promotable(task: dict[str, Any], search: Search) -> list[Candidate]:
    """Scored candidates that are better than the naive one in cross-validation, best first."""
    ranking = search.ranking()
    if task["algorithm"] == NAIVE:
        return ranking
    judge = search.judge
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
    said = f"{others[0].algorithm} has {others[0].value:.4g}" if others else "nothing was scored"
    raise TapsterError(
        "unprocessable",
        f"no model beats the naive baseline: {judge.metric} {abs(naive):.4g}, {said}",
        hint="the columns may not tell anything about the target: look at `tapster data show`,"
        " give more time or rows, or train with --algorithm naive to have the baseline itself",
    )


def _convert(
    task: dict[str, Any], table: Table, candidate: Candidate, context: JobContext, number: int
) -> Winner:
    known, values = table.features.take(table.train), table.target.values[table.train]
    try:
        model = models.fit(
            candidate.algorithm, candidate.parameters, table.target.task, table.target.classes,
            known, values, seed=task["seed"], threads=table.threads,
        )  # fmt: skip
    except Exception as error:
        raise TapsterError(
            "unprocessable", f"{candidate.algorithm} could not be trained: {str(error)[:200]}"
        ) from error
    signature = models.signature_of(model, table.columns)
    context.progress(0.88, "converting", f"converting {candidate.algorithm} to ONNX")
    graph = conversion.convert(
        model, known.numeric.shape[1], known.text.shape[1],
        context.scratch(f"conversion-{number}"), task.get("conversion_timeout") or 120.0,
    )  # fmt: skip
    tolerance = goldens.tolerance_of(model, 0.0 if model.classes else float(values.std()))
    golden = goldens.golden_rows(known, task["seed"])
    for rows in (golden, table.features.take(table.test[:CHECKED_ROWS])):
        if found := goldens.check(model, graph, signature, tolerance, rows):
            raise parity.mismatch_error(found)
    vectors = parity.record(golden.tensors(), model.outputs(golden), sizes=(1, 2, 17))
    return Winner(candidate, model, graph, signature, tolerance, vectors)


def _evaluate(
    task: dict[str, Any],
    table: Table,
    search: Search,
    winner: Winner,
    rejected: list[dict[str, Any]],
    warnings: list[str],
) -> dict[str, Any]:
    target, seed = table.target, task["seed"]
    held, values = table.features.take(table.test), table.target.values[table.test]
    report = evaluation.evaluate(target, values, winner.model.scores(held), seed)
    naive = models.fit(
        NAIVE, {}, target.task, target.classes, table.features.take(table.train),
        target.values[table.train], seed=seed, threads=1,
    )  # fmt: skip
    report["baseline"] = metrics.report(target.task, values, naive.scores(held), seed)
    metric = search.judge.metric
    ours, theirs = (report[part][metric]["value"] for part in ("metrics", "baseline"))
    if winner.candidate.algorithm != NAIVE and None not in (ours, theirs):
        if metrics.gain(metric, ours) <= metrics.gain(metric, theirs):
            warnings.append(f"on the held-out rows the model does not beat the baseline in {metric}")
    return report | {
        "metric": metric,
        "rows": {"train": len(table.train), "test": len(table.test)},
        "leaderboard": search.leaderboard(),
        "rejected": rejected,
        "warnings": list(warnings),
    }


def _seal(
    task: dict[str, Any], table: Table, winner: Winner, report: dict[str, Any], context: JobContext
) -> str:
    context.progress(0.97, "sealing", "writing the package")
    folder = context.output("package")
    (folder / package.MODEL).write_bytes(winner.graph)
    (folder / package.PARITY).write_bytes(winner.vectors)
    (folder / EVALUATION).write_text(json.dumps(report, indent=1, sort_keys=True))
    _sketch(folder, table, winner)
    lineage = Lineage(
        dataset=task.get("dataset", ""),
        dataset_version=task.get("dataset_version", 0),
        dataset_digest=task.get("dataset_digest", ""),
        target=task["target"],
        split=task.get("split_lineage") or {"kind": "held-out fifth", "seed": task["seed"]},
        recipe=task.get("recipe") or {},
        algorithm=winner.candidate.algorithm,
        parameters=winner.candidate.parameters,
        seed=task["seed"],
        code_version=version("tapster"),
        environment={name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    )
    return package.seal(
        folder,
        name=task["model"],
        task=table.target.task,  # type: ignore[arg-type]
        signature=winner.signature,
        tolerance=winner.tolerance,
        lineage=lineage,
        metrics=report["metrics"],
        created=time.time(),
    )


def _sketch(folder: Path, table: Table, winner: Winner) -> None:
    """Reference sketches of the training rows, for later drift checks."""
    known = table.features.take(table.train)
    tensors = {"numeric": known.numeric, "text": known.text}
    values = {c.name: tensors[c.tensor][:, c.position] for c in table.columns}
    answers = dict(winner.model.outputs(known))
    if "probabilities" in answers:
        wide = answers.pop("probabilities")
        labels = [targets.lineage_label(label) for label in table.target.classes]
        answers |= {f"probability {label}": wide[:, c] for c, label in enumerate(labels)}
    kinds = {column.name: column.kind for column in table.columns}
    sketches.write_sketches(folder, values, kinds, answers)
