"""Ours with default settings against scikit-learn's histogram gradient boosting, same splits.

Per data set: the mean over seeds of accuracy (classes) or R2 (numbers) on the held-out fifth, and
the standard error of the paired difference. Verdict: `ok` unless ours is lower by more than one
standard error.

    python benchmarks/quality.py [--seconds 60] [--seeds 5] [--datasets iris,wine,...]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tapster.jobs.context import JobContext
from tapster.testing import mixed_table
from tapster.training import runner

BUNDLED = ("breast_cancer", "wine", "digits", "iris", "diabetes")
MIXED = {f"mixed_{task}": task for task in ("binary", "multiclass", "regression")}


def table(name: str, seed: int) -> pl.DataFrame:
    """The data with a column `target`."""
    if name in MIXED:
        return mixed_table(1500, seed, MIXED[name])  # type: ignore[arg-type]
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    names = [str(feature) for feature in bunch.feature_names]
    frame = pl.DataFrame(dict(zip(names, bunch.data.T, strict=True)))
    if name == "diabetes":
        return frame.with_columns(target=pl.Series(bunch.target))
    return frame.with_columns(target=pl.Series([f"class {c}" for c in bunch.target]))


def parts_of(frame: pl.DataFrame, seed: int) -> np.ndarray:
    """0 (train) or 2 (test) for each row, classes in proportion."""
    from sklearn.model_selection import train_test_split

    labels = None if frame["target"].dtype.is_numeric() else frame["target"].to_numpy()
    rows = np.arange(frame.height)
    _, test = train_test_split(rows, test_size=0.2, random_state=seed, stratify=labels)
    parts = np.zeros(frame.height, np.uint8)
    parts[test] = 2
    return parts


def ours(frame: pl.DataFrame, parts: np.ndarray, seed: int, seconds: float) -> tuple[float, str]:
    """Score and algorithm of the job's winner."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        inputs = {"data": work / "data", "split": work / "split"}
        for path in inputs.values():
            path.mkdir()
        frame.write_parquet(inputs["data"] / "data.parquet")
        pl.DataFrame({"part": parts}).write_parquet(inputs["split"] / "split.parquet")
        task = {"target": "target", "model": "m", "time_limit": seconds, "seed": seed}
        result = runner.run(task, JobContext(work=work, inputs=inputs))
    metrics = result["metrics"]
    return metrics["accuracy" if "accuracy" in metrics else "r2"]["value"], result["algorithm"]


def theirs(frame: pl.DataFrame, parts: np.ndarray, seed: int) -> float:
    """Score of scikit-learn's defaults; text as its own categorical features."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    rest = frame.drop("target")
    text = [rest[name].dtype == pl.String for name in rest.columns]
    train = parts == 0
    columns = [_column(rest[name], train, OrdinalEncoder) for name in rest.columns]
    matrix, target = np.column_stack(columns), frame["target"].to_numpy()
    numeric = frame["target"].dtype.is_numeric()
    make = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier
    model = make(categorical_features=text, random_state=seed).fit(matrix[train], target[train])
    return float(model.score(matrix[~train], target[~train]))


def _column(series: pl.Series, train: np.ndarray, encoder: Any) -> np.ndarray:
    if series.dtype != pl.String:
        return series.cast(pl.Float64, strict=False).to_numpy()
    values = series.fill_null("").to_numpy().reshape(-1, 1)
    ordinal = encoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return np.asarray(ordinal.fit(values[train]).transform(values), np.float64)[:, 0]


def main() -> int:
    """Print a line a data set; 1 when one of them loses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--datasets", default=",".join([*BUNDLED, *MIXED]))
    chosen = parser.parse_args()
    lost = False
    print(f"{'data set':<18} {'ours':>7} {'HistGB':>7} {'diff':>8} {'SE':>7}  verdict  winners")
    for name in chosen.datasets.split(","):
        pairs, winners = [], []
        for seed in range(chosen.seeds):
            frame = table(name, seed)
            parts = parts_of(frame, seed)
            score, algorithm = ours(frame, parts, seed, chosen.seconds)
            pairs.append((score, theirs(frame, parts, seed)))
            winners.append(algorithm)
        differences = [a - b for a, b in pairs]
        error = statistics.stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
        mean = statistics.fmean(differences)
        verdict = "ok" if mean >= -error else "LOST"
        lost |= verdict == "LOST"
        print(
            f"{name:<18} {statistics.fmean(a for a, _ in pairs):7.4f}"
            f" {statistics.fmean(b for _, b in pairs):7.4f} {mean:+8.4f} {error:7.4f}  {verdict:<7}"
            f"  {', '.join(winners)}",
            flush=True,
        )
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
