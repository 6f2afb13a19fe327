"""Data that cannot be learnt from, and data that only looks so."""

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.runtimes.onnx import OnnxRuntime
from tapster.runtimes.package import open_package
from tapster.runtimes.rows import encode_rows
from tapster.training import features, targets
from tests.training.conftest import Workshop


def frame(**columns: Any) -> pl.DataFrame:
    """40 rows: `x` tells `target`."""
    x = np.linspace(-1, 1, 40)
    table = {"x": x, "target": ["yes" if value > 0 else "no" for value in x], **columns}
    return pl.DataFrame(table, strict=False)


@pytest.mark.parametrize(
    ("table", "task", "message"),
    [
        (frame(target=[None] * 40), {}, "the target 'target' has no values"),
        (frame(target=["same"] * 40), {}, "the target 'target' is constant"),
        (frame(target=[f"id {n}" for n in range(40)]), {}, "has 40 of 40 classes with one row"),
        (frame(target=["a"] * 39 + ["b"]), {}, "has 1 of 2 classes with one row only: 'b'"),
        (frame(), {"target": "tarqet"}, "there is no column 'tarqet'"),
        (frame(), {"cv": 35}, "32 rows to train on are fewer than 35 folds"),
        (frame(), {"metric": "rmse"}, "metric 'rmse' does not fit a binary target"),
        (frame(), {"task": "regression"}, "has type text, and a regression predicts numbers"),
        (frame(target=[date(2026, 1, 1)] * 40), {}, "the target 'target' has type date"),
        (frame(), {"algorithm": "ridge"}, "ridge does not do binary"),
        (frame(x=[float("inf")] + [1.0] * 39), {}, "column 'x' has 1 infinite values"),
        (frame(x=[1e300] * 40), {}, "column 'x' has 40 infinite values"),
        (frame().select("target"), {}, "no column to learn from"),
        (frame(x=[[1]] * 40), {}, "no column to learn from"),
        (frame().head(1).vstack(frame().tail(1)), {}, "classes with one row"),
        (frame(target=np.arange(40) * 1.5e300), {}, "column 'target' has"),
        (frame(target=[0.0, 1e20] * 20), {}, "has numbers that a label cannot hold"),
        (frame(target=[0.1, 0.1 + 1e-12] * 20), {"task": "binary"}, "a label cannot hold"),
    ],
)
def test_each_gets_one_clear_error(
    workshop: Workshop, table: pl.DataFrame, task: dict[str, Any], message: str
) -> None:
    error = workshop.refusal(table, **{"algorithm": "logistic", **task})
    assert error.code == "unprocessable"
    assert message in error.message
    assert error.hint


def test_rows_without_a_target_are_dropped_with_a_word(workshop: Workshop) -> None:
    table = frame(target=[None, None] + ["no"] * 18 + ["yes"] * 20)
    trained = workshop.train(table, algorithm="logistic")
    assert sum(trained.result["rows"].values()) == 38
    assert "2 rows without a value of 'target' were dropped" in trained.result["warnings"]


def test_odd_columns_are_warned_of_and_survived(workshop: Workshop) -> None:
    table = frame(
        empty=pl.Series([None] * 40, dtype=pl.Float64),
        nothing=pl.Series([None] * 40, dtype=pl.String),
        same=["a"] * 40,
        nested=[[1]] * 40,
        huge=[2**53 + n for n in range(40)],
    )
    trained = workshop.train(table, algorithm="logistic", cv=2)
    said = " ".join(trained.result["warnings"])
    assert "column 'empty' has no values" in said
    assert "column 'nothing' has no values" in said
    assert "column 'same' is constant" in said
    assert "column 'nested' has type List(Int64)" in said
    assert "column 'huge' has integers above 2^24" in said


NAMES = (
    "it's \"quoted\"", "😀 🍷", "'; DROP TABLE models; --", "<b>bold</b>", "^.*$", "*", "a,b\\c",
)  # fmt: skip


def test_any_name_works_inert_and_exact(workshop: Workshop) -> None:
    words = {f"{name} text": ["u", "v"] * 20 for name in NAMES}
    numbers = {name: np.linspace(-1, 1, 40) for name in NAMES}
    table = frame(**words, **numbers).drop("x").rename({"target": "^t.*$"})
    trained = workshop.train(table, target="^t.*$", algorithm="logistic", cv=2)
    package = open_package(trained.package, trained.result["digest"])
    model = OnnxRuntime().load(package.manifest, package.files, 1)
    rows = [
        {name: value if name in NAMES else "never" for name in table.columns if name != "^t.*$"}
        for value in (0.9, -0.9)
    ]
    (labels,) = model.run(encode_rows(package.manifest.signature, rows), ["prediction"])
    assert labels.tolist() == ["yes", "no"]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["b", "a"] * 20, "binary", ["a", "b"]),
        ([True, False] * 20, "binary", [False, True]),
        ([3, 1, 2, 1] * 10, "multiclass", [1, 2, 3]),
        ([0.0, 1.0] * 20, "binary", [0, 1]),
        ([0.5, 1.5] * 20, "regression", []),
        (list(range(40)), "regression", []),
    ],
)
def test_the_task_is_seen_in_the_target(values: Any, task: str, classes: list[Any]) -> None:
    found = targets.read(pl.Series("t", values), "auto", [])
    assert (found.task, list(found.classes)) == (task, classes)


def test_held_out_rows_have_every_class_in_proportion() -> None:
    target = targets.read(pl.Series("t", ["a"] * 90 + ["b"] * 10), "auto", [])
    train, test = targets.hold_out(target, 3)
    assert sorted([*train, *test]) == list(range(100))
    assert np.bincount(target.values[test]).tolist() == [18, 2]
    assert targets.hold_out(target, 3)[1].tolist() == test.tolist()
    assert targets.hold_out(target, 4)[1].tolist() != test.tolist()


def test_dates_are_the_days_that_serving_makes_of_them() -> None:
    table = pl.DataFrame({"d": ["1970-01-02", None], "t": ["1970-01-01T12:00:00", None]})
    table = table.with_columns(pl.col("d").str.to_date(), pl.col("t").str.to_datetime())
    columns = features.columns_of(table, [])
    encoded = features.encode(table, columns, [])
    assert [column.kind for column in columns] == ["date", "datetime"]
    np.testing.assert_array_equal(encoded.numeric, [[1.0, 0.5], [np.nan, np.nan]])


def test_datetimes_of_any_precision_and_zone_are_days_in_utc() -> None:
    moments = pl.Series("t", ["1970-01-02T06:00:00"]).str.to_datetime()
    table = pl.DataFrame(
        [moments.dt.cast_time_unit(unit).alias(unit) for unit in ("ms", "us", "ns")]
        + [moments.dt.replace_time_zone("Asia/Tokyo").alias("zone")]
    )
    encoded = features.encode(table, features.columns_of(table, []), [])
    np.testing.assert_array_equal(encoded.numeric, [[1.25, 1.25, 1.25, 0.875]])


def test_a_year_that_no_text_can_say_is_refused() -> None:
    table = pl.DataFrame({"d": pl.Series([4_000_000], dtype=pl.Int32).cast(pl.Date)})
    with pytest.raises(TapsterError, match="column 'd' has a date that cannot be read back"):
        features.encode(table, features.columns_of(table, []), [])
