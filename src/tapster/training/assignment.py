"""A training job's task, its data made ready, and what it has to say along the way."""

import os
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column
from tapster.jobs.context import JobContext
from tapster.training import features, targets
from tapster.training.features import Features, Index
from tapster.training.models import Problem
from tapster.training.targets import Target

# A column no dataset can have: control characters are refused at import.
_PART: Final = "\0part"
# Below so many cells threads wait for one another longer than they work.
SINGLE_THREADED: Final = 200_000


@dataclass
class Assignment:
    """What was asked. `task` is the job's JSON (see `runner`)."""

    task: dict[str, Any]
    context: JobContext
    warnings: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return int(self.task["seed"])

    @property
    def algorithm(self) -> str:
        """The algorithm asked for, or `auto`."""
        return str(self.task["algorithm"])

    def warn(self, text: str) -> None:
        """Something the user should know, though it stops nothing."""
        self.warnings.append(text)


@dataclass
class Table:
    """The data, encoded, and which of its rows are for what."""

    columns: tuple[Column, ...]
    features: Features
    target: Target
    problem: Problem
    train: Index
    validation: Index
    test: Index

    @property
    def known(self) -> Features:
        """The rows to train on."""
        return self.features.take(self.train)


def read(work: Assignment) -> Table:
    """Read the job's inputs. Raises TapsterError(unprocessable) for what cannot be learnt from."""
    frame, split = _frame(work)
    frame = targets.drop_missing(frame, work.task["target"], work.warnings)
    target = targets.read(frame[work.task["target"]], work.task["task"] or "auto", work.warnings)
    # Not `frame.drop`: it reads a name like "^.*$" as a pattern.
    others = [name for name in frame.columns if name not in {work.task["target"], _PART}]
    rest = pl.DataFrame([frame[name] for name in others])
    columns = features.columns_of(rest, work.warnings)
    encoded = features.encode(rest, columns, work.warnings)
    if split:
        train, validation, test = targets.recorded(frame[_PART].to_numpy(), target)
    else:
        train, test = targets.hold_out(target, work.seed)
        validation = np.empty(0, np.intp)
    cells = len(encoded) * len(columns)
    threads = len(os.sched_getaffinity(0)) if cells > SINGLE_THREADED else 1
    problem = Problem(target.task, target.classes, work.seed, threads)
    return Table(columns, encoded, target, problem, train, validation, test)


def _frame(work: Assignment) -> tuple[pl.DataFrame, bool]:
    frame = pl.read_parquet(work.context.inputs["data"] / "data.parquet", glob=False)
    if recipe := work.task.get("recipe"):
        frame = _cleaned(work, frame, recipe)
    if "split" not in work.context.inputs:
        return frame, False
    path = work.context.inputs["split"] / "split.parquet"
    parts = pl.read_parquet(path, glob=False)["part"]
    if len(parts) != frame.height:
        raise TapsterError(
            "unprocessable",
            "the split was made for another table",
            hint="make a split of this version with `tapster data split`",
            field="split",
        )
    return frame.with_columns(parts.alias(_PART)), True


def _cleaned(work: Assignment, frame: pl.DataFrame, recipe: dict[str, Any]) -> pl.DataFrame:
    from tapster.datasets.recipes import apply_recipe
    from tapster.training.recipes import refuse_values

    refuse_values(recipe)
    cleaned = apply_recipe(frame.lazy(), recipe)[0].collect()
    if gone := frame.height - cleaned.height:
        work.warn(f"the recipe dropped {gone} of {frame.height} rows, before any were held out")
    return cleaned
