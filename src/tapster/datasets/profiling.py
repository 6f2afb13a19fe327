"""What is in a table: one number, list or warning at a time, in bounded memory.

Counts, extremes, means and missing values are exact. Quantiles, and what follows from them, come
from a random sample of rows when a table has more than the sample (standard error of a quantile's
rank: 0.5 / sqrt(sample)); distinct values of long tables from their k smallest hashes; duplicate
rows of very long ones from a fixed share of the hash space. `profile["sampled"]` says which it was.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from tapster.datasets import associations, warnings_found
from tapster.datasets.conversion import DTYPES
from tapster.datasets.tables import Advance, safe_names

SAMPLE_ROWS: Final = 200_000
SAMPLE_CELLS: Final = 10_000_000
EXACT_ROWS: Final = 1_000_000
HASHES: Final = 8_000_000
PREVIEW: Final = 10
WIDE: Final = 500
TOP: Final = 20
LOW_CARDINALITY: Final = 100
BINS: Final = 20
QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BATCH_CELLS: Final = 2_000_000


def profile(path: Path, advance: Advance) -> dict[str, Any]:
    """Profile a dataset's Parquet file; JSON, beside which `associations.npz` is written.

    {"rows", "columns": [{"name", "type", "missing", "distinct", ...}], "duplicate_rows",
    "preview", "warnings", "sampled"}. Numbers have min, max, mean, std, quantiles, histogram and
    outliers ("iqr": beyond 1.5 interquartile ranges from the quartiles, Tukey 1977; "robust_z":
    0.6745 |x - median| / MAD > 3.5, Iglewicz and Hoaglin 1993); columns of few values have
    "classes", the most frequent values with their counts.
    """
    data = pl.scan_parquet(path, glob=False)
    names = data.collect_schema().names()
    safe = safe_names(len(names))
    frame = data.rename(dict(zip(names, safe, strict=True)))
    kinds = _kinds(frame)
    rows = int(frame.select(pl.len()).collect().item())
    advance(0.0, "counting")
    counts = _counts(frame, kinds, rows)
    advance(0.3, "looking for duplicate rows")
    distinct = {c: Distinct(len(safe)) for c in safe} if rows > EXACT_ROWS else {}
    sample, duplicates = _sample(frame, rows, distinct, advance)
    for column, sketch in distinct.items():
        counts[column]["distinct"] = sketch.count()
    columns = []
    for position, (column, kind) in enumerate(kinds.items()):
        column_profile = {"name": names[position], "type": kind, **counts[column]}
        # A scan of a very wide file is slow in itself: then the sample must do.
        every = None if len(safe) > WIDE else frame.select(column)
        column_profile |= _shape(every, sample[column], column_profile, rows)
        columns.append(column_profile)
        advance(0.6 + 0.35 * position / len(safe), f"column {position + 1:,} of {len(safe):,}")
    outliers_exact(frame, dict(zip(safe, columns, strict=True)))
    associations.write(path.with_name("associations.npz"), sample, names, kinds, columns)
    advance(1.0, "done")
    return {
        "rows": rows,
        "columns": columns,
        "duplicate_rows": duplicates,
        "preview": preview(data),
        "warnings": warnings_found.find(columns, rows, duplicates),
        "sampled": {"rows": sample.height, "quantiles": sample.height < rows},
    }


class Distinct:
    """How many different values a column has: exact up to k, then from its k smallest hashes.

    The estimate (k - 1) / (the k-th smallest hash as a fraction of the hash space) has a standard
    error of 1 / sqrt(k - 2) of itself: Bar-Yossef et al. 2002, Beyer et al. 2007.
    """

    def __init__(self, columns: int) -> None:
        self._keep = max(1_024, min(16_384, 16_000_000 // columns))
        self._smallest = np.empty(0, np.uint64)
        self._bound = np.iinfo(np.uint64).max

    def add(self, values: pl.Series) -> None:
        """See a batch of values; missing ones do not count."""
        hashes = values.drop_nulls().hash(seed=0).to_numpy()
        hashes = hashes[hashes <= self._bound]
        if hashes.size:
            self._smallest = np.unique(np.concatenate([self._smallest, hashes]))[: self._keep]
            if self._smallest.size == self._keep:
                self._bound = self._smallest[-1]

    def count(self) -> int:
        """The number of different values seen, or its estimate."""
        if self._smallest.size < self._keep:
            return int(self._smallest.size)
        return round((self._keep - 1) * 2.0**64 / float(self._bound))


def _kinds(frame: pl.LazyFrame) -> dict[str, str]:
    by_dtype = {stored: kind for kind, stored in DTYPES.items()}
    return {name: by_dtype[dtype] for name, dtype in frame.collect_schema().items()}


def preview(data: pl.LazyFrame) -> list[list[Any]]:
    """The first rows, in the order of the columns; dates as ISO-8601 text."""
    return [[plain(value) for value in row] for row in data.head(PREVIEW).collect().rows()]


def plain(value: Any) -> Any:
    """A value as JSON has it; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    return value.isoformat() if hasattr(value, "isoformat") else value


def _counts(frame: pl.LazyFrame, kinds: dict[str, str], rows: int) -> dict[str, dict[str, Any]]:
    """Missing, distinct, min, max, mean, std and, for text, lengths, in streaming passes."""
    result: dict[str, dict[str, Any]] = {}
    columns = list(kinds)
    step = 500  # columns a pass: expressions cost memory too
    for start in range(0, len(columns), step):
        asked: dict[tuple[str, str], pl.Expr] = {}
        for column in columns[start : start + step]:
            for key, expression in _measures(column, kinds[column], rows).items():
                asked[column, key] = expression
        row = frame.select(
            expression.alias(f"{column}/{key}") for (column, key), expression in asked.items()
        ).collect(engine="streaming")
        for (column, key), value in zip(asked, row.row(0), strict=True):
            result.setdefault(column, {})[key] = plain(value)
    return result


def _measures(name: str, kind: str, rows: int) -> dict[str, pl.Expr]:
    column = pl.col(name)
    found = {"missing": column.null_count()}
    if rows <= EXACT_ROWS:
        found["distinct"] = column.drop_nulls().n_unique()
    if kind in {"integer", "number"}:
        number = column.cast(pl.Float64)
        found |= {
            "min": column.min(),
            "max": column.max(),
            "mean": number.mean(),
            "std": number.std(),
            "zeros": (column == 0).sum(),
            "negative": (column < 0).sum(),
        }
    elif kind in {"date", "datetime"}:
        found |= {"min": column.min(), "max": column.max()}
    elif kind == "text":
        length = column.str.len_chars()
        found |= {
            "min_length": length.min(),
            "max_length": length.max(),
            "mean_length": length.mean(),
        }
    else:
        found |= {"true": column.sum()}
    return found


def _sample(
    frame: pl.LazyFrame, rows: int, distinct: dict[str, Distinct], advance: Advance
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A random sample of rows, in order, and the number of rows that repeat an earlier one.

    Every value is shown to `distinct` on the way.
    """
    columns = len(frame.collect_schema())
    wanted = min(rows, SAMPLE_ROWS, max(1_000, SAMPLE_CELLS // columns))
    share = max(1, -(-rows // HASHES))
    chosen = np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))
    picked: list[pl.DataFrame] = []
    hashes: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
    done = 0
    size = max(100, min(200_000, _BATCH_CELLS // columns))
    for batch in frame.collect_batches(chunk_size=size, maintain_order=True, engine="streaming"):
        low, high = np.searchsorted(chosen, [done, done + batch.height])
        if high > low:
            picked.append(batch[chosen[low:high] - done])
        hashed = batch.hash_rows(seed=0).to_numpy()
        hashes.append(hashed if share == 1 else hashed[hashed % share == 0])
        for column, sketch in distinct.items():
            sketch.add(batch[column])
        done += batch.height
        advance(0.3 + 0.3 * done / rows, f"{done:,} of {rows:,} rows")
    every = np.concatenate(hashes)
    hashes.clear()
    every.sort()
    repeats = int((every[1:] == every[:-1]).sum()) * share
    return pl.concat(picked), {"count": repeats, "exact": share == 1}


def _shape(
    every: pl.LazyFrame | None, values: pl.Series, known: dict[str, Any], rows: int
) -> dict[str, Any]:
    """A column's distribution: of its sample, but classes of `every` row where they are few."""
    found: dict[str, Any] = {}
    kind = known["type"]
    if kind in {"integer", "number"}:
        found |= _numbers(values.drop_nulls().cast(pl.Float64).to_numpy())
    elif kind in {"date", "datetime"}:
        found |= _times(values.drop_nulls())
    few = known["distinct"] <= LOW_CARDINALITY
    if kind in {"text", "boolean"} or (few and kind == "integer"):
        whole = values.len() == rows
        if whole or not few or every is None:
            every = values.to_frame().lazy()
        else:
            whole = True
        found["classes"] = _classes(every, values.name)
        found["classes_exact"] = whole
    return found


def _numbers(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {}
    with np.errstate(over="ignore", invalid="ignore"):
        return _spread(values)


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    points = np.quantile(values, QUANTILES)
    quantiles = {f"{q:g}": plain(point) for q, point in zip(QUANTILES, points, strict=True)}
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
    fence = 1.5 * (upper - lower)
    mad = float(np.median(np.abs(values - median)))
    fences = {"iqr": (lower - fence, upper + fence)}
    # With a MAD of zero (over half the values are one) the robust z is not defined.
    if mad > 0:
        reach = 3.5 * mad / 0.6745
        fences["robust_z"] = (median - reach, median + reach)
    outliers = {
        method: {"low": float(low), "high": float(high)}
        for method, (low, high) in fences.items()
        if np.isfinite(low) and np.isfinite(high)
    }
    found: dict[str, Any] = {
        "quantiles": quantiles,
        "histogram": histogram(values),
        "outliers": outliers,
    }
    deviation = values.std()
    if deviation > 0:
        found["skewness"] = plain((((values - values.mean()) / deviation) ** 3).mean())
    return found


def histogram(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Counts in `BINS` intervals of one width between the extremes of the sample."""
    low, high = float(values.min()), float(values.max())
    # Between extremes a few floats apart there is no room for so many intervals.
    if not np.isfinite(high - low) or (np.diff(np.linspace(low, high, BINS + 1)) <= 0).any():
        return {"edges": [low, high], "counts": [int(values.size)]}
    counts, edges = np.histogram(values, BINS, (low, high))
    return {"edges": [plain(edge) for edge in edges], "counts": [int(n) for n in counts]}


def _times(values: pl.Series) -> dict[str, Any]:
    if values.is_empty():
        return {}
    ticks = values.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
    counted = histogram(ticks.astype(np.float64))
    # As a float the last microsecond of the year 9999 is the year 10000.
    within = np.clip(np.array(counted["edges"]).astype(np.int64), ticks.min(), ticks.max())
    edges = pl.Series(within).cast(pl.Datetime("us"))
    counted["edges"] = [plain(edge) for edge in edges]
    ordered = values.sort()
    last = ordered.len() - 1
    return {
        "quantiles": {f"{q:g}": plain(ordered[round(q * last)]) for q in QUANTILES},
        "histogram": counted,
    }


def _classes(frame: pl.LazyFrame, column: str) -> list[dict[str, Any]]:
    counted = (
        frame.drop_nulls()
        .group_by(column)
        .len()
        .sort(["len", column], descending=[True, False])
        .head(TOP)
        .collect(engine="streaming")
    )
    return [{"value": plain(value), "count": count} for value, count in counted.rows()]


def outliers_exact(frame: pl.LazyFrame, columns: dict[str, dict[str, Any]]) -> None:
    """Count, over all rows, the values outside each column's outlier fences."""
    asked = [
        (safe, method, fence)
        for safe, column in columns.items()
        for method, fence in column.get("outliers", {}).items()
    ]
    for start in range(0, len(asked), 1000):
        part = asked[start : start + 1000]
        row = frame.select(
            ((pl.col(safe) < fence["low"]) | (pl.col(safe) > fence["high"]))
            .sum()
            .alias(f"{safe}/{method}")
            for safe, method, fence in part
        ).collect(engine="streaming")
        for (_, _, fence), count in zip(part, row.row(0), strict=True):
            fence["count"] = count
