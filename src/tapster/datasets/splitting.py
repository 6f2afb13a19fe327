"""Which rows train, validate and test: random, stratified, by time, by group; repeatable."""

import hashlib
import json
from typing import Any, Final

import numpy as np
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import shown, unknown_column
from tapster.jobs.context import JobContext

TRAIN: Final = 0
VALIDATION: Final = 1
TEST: Final = 2
NAMES: Final = ("train", "validation", "test")
Parts = np.ndarray[Any, np.dtype[np.uint8]]


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Divide a version's rows, in a job process.

    `task` has `digest` (the version's), `kind`, `fractions`, `seed`, `column`. Answers {"digest",
    "rows": [train, validation, test]}; the output `split` holds split.parquet with one uint8
    column `part`.
    """
    context.progress(0.1, "dividing")
    data = pl.scan_parquet(context.inputs["dataset"] / "data.parquet", glob=False)
    how = {key: task[key] for key in ("kind", "fractions", "seed", "column")}
    parts = assign(data, **how)
    context.progress(0.8, "writing")
    path = context.output("split") / "split.parquet"
    pl.DataFrame({"part": parts}).write_parquet(path)
    name = json.dumps({"dataset": task["digest"], **how, "split": 1}, sort_keys=True)
    return {
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "rows": [int(n) for n in np.bincount(parts, minlength=3)],
    }


def assign(
    table: pl.DataFrame | pl.LazyFrame,
    kind: str,
    fractions: list[float],
    seed: int = 0,
    column: str = "",
) -> Parts:
    """Each row's part: uint8 [rows] of `TRAIN`, `VALIDATION`, `TEST`.

    "random" shuffles rows; "stratified" shuffles within each value of `column`, with rounding
    carried over so that the whole keeps its fractions and no value that has enough rows is left
    out of a part; "time" puts the earliest rows of `column` in train and the latest in test,
    rows of one moment together and rows without one in train; "group" keeps rows of one value
    together. Repeats exactly for a seed. Raises TapsterError(invalid) for an unknown column and
    (unprocessable) when a part with a share would get no row.
    """
    lazy = table.lazy()
    names = lazy.collect_schema().names()
    if column and column not in names:
        raise unknown_column(column, names, "column")
    rows = int(lazy.select(pl.len()).collect().item())
    if kind == "random":
        parts = _shuffled(rows, fractions, np.random.default_rng(seed))
    else:
        position = names.index(column)
        values = lazy.select(pl.nth(position).alias("x")).collect().to_series()
        if kind == "stratified":
            parts = _stratified(values, fractions, np.random.default_rng(seed), column)
        elif kind == "time":
            parts = _by_time(values, fractions, column)
        else:
            parts = _by_group(values, fractions, np.random.default_rng(seed))
    _check_filled(parts, kind, fractions, column)
    return parts


def _sizes(rows: int, fractions: list[float]) -> list[int]:
    """Whole numbers near the fractions of `rows`, adding up to it."""
    edges = np.rint(np.cumsum(np.asarray(fractions) / sum(fractions)) * rows).astype(int)
    edges[-1] = rows
    sizes = [int(size) for size in np.diff(edges, prepend=0)]
    # A part that was asked for gets a row while the largest has one to give.
    for part, fraction in enumerate(fractions):
        largest = int(np.argmax(sizes))
        if fraction > 0 and not sizes[part] and sizes[largest] > 1:
            sizes[part] += 1
            sizes[largest] -= 1
    return sizes


def _shuffled(rows: int, fractions: list[float], random: np.random.Generator) -> Parts:
    parts = np.repeat(np.arange(3, dtype=np.uint8), _sizes(rows, fractions))
    random.shuffle(parts)
    return parts


def _codes(values: pl.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Values as numbers in their own order; missing is a value too, the first."""
    return values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def _stratified(
    values: pl.Series, fractions: list[float], random: np.random.Generator, column: str
) -> Parts:
    codes = _codes(values)
    counts = np.bincount(codes)
    strata = np.flatnonzero(counts)
    if len(strata) > max(100, len(codes) // 10):
        raise TapsterError(
            "unprocessable",
            f"{shown(column)} has {len(strata):,} different values in {len(codes):,} rows, "
            "too many to stratify by",
            hint="split at random or by group, or bin the column first",
            field="column",
        )
    shares = np.asarray(fractions) / sum(fractions)
    owed = np.zeros(3)
    parts = np.zeros(len(codes), np.uint8)
    order = np.argsort(codes, kind="stable")
    start = 0
    for stratum in strata:
        rows = order[start : start + counts[stratum]]
        start += counts[stratum]
        sizes = _apportion(len(rows), shares, owed)
        of_rows = np.repeat(np.arange(3, dtype=np.uint8), sizes)
        random.shuffle(of_rows)
        parts[rows] = of_rows
    return parts


def _apportion(count: int, shares: Any, owed: Any) -> list[int]:
    """Whole rows of a stratum for each part; `owed` carries the fractions to the next one."""
    wanted = shares * count + owed
    sizes = np.clip(np.floor(wanted), 0, None).astype(int)
    while sizes.sum() > count:
        sizes[int(np.argmax(sizes))] -= 1
    for _ in range(count - int(sizes.sum())):
        sizes[int(np.argmax(wanted - sizes))] += 1
    asked = np.flatnonzero(shares > 0)
    if count >= len(asked):
        for part in asked:
            if not sizes[part]:
                sizes[int(np.argmax(sizes))] -= 1
                sizes[part] = 1
    owed += shares * count - sizes
    return [int(size) for size in sizes]


def _by_time(values: pl.Series, fractions: list[float], column: str) -> Parts:
    if not (values.dtype.is_temporal() or values.dtype.is_numeric()):
        raise TapsterError(
            "unprocessable",
            f"{shown(column)} is text, which has no order in time",
            hint="import or cast it as date or datetime",
            field="column",
        )
    codes = _codes(values)
    counts = np.bincount(codes)
    until = np.cumsum(counts)
    bounds = np.cumsum(np.asarray(fractions) / sum(fractions)) * len(codes)
    # A moment belongs to the part that holds the middle of its rows.
    middle = until - counts / 2
    part_of = np.searchsorted(bounds[:2], middle, side="right").astype(np.uint8)
    part_of[0] = TRAIN
    parts: Parts = part_of[codes]
    return parts


def _by_group(values: pl.Series, fractions: list[float], random: np.random.Generator) -> Parts:
    codes = _codes(values)
    counts = np.bincount(codes)
    groups = np.flatnonzero(counts)
    random.shuffle(groups)
    groups = groups[np.argsort(-counts[groups], kind="stable")]
    wanted = np.asarray(fractions) / sum(fractions) * len(codes)
    filled = np.zeros(3)
    part_of = np.zeros(len(counts), np.uint8)
    with np.errstate(divide="ignore", invalid="ignore"):
        for group in groups:
            need = np.where(wanted > 0, (wanted - filled) / wanted, -np.inf)
            # Large groups first, each to the part that is emptiest for its size.
            part = int(np.argmax(need))
            part_of[group] = part
            filled[part] += counts[group]
    parts: Parts = part_of[codes]
    return parts


def _check_filled(parts: Parts, kind: str, fractions: list[float], column: str) -> None:
    counts = np.bincount(parts, minlength=3)
    for part, fraction in enumerate(fractions):
        if fraction > 0 and not counts[part]:
            by = f" by {shown(column)}" if column else ""
            raise TapsterError(
                "unprocessable",
                f"a {kind} split{by} of {len(parts):,} rows leaves none for {NAMES[part]}",
                hint="take other fractions, more rows or another column",
                field="fractions",
            )
