"""Setting up the comparison of algorithms: which ones, on which folds, by which metric."""

from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.training import trainers
from tapster.training.assignment import Assignment, Table
from tapster.training.candidates import Fold, Judge, folds_of
from tapster.training.features import Index
from tapster.training.search import NAIVE, Plan, Search
from tapster.training.vocabulary import DEFAULT, DEFAULT_SECONDS, metrics_of

SEARCHED_ROWS: Final = 30_000
SMALL: Final = 5_000
REPEATS: Final = 2


def compare(work: Assignment, table: Table) -> Search:
    """Screen, search and compare again. Raises TapsterError(unprocessable)."""
    metric = _metric(work, table.target.task)
    algorithms = _algorithms(work, table)
    folds, repeats = _folds(work, table)
    judge = Judge(table.features, table.target, folds, metric, table.problem)
    trials, seconds = _trials(work), work.task["time_limit"]
    if trials is None and seconds is None:
        seconds = DEFAULT_SECONDS
    plan = Plan(algorithms, work.task["search"] or "tpe", trials, seconds)

    def report(share: float, message: str, board: list[dict[str, Any]]) -> None:
        work.context.progress(0.05 + 0.8 * share, "searching", message, leaderboard=board)

    search = Search(judge, plan, report)
    search.run()
    if repeats:
        again = Judge(table.features, table.target, repeats, metric, table.problem)
        search.look_again(again)
    return search


def _metric(work: Assignment, task: str) -> str:
    metric = str(work.task["metric"] or DEFAULT[task])
    if metric not in metrics_of(task):
        raise TapsterError(
            "unprocessable",
            f"metric {metric!r} does not fit a {task} target",
            hint=f"choose one of: {', '.join(metrics_of(task))}",
            field="metric",
        )
    return metric


def _trials(work: Assignment) -> int | None:
    """One algorithm by itself is searched only when that was asked for."""
    trials: int | None = work.task["trials"]
    if trials is None and work.algorithm != "auto" and not work.task["search"]:
        return 0
    return trials


def _algorithms(work: Assignment, table: Table) -> list[str]:
    if work.algorithm == "auto":
        return _every(work, table)
    trainer = trainers.get(work.algorithm)
    if table.target.task not in trainer.tasks:
        fitting = [n for n in trainers.names() if table.target.task in trainers.get(n).tasks]
        raise TapsterError(
            "unprocessable",
            f"{work.algorithm} does not do {table.target.task}, which the target"
            f" {table.target.name!r} asks for",
            hint=f"choose one of: {', '.join(fitting)}",
            field="algorithm",
        )
    if missing := trainers.absent(trainer):
        raise trainers.not_installed(work.algorithm, missing)
    return sorted({NAIVE, work.algorithm})


def _every(work: Assignment, table: Table) -> list[str]:
    chosen = []
    for name in trainers.names():
        trainer = trainers.get(name)
        if table.target.task not in trainer.tasks:
            continue
        if trainers.absent(trainer):
            work.warn(f"{name} is not installed and was left out: pip install 'tapster[boost]'")
        elif len(table.train) > trainer.largest:
            work.warn(f"{name} is too slow for {len(table.train)} rows and was left out")
        else:
            chosen.append(name)
    return chosen


def _validation_fold(table: Table) -> list[Fold]:
    """The recorded split's own validation rows judge; then they are trained on as well."""
    fold = (table.train, table.validation)
    table.train = np.union1d(table.train, table.validation).astype(np.intp)
    return [fold]


def _folds(work: Assignment, table: Table) -> tuple[list[Fold], list[Fold]]:
    """Folds to search on and, where rows are few, further ones to compare the best again."""
    if len(table.validation):
        return _validation_fold(table), []
    count, rows = _count(work, table), table.train
    if len(rows) > SEARCHED_ROWS:
        rows = _sample(table, count, work.seed)
        work.warn(
            f"algorithms were compared on {len(rows)} of {len(table.train)} rows to train on;"
            " the winner was then trained on all of them"
        )
    first = folds_of(table.target, rows, count, work.seed)
    if len(rows) > SMALL or _trials(work) == 0:
        return first, []
    seeds = range(work.seed + 1, work.seed + 1 + REPEATS)
    return first, [fold for seed in seeds for fold in folds_of(table.target, rows, count, seed)]


def _sample(table: Table, folds: int, seed: int) -> Index:
    """About `SEARCHED_ROWS` rows to train on, of every class its share and one a fold at least."""
    generator = np.random.default_rng(seed)
    rows, drawn = table.train, []
    codes = table.target.values[rows] if table.target.classes else np.zeros(len(rows), np.int64)
    for code in np.unique(codes):
        ours = rows[codes == code]
        share = round(SEARCHED_ROWS * len(ours) / len(rows))
        size = min(len(ours), max(share, folds))
        drawn.append(generator.choice(ours, size, replace=False))
    return np.sort(np.concatenate(drawn))


def _count(work: Assignment, table: Table) -> int:
    count = int(work.task["cv"] or 5)
    if len(table.train) < count:
        raise TapsterError(
            "unprocessable",
            f"{len(table.train)} rows to train on are fewer than {count} folds",
            hint="use fewer folds (--cv) or more rows",
            field="cv",
        )
    if not table.target.classes:
        return count
    smallest = int(np.bincount(table.target.values[table.train]).min())
    if smallest < count:
        work.warn(f"the rarest class has {smallest} rows to train on, so there are as many folds")
    return max(2, min(count, smallest))
