"""Splits: every row once, by the rule asked for, the same for the same seed."""

import datetime as dt
from typing import Any

import numpy as np
import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.datasets import service
from tapster.datasets.splitting import assign
from tests.datasets.conftest import TENANT, Desk

SHARES = [0.7, 0.2, 0.1]


def test_a_random_split_has_its_shares_and_repeats() -> None:
    table = pl.DataFrame({"x": range(1000)})
    parts = assign(table, "random", SHARES, 5)
    assert parts.dtype == np.uint8
    assert np.bincount(parts).tolist() == [700, 200, 100]
    assert (parts == assign(table.lazy(), "random", SHARES, 5)).all()
    assert (parts != assign(table, "random", SHARES, 6)).any()


def test_a_stratified_split_keeps_classes_and_totals() -> None:
    table = pl.DataFrame({"y": ["a"] * 500 + ["b"] * 97 + ["c"] * 3 + [None] * 10})
    parts = assign(table, "stratified", SHARES, 1, "y")
    counts = table.with_columns(part=pl.Series(parts)).group_by("y", "part").len()
    seen = {(y, part): n for y, part, n in counts.rows()}
    assert [seen["a", part] for part in range(3)] == [350, 100, 50]
    assert sum(seen["b", part] for part in range(3)) == 97
    assert abs(seen["b", 0] - 67.9) < 1.5
    assert {seen["c", part] for part in range(3)} == {1}
    assert np.abs(np.bincount(parts) - np.array([427, 122, 61])).max() <= 2


def test_a_split_by_time_never_looks_ahead() -> None:
    rng = np.random.default_rng(0)
    days = rng.integers(0, 90, 1000)
    table = pl.DataFrame({"d": [dt.date(2024, 1, 1) + dt.timedelta(int(n)) for n in days]})
    parts = assign(table, "time", SHARES, 0, "d")
    assert days[parts == 0].max() < days[parts == 1].min()
    assert days[parts == 1].max() < days[parts == 2].min()
    assert np.abs(np.bincount(parts) - np.array([700, 200, 100])).max() < 20


def test_a_split_by_group_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"g": [f"customer {n}" for n in rng.integers(0, 60, 1000)]})
    parts = assign(table, "group", SHARES, 3, "g")
    together = (
        table.with_columns(part=pl.Series(parts)).group_by("g").agg(pl.col("part").n_unique())
    )
    assert together["part"].max() == 1
    assert np.abs(np.bincount(parts) - np.array([700, 200, 100])).max() < 40
    assert (parts != assign(table, "group", SHARES, 4, "g")).any()


def test_small_tables_fill_every_part_or_are_refused() -> None:
    assert sorted(assign(pl.DataFrame({"x": [1, 2, 3]}), "random", [0.8, 0.1, 0.1], 0)) == [0, 1, 2]
    with pytest.raises(TapsterError, match="random split of 2 rows leaves none for"):
        assign(pl.DataFrame({"x": [1, 2]}), "random", [0.8, 0.1, 0.1], 0)
    assert assign(pl.DataFrame({"x": [1, 2]}), "random", [0.5, 0, 0.5], 0).tolist() in [
        [0, 2],
        [2, 0],
    ]
    with pytest.raises(TapsterError, match="group split by 'g' of 9 rows leaves none for"):
        assign(pl.DataFrame({"g": ["one"] * 9}), "group", SHARES, 0, "g")
    with pytest.raises(TapsterError, match="time split by 'd' of 9 rows leaves none for"):
        assign(pl.DataFrame({"d": [1] * 9}), "time", SHARES, 0, "d")
    with pytest.raises(TapsterError, match="too many to stratify by"):
        assign(pl.DataFrame({"x": range(300)}), "stratified", SHARES, 0, "x")
    with pytest.raises(TapsterError, match="no order in time"):
        assign(pl.DataFrame({"x": ["a", "b"]}), "time", SHARES, 0, "x")


def test_a_split_is_recorded_and_does_not_change(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(50))))
    how = {"kind": "stratified", "column": "y", "seed": 9}
    made = desk.split("t", **how)
    assert made["rows"] == [30, 10, 10]
    assert desk.split("t", **how) == made
    with desk.parts.db.read() as tx:
        split, key = service.find_split(tx, TENANT, "t@1", "default")
        assert service.splits(tx, TENANT, "t") == [split]
    assert (split.kind, split.seed, split.column, split.rows) == (
        "stratified",
        9,
        "y",
        [30, 10, 10],
    )
    parts = pl.read_parquet(desk.parts.blobs.get(key) / "split.parquet")
    assert parts.schema == {"part": pl.UInt8}
    assert (
        parts["part"].to_numpy() == assign(desk.frame("t"), "stratified", [0.6, 0.2, 0.2], 9, "y")
    ).all()
    with pytest.raises(TapsterError, match="another split named 'default'") as caught:
        desk.split("t", seed=10)
    assert caught.value.code == "conflict"
    with desk.parts.db.read() as tx, pytest.raises(TapsterError, match="has no split 'nope'"):
        service.find_split(tx, TENANT, "t", "nope")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kind": "randon"}, "no split of kind 'randon'"),
        ({"fractions": [0.5, 0.5]}, "three numbers"),
        ({"fractions": [0.5, 0.6, 0.1]}, "do not add up to 1"),
        ({"fractions": [0.0, 0.5, 0.5]}, "something to train on"),
        ({"fractions": [1.5, -0.5, 0.0]}, "three numbers"),
        ({"seed": -1}, "a seed is"),
        ({"kind": "group"}, "needs a column"),
        ({"column": "x"}, "takes no column"),
        ({"kind": "group", "column": "z"}, "no column 'z'"),
        ({"name": "a b"}, "cannot be a name"),
    ],
)
def test_bad_splits(how: dict[str, Any], says: str, desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "x\n1\n2\n"))
    with pytest.raises(TapsterError, match=says):
        desk.split("t", **how)
