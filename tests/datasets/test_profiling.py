"""The numbers of a profile against numbers worked out another way."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr
from sklearn.feature_selection import mutual_info_classif

from tapster.contract.errors import TapsterError
from tapster.datasets import associations, profiling
from tests.datasets.conftest import Desk


def _column(profile: dict[str, Any], name: str) -> dict[str, Any]:
    return next(column for column in profile["columns"] if column["name"] == name)


def _warned(profile: dict[str, Any]) -> set[tuple[str, str]]:
    return {(warning["kind"], warning["column"]) for warning in profile["warnings"]}


@pytest.fixture
def mixed(desk: Desk, tmp_path: Path) -> Desk:
    rng = np.random.default_rng(1)
    x = rng.normal(10, 2, 2000)
    x[:5] = [1000, -1000, 900, 800, 700]
    pl.DataFrame(
        {
            "x": [None, *x[1:]],
            "class": rng.choice(["a", "b", "c"], 2000, p=[0.7, 0.2, 0.1]),
            "constant": [1] * 2000,
            "id": list(range(2000)),
            "code": [f"user{i}" for i in range(2000)],
            "many": [f"word{i % 300}" for i in range(2000)],
            "gone": [None] * 1900 + ["x"] * 100,
            "flag": rng.random(2000) < 0.25,
        }
    ).write_parquet(tmp_path / "t.parquet")
    desk.add("t", tmp_path / "t.parquet")
    return desk


def test_numbers(mixed: Desk) -> None:
    profile, values = mixed.profile("t"), mixed.frame("t")["x"].drop_nulls().to_numpy()
    column = _column(profile, "x")
    assert (profile["rows"], column["missing"], column["distinct"]) == (2000, 1, 1999)
    assert column["mean"] == pytest.approx(values.mean())
    assert column["std"] == pytest.approx(values.std(ddof=1))
    assert column["quantiles"]["0.25"] == pytest.approx(np.quantile(values, 0.25))
    assert sum(column["histogram"]["counts"]) == 1999
    assert column["histogram"]["edges"][0] == values.min()
    q1, q3 = np.quantile(values, [0.25, 0.75])
    beyond = (values < q1 - 1.5 * (q3 - q1)) | (values > q3 + 1.5 * (q3 - q1))
    assert column["outliers"]["iqr"]["count"] == int(beyond.sum())
    median = np.median(values)
    z = 0.6745 * np.abs(values - median) / np.median(np.abs(values - median))
    assert column["outliers"]["robust_z"]["count"] == int((z > 3.5).sum())


def test_classes_previews_and_warnings(mixed: Desk) -> None:
    profile, frame = mixed.profile("t"), mixed.frame("t")
    counted = {c["value"]: c["count"] for c in _column(profile, "class")["classes"]}
    assert counted == dict(frame["class"].value_counts().rows())
    assert _column(profile, "flag")["true"] == frame["flag"].sum()
    assert profile["preview"] == [list(row) for row in frame.head(10).rows()]
    assert _warned(profile) == {
        ("constant", "constant"),
        ("id-like", "id"),
        ("id-like", "code"),
        ("high-cardinality", "many"),
        ("missing", "gone"),
    }


def test_duplicates(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "a,b\n1,x\n2,y\n1,x\n1,x\n1,\n1,\n"))
    profile = desk.profile("t")
    assert profile["duplicate_rows"] == {"count": 3, "exact": True}
    assert ("duplicates", "") in _warned(profile)


def test_a_single_row_and_columns_without_values(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "a,b,c\n1.5,,2024-01-01\n"))
    profile = desk.profile("t")
    assert desk.types("t") == {"a": "number", "b": "text", "c": "date"}
    assert ("empty", "b") in _warned(profile)
    assert _column(profile, "c")["quantiles"]["0.5"] == "2024-01-01"


def test_extremes_are_json(desk: Desk, tmp_path: Path) -> None:
    pl.DataFrame({"x": [1.7e308, -1.7e308, 0.0], "i": [2**63 - 1, -(2**63), 0]}).write_parquet(
        tmp_path / "a.parquet"
    )
    desk.add("t", tmp_path / "a.parquet")
    column = _column(desk.profile("t"), "i")
    assert (column["min"], column["max"]) == (-(2**63), 2**63 - 1)
    assert ("imprecise", "i") in _warned(desk.profile("t"))


def test_extremes_with_hardly_a_float_between_them(desk: Desk, put: Any) -> None:
    rows = [f"{1_500_000_000_000_000_000 + 300 * i},{1 + i * 2**-52!r}" for i in range(14)]
    desk.add("t", put("a.csv", "id,noise\n" + "\n".join(rows) + "\n"))
    for name in ("id", "noise"):
        assert sum(_column(desk.profile("t"), name)["histogram"]["counts"]) == 14


def test_the_last_moment_of_the_calendar(desk: Desk, put: Any) -> None:
    last = "9999-12-31T23:59:59.999999"
    desk.add("t", put("a.csv", f"at\n2020-01-01T00:00:00\n{last}\n"))
    column = _column(desk.profile("t"), "at")
    assert (column["max"], column["histogram"]["edges"][-1]) == (last, last)


def test_a_long_table_is_sampled_and_close(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SAMPLE_ROWS": 5_000, "EXACT_ROWS": 10_000, "HASHES": 8_000}.items():
        monkeypatch.setattr(profiling, name, value)
    rng = np.random.default_rng(5)
    table = pl.DataFrame(
        {
            "x": rng.normal(size=60_000),
            "word": [f"w{i}" for i in rng.integers(0, 40, 60_000)],
            "n": rng.integers(0, 20_000, 60_000),
        }
    )
    table = pl.concat([table, table.head(20_000)])
    table.write_parquet(tmp_path / "a.parquet")
    desk.add("t", tmp_path / "a.parquet")
    profile = desk.profile("t")
    assert profile["sampled"] == {"rows": 5_000, "quantiles": True}
    assert _column(profile, "x")["quantiles"]["0.5"] == pytest.approx(0, abs=0.06)
    assert _column(profile, "word")["classes_exact"] is True
    assert sum(c["count"] for c in _column(profile, "word")["classes"]) < 80_000
    assert _column(profile, "n")["distinct"] == pytest.approx(table["n"].n_unique(), rel=0.03)
    assert profile["duplicate_rows"]["exact"] is False
    assert profile["duplicate_rows"]["count"] == pytest.approx(20_000, rel=0.1)


def test_correlations_of_values_close_together_far_from_zero(desk: Desk, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    steps = np.arange(2000)
    y = steps + rng.normal(0, 600, 2000)
    stamps = (1_700_000_000_000 + steps).tolist()  # two seconds, in milliseconds
    pl.DataFrame({"y": y, "at": stamps}).write_parquet(tmp_path / "t.parquet")
    desk.add("t", tmp_path / "t.parquet")
    folder = desk.folder("t")
    found = associations.with_target(folder / "associations.npz", desk.profile("t"), "y")
    (row,) = found["columns"]
    assert row["correlation"] == pytest.approx(np.corrcoef(steps, y)[0, 1], abs=1e-4)
    assert row["spearman"] == pytest.approx(spearmanr(steps, y).statistic, abs=1e-4)


def test_associations_with_a_target(desk: Desk, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = 3000
    y = rng.integers(0, 3, rows)
    table = pl.DataFrame(
        {
            "target": [f"class {c}" for c in y],
            "close": y + rng.normal(0, 0.5, rows),
            "noise": rng.normal(size=rows),
            "leak": [f"code {c}" for c in y],
            "half": [f"v{c}" if r else "?" for c, r in zip(y, rng.random(rows) < 0.5, strict=True)],
            "id": [f"row {i}" for i in range(rows)],
            "size": y * 2.0,
            "day": pl.Series(y * 30).cast(pl.Int32).cast(pl.Date),
        }
    )
    table.write_parquet(tmp_path / "a.parquet")
    desk.add("t", tmp_path / "a.parquet")
    profile, path = desk.profile("t"), desk.folder("t") / "associations.npz"
    found = associations.with_target(path, profile, "target")
    assert json.dumps(found, allow_nan=False)
    by_name = {row["name"]: row for row in found["columns"]}
    assert "id" not in by_name
    assert by_name["leak"]["normalised"] == pytest.approx(1)
    assert by_name["noise"]["normalised"] < 0.01
    assert {w["column"] for w in found["warnings"]} == {"leak", "size", "day"}
    edges = np.quantile(table["close"], np.linspace(0, 1, 11)[1:-1])
    codes = np.searchsorted(edges, table["close"].to_numpy(), side="right").reshape(-1, 1)
    known = mutual_info_classif(codes, y, discrete_features=True)[0]
    assert by_name["close"]["mutual_information"] == pytest.approx(known, abs=0.01)
    size = associations.with_target(path, profile, "size")
    by_name = {row["name"]: row for row in size["columns"]}
    pearson = np.corrcoef(table["close"], table["size"])[0, 1]
    assert by_name["close"]["correlation"] == pytest.approx(pearson, abs=1e-4)
    ranks = np.corrcoef(table["close"].rank(), table["size"].rank())[0, 1]
    assert by_name["close"]["spearman"] == pytest.approx(ranks, abs=1e-3)
    assert by_name["target"]["correlation"] is None
    assert not math.isnan(by_name["half"]["normalised"])
    with pytest.raises(TapsterError, match="no column 'targe'") as caught:
        associations.with_target(path, profile, "targe")
    assert "did you mean 'target'" in caught.value.hint
    with pytest.raises(TapsterError, match="too many different values"):
        associations.with_target(path, profile, "id")
