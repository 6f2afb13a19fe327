"""What is to be predicted: the task, the classes, and rows held out for the final measurement."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.training.features import Index, anonymous, called, refuse_infinities
from tapster.training.models import Classes, TaskName

MOST_CLASSES: Final = 1000
HELD_OUT: Final = 0.2


@dataclass(frozen=True)
class Target:
    """`values` are class codes int64, or float64 numbers where `classes` is empty."""

    name: str
    task: TaskName
    classes: Classes
    values: Array


def drop_missing(frame: pl.DataFrame, name: str, warnings: list[str]) -> pl.DataFrame:
    """The rows that have a target. Raises TapsterError when the column or every value is absent."""
    if name not in frame.columns:
        raise TapsterError(
            "unprocessable",
            f"there is no column {name!r} to predict",
            hint=f"choose one of: {', '.join(frame.columns[:20])}",
            field="target",
        )
    values = anonymous(frame[name])
    present = values.is_not_null()
    if values.dtype.is_float():
        present &= values.is_not_nan()
    gone = frame.height - int(present.sum())
    if gone == frame.height:
        raise _useless(name, "has no values", "choose another column to predict")
    if gone:
        warnings.append(f"{gone} rows without a value of {name!r} were dropped")
    return frame.filter(present)


def read(series: pl.Series, task: str, warnings: list[str]) -> Target:
    """Read the target; `task` may be `auto`. Raises TapsterError(unprocessable)."""
    name, series = series.name, anonymous(series)
    dtype = series.dtype
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum)):
        raise _useless(name, f"has type {called(dtype)}", "predict numbers, booleans or text")
    distinct = series.n_unique()
    if distinct == 1:
        raise _useless(
            name, "is constant: there is nothing to learn", "choose another column to predict"
        )
    chosen = task if task != "auto" else detect(series)
    if chosen == "regression":
        return _numbers(name, series)
    if task == "auto" and dtype.is_numeric() and distinct > 2:
        warnings.append(
            f"{name!r} has {distinct} distinct whole numbers and was taken for classes;"
            " train with task regression to predict a quantity"
        )
    return _classes(name, series, chosen)


def detect(series: pl.Series) -> str:
    """Text and booleans are classes; so are few distinct whole numbers, or two of them."""
    distinct = series.n_unique()
    if series.dtype.is_numeric():
        few = distinct <= min(20, max(2.0, len(series) ** 0.5))
        whole = series.dtype.is_integer() or bool((series == series.round()).all())
        if not (whole and few):
            return "regression"
    return "binary" if distinct == 2 else "multiclass"


def _numbers(name: str, series: pl.Series) -> Target:
    if not series.dtype.is_numeric():
        raise _useless(
            name,
            f"has type {called(series.dtype)}, and a regression predicts numbers",
            "train with task auto, or turn the column into numbers with `tapster data clean`",
        )
    values = series.cast(pl.Float64).to_numpy()
    refuse_infinities(values, name)
    return Target(name, "regression", [], values)


def _classes(name: str, series: pl.Series, task: str) -> Target:
    distinct = series.n_unique()
    if task == "binary" and distinct != 2:
        raise _useless(name, f"has {distinct} classes, not two", "train with task multiclass")
    plain = _plain(name, series)
    classes, values, counts = np.unique(plain.to_numpy(), return_inverse=True, return_counts=True)
    if distinct > MOST_CLASSES:
        raise _useless(
            name,
            f"has {distinct} classes; at most {MOST_CLASSES} can be learnt",
            "group the rare ones, or train with task regression if it is a quantity",
        )
    lonely = [str(c) for c, count in zip(classes.tolist(), counts, strict=True) if count < 2]
    if lonely:
        shown = ", ".join(repr(c[:40]) for c in lonely[:5])
        raise _useless(
            name,
            f"has {len(lonely)} of {len(classes)} classes with one row only: {shown}",
            "a class needs two rows at least: merge or drop rare classes with"
            " `tapster data clean`, or choose another target",
        )
    kind: TaskName = "binary" if len(classes) == 2 else "multiclass"
    return Target(name, kind, classes.tolist(), values.astype(np.int64).reshape(-1))


def _plain(name: str, series: pl.Series) -> pl.Series:
    """Labels as str, bool, int64 or (only where they are not whole) float32."""
    dtype = series.dtype
    if dtype == pl.Boolean:
        return series
    if not dtype.is_numeric():
        return series.cast(pl.String)
    wide = series.cast(pl.Float64)
    refuse_infinities(wide.to_numpy(), name)
    whole = dtype.is_integer() or bool((wide == wide.round()).all())
    plain = series.cast(pl.Int64 if whole else pl.Float32, strict=False)
    if plain.null_count() or plain.n_unique() < series.n_unique():
        raise _useless(
            name,
            "has numbers that a label cannot hold: it has 64 bits if whole, else 32",
            "turn the column into text with `tapster data clean`, or train with task regression",
        )
    return plain


def hold_out(target: Target, seed: int) -> tuple[Index, Index]:
    """Row numbers to train on and to test on: a fifth of every class, two rows kept to train on.

    Raises TapsterError(unprocessable) when there are too few rows for either.
    """
    generator = np.random.default_rng(seed)
    groups = (
        [np.flatnonzero(target.values == c) for c in range(len(target.classes))]
        if target.classes
        else [np.arange(len(target.values))]
    )
    test = []
    for rows in groups:
        count = max(0, min(round(HELD_OUT * len(rows)), len(rows) - 2))
        test.append(generator.permutation(rows)[:count])
    held = np.sort(np.concatenate(test)).astype(np.intp)
    if len(held) < 2:
        raise TapsterError(
            "unprocessable",
            f"{len(target.values)} rows are too few to hold some out for testing",
            hint="train on at least 10 rows, and a few of every class",
        )
    return np.setdiff1d(np.arange(len(target.values)), held), held


def recorded(parts: Array, target: Target) -> tuple[Index, Index, Index]:
    """Rows of a recorded split (0, 1, 2): train, validation, test.

    Raises TapsterError(unprocessable) when no row trains or tests, or a class is not trained.
    """
    train, validation, test = (np.flatnonzero(parts == part) for part in (0, 1, 2))
    for rows, what in ((train, "to train on"), (test, "to test on")):
        if len(rows) < 2:
            raise TapsterError(
                "unprocessable",
                f"the split leaves {len(rows)} rows {what}",
                hint="make another split with `tapster data split`",
                field="split",
            )
    for code, label in enumerate(target.classes):
        count = int((target.values[train] == code).sum())
        if count < 2:
            raise TapsterError(
                "unprocessable",
                f"the split leaves {count} rows of class {label!r} to train on",
                hint="make a stratified split with `tapster data split`",
                field="split",
            )
    return train, validation, test


def _useless(name: str, problem: str, hint: str) -> TapsterError:
    message = f"the target {name!r} {problem}"
    return TapsterError("unprocessable", message, hint=hint, field="target")


def spelled(value: Any) -> str:
    """A class as a JSON object's key."""
    return str(value).lower() if isinstance(value, bool) else str(value)
