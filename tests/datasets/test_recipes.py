"""Recipes: refused when wrong, exact when applied, replayable from what they recorded."""

import datetime as dt
import json
import math
from typing import Any

import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.datasets import declarations, service
from tapster.datasets.recipes import apply_recipe
from tests.datasets.conftest import TENANT, Desk

TABLE = pl.DataFrame(
    {
        "n": [1, 2, None, 4, 100],
        "x": [1.0, 2.0, 3.0, None, 5.0],
        "w": ["  A b", "a  B ", None, "c", "c"],
        "d": [dt.date(2024, 2, 29), dt.date(2023, 12, 31), None, dt.date(1970, 1, 1), None],
        "t": [dt.datetime(2024, 1, 1, 10, 30)] * 5,
        "b": [True, None, False, True, True],
    }
)


def _do(*steps: dict[str, Any], table: pl.DataFrame = TABLE) -> pl.DataFrame:
    lazy, fitted = apply_recipe(table.lazy(), {"steps": list(steps)})
    result = lazy.collect()
    # What was fitted is JSON, and replays the same steps without looking at the data again.
    again, same = apply_recipe(table.lazy(), {"steps": list(steps)}, json.loads(json.dumps(fitted)))
    assert again.collect().equals(result)
    assert same == fitted
    return result


def _column(name: str, *steps: dict[str, Any]) -> list[Any]:
    return _do(*steps)[name].to_list()


def test_filling() -> None:
    filled = _do({"op": "fill_missing"})
    assert filled["n"].to_list() == [1, 2, 3, 4, 100]
    assert filled["x"].to_list() == [1, 2, 3, 2.5, 5]
    assert filled["w"].to_list()[2] == "c"
    assert filled["b"].to_list()[1] is True
    assert filled.null_count().sum_horizontal().item() == 0
    assert _column("x", {"op": "fill_missing", "columns": ["x"], "method": "mean"})[3] == 2.75
    assert _column("w", {"op": "fill_missing", "columns": ["w"], "value": "?"})[2] == "?"
    assert _column("n", {"op": "fill_missing", "columns": "n", "value": 7})[2] == 7
    day = {"op": "fill_missing", "columns": ["d"], "value": "2000-01-01"}
    assert _column("d", day)[2] == dt.date(2000, 1, 1)


def test_dropping() -> None:
    assert _do({"op": "drop_missing", "columns": ["n", "x"]}).height == 3
    assert _do({"op": "drop_missing"}).height == 1
    twice = pl.concat([TABLE, TABLE])
    assert _do({"op": "drop_duplicates"}, table=twice).equals(TABLE)
    assert _column("n", {"op": "drop_duplicates", "columns": ["w"]}) == [1, 2, None, 4]


def test_outliers() -> None:
    assert _column("n", {"op": "clip_outliers", "columns": ["n"], "method": "robust_z"}) == [
        1, 2, None, 4, 10,
    ]  # fmt: skip
    assert _column("n", {"op": "drop_outliers", "columns": ["n"], "method": "robust_z"}) == [
        1, 2, None, 4,
    ]  # fmt: skip
    quantile = {
        "op": "clip_outliers",
        "columns": ["x"],
        "method": "quantile",
        "low": 0,
        "high": 0.5,
    }
    assert _column("x", quantile) == [1, 2, 2.5, None, 2.5]
    # A MAD of zero has no robust z: nothing is an outlier.
    flat = pl.DataFrame({"n": [5, 5, 5, 5, 900]})
    assert _do({"op": "drop_outliers", "method": "robust_z"}, table=flat).equals(flat)


def test_texts() -> None:
    assert _column("w", {"op": "normalise_text"}) == ["a b", "a b", None, "c", "c"]
    upper = {"op": "normalise_text", "columns": ["w"], "case": "upper", "collapse": False}
    assert _column("w", upper)[:2] == ["A B", "A  B"]
    composed = pl.DataFrame({"w": ["e\u0301", "ﬁ", "   "]})
    assert _do({"op": "normalise_text"}, table=composed)["w"].to_list() == ["é", "fi", None]
    swap = {"op": "replace", "columns": ["w"], "values": {"c": "C", "  A b": None}}
    assert _column("w", swap) == [None, "a  B ", None, "C", "C"]


def test_renaming_loses_no_column() -> None:
    after: list[dict[str, Any]] = [
        {"op": "encode", "columns": ["b"]},
        {"op": "rename", "names": {"n": "x"}},
    ]
    with pytest.raises(TapsterError, match="step 2 has two columns named 'x'"):
        _do(*after)
    assert _do({"op": "rename", "names": {"x": ""}}).columns[1] == "column_2"


def test_types() -> None:
    assert _column("n", {"op": "cast", "columns": ["n"], "to": "text"})[0] == "1"
    assert _column("t", {"op": "cast", "columns": ["t"], "to": "date"})[0] == dt.date(2024, 1, 1)
    with pytest.raises(TapsterError, match="'w' is not number: row 1 holds '  A b'"):
        _do({"op": "cast", "columns": ["w"], "to": "number"})
    loose = {"op": "cast", "columns": ["w"], "to": "number", "misfits": "missing"}
    assert _column("w", loose) == [None] * 5


def test_a_cast_that_may_lose_nothing_refuses_infinities() -> None:
    table = pl.DataFrame({"w": ["1", "NA", "1e400", "-inf"]})
    strict = {"op": "cast", "columns": ["w"], "to": "number"}
    with pytest.raises(TapsterError, match="'w' is not number: row 3 holds '1e400'"):
        _do(strict, table=table)
    loose = _do({**strict, "misfits": "missing"}, table=table)
    assert loose["w"].to_list() == [1, None, None, None]


@pytest.mark.parametrize("word", ["NA", "none", ""])
def test_a_word_for_missing_is_no_date_to_compare_or_fill_with(word: str) -> None:
    for step in (
        {"op": "filter", "column": "d", "operator": "!=", "value": word},
        {"op": "fill_missing", "columns": ["d"], "value": word},
    ):
        with pytest.raises(TapsterError, match="for 'd', which is date"):
            _do(step)


def test_scaling() -> None:
    standard = _do({"op": "scale", "columns": ["x"]})["x"]
    assert standard.mean() == pytest.approx(0)
    assert standard.std(ddof=0) == pytest.approx(1)
    assert _column("x", {"op": "scale", "columns": ["x"], "method": "minmax"})[-1] == 1
    assert _column("x", {"op": "scale", "columns": ["x"], "method": "robust"})[0] < 0
    flat = pl.DataFrame({"x": [3.0, 3.0, None]})
    assert _do({"op": "scale"}, table=flat)["x"].to_list() == [0, 0, None]


def test_encoding() -> None:
    hot = _do({"op": "encode", "columns": ["w", "b"]})
    assert hot["w=c"].to_list() == [0, 0, 0, 1, 1]
    assert hot["b=true"].to_list() == [1, 0, 0, 1, 1]
    assert "w" not in hot.columns
    assert _column("w", {"op": "encode", "columns": ["w"], "method": "ordinal"}) == [
        0, 1, None, 2, 2,
    ]  # fmt: skip
    assert _column("w", {"op": "encode", "columns": ["w"], "method": "frequency"})[-1] == 0.5
    recipe = {"steps": [{"op": "encode", "columns": ["w"], "method": "ordinal"}]}
    _, fitted = apply_recipe(TABLE.lazy(), recipe)
    other, _ = apply_recipe(pl.LazyFrame({"w": ["new", "c", None]}), recipe, fitted)
    assert other.collect()["w"].to_list() == [-1, 2, None]
    with pytest.raises(TapsterError, match="finds 3 different values in 'w'; its limit is 2"):
        _do({"op": "encode", "columns": ["w"], "limit": 2})


def test_dates_and_bins() -> None:
    parts = _do({"op": "dates", "columns": ["d"], "parts": ["year", "weekday", "days"]})
    assert parts["d_year"].to_list() == [2024, 2023, None, 1970, None]
    assert parts["d_weekday"].to_list()[0] == 4
    assert parts["d_days"].to_list()[3] == 0
    assert "d" not in parts.columns
    kept = _do({"op": "dates", "columns": ["t"], "parts": ["hour", "minute"], "keep": True})
    assert (kept["t_hour"][0], kept["t_minute"][0], "t" in kept.columns) == (10, 30, True)
    edges = {"op": "bin", "columns": ["x"], "method": "edges", "edges": [2, 4.5]}
    assert _column("x", edges) == [0, 1, 1, None, 2]
    width = {"op": "bin", "columns": ["x"], "method": "width", "bins": 2}
    assert _column("x", width) == [0, 0, 1, None, 1]
    assert _column("x", {"op": "bin", "columns": ["x"], "bins": 4}) == [0, 1, 2, None, 3]


def test_columns_and_filters() -> None:
    kept = _do(
        {"op": "rename", "names": {"n": "x", "x": "n"}},
        {"op": "keep_columns", "columns": ["n", "x"]},
    )
    assert kept.rename({"n": "x", "x": "n"}).equals(TABLE.select("n", "x"))
    assert _do({"op": "drop_columns", "columns": ["n", "t"]}).columns == ["x", "w", "d", "b"]
    cases: list[tuple[str, str, Any, list[Any]]] = [
        ("n", ">", 1.5, [2, 4, 100]),
        ("n", "in", [1, 4], [1, 4]),
        ("n", "not_in", [1, 4], [2, 100]),
        ("w", "==", "c", [4, 100]),
        ("w", "is_missing", None, [None]),
        ("d", ">=", "2023-12-31", [1, 2]),
        ("t", "<", "2024-01-01T10:30:00", []),
        ("b", "!=", True, [None]),
    ]
    for name, operator, value, left in cases:
        step = {"op": "filter", "column": name, "operator": operator, "value": value}
        assert _column("n", step) == left, step


@pytest.mark.parametrize(
    ("step", "says", "hint"),
    [
        ({"op": "drop_duplicate"}, "step 1 has the unknown operation", "drop_duplicates"),
        ({"op": "scale", "metod": "minmax"}, "unknown parameter 'metod'", "method"),
        ({"op": "scale", "method": "standart"}, "method 'standart'", "standard"),
        ({"op": "scale", "columns": ["X"]}, r"step 1 \(scale\): there is no column 'X'", "'x'"),
        ({"op": "scale", "columns": ["w"]}, "'w' is text", "cast"),
        ({"op": "scale", "columns": []}, "needs columns", ""),
        ({"op": "cast", "columns": ["n"]}, "needs to", "integer"),
        ({"op": "cast", "columns": ["n"], "to": "int"}, "to 'int'", "integer"),
        ({"op": "bin", "columns": ["n"], "bins": 1}, "bins '1'", "2 to 10,000"),
        ({"op": "bin", "columns": ["n"], "method": "edges", "edges": [2, 1]}, "rise", ""),
        ({"op": "bin", "columns": ["n"], "method": "edges"}, "needs edges", ""),
        ({"op": "dates", "parts": ["years"]}, "unknown part 'years'", "year"),
        ({"op": "fill_missing", "method": "constant"}, "one value with method constant", ""),
        ({"op": "fill_missing", "columns": ["n"], "value": "x"}, "'x' for 'n'", ""),
        ({"op": "filter", "column": "n", "operator": "="}, "operator '='", "=="),
        ({"op": "filter", "column": "n", "operator": "in", "value": 1}, "in has the value", ""),
        ({"op": "filter", "column": "n", "operator": "==", "value": "x"}, "which is integer", ""),
        ({"op": "rename", "names": {"n": "x"}}, "two columns named 'x'", ""),
        ({"op": "rename", "names": {"n": "a\nb"}}, "control character", ""),
        ({"op": "drop_columns", "columns": TABLE.columns}, "no column", ""),
        ({"op": "clip_outliers", "low": 0.9, "high": 0.1}, "low < high", ""),
        ({"op": "replace", "columns": ["w"], "values": {"a": 1}}, "text or null", ""),
        ("drop_duplicates", "not an object with an op", ""),
        ({"op": "clip_outliers", "factor": 10**400}, "has factor", "finite"),
        ({"op": "bin", "columns": ["n"], "method": "edges", "edges": [10**400]}, "rise", ""),
        ({"op": "fill_missing", "columns": ["x"], "value": math.nan}, "has value 'nan'", ""),
    ],
)
def test_what_is_wrong_is_named(step: Any, says: str, hint: str) -> None:
    with pytest.raises(TapsterError, match=says) as caught:
        _do(step)
    assert caught.value.code == "invalid"
    assert hint in caught.value.hint


@pytest.mark.parametrize("recipe", [{}, {"steps": []}, {"steps": {}}, {"step": []}, []])
def test_a_recipe_is_a_list_of_steps(recipe: Any) -> None:
    with pytest.raises(TapsterError, match="object with a list of steps"):
        declarations.check(recipe, [])


def test_a_recipe_makes_the_next_version_with_its_lineage(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "x,y\n1,a\n1,a\n,b\n4,b\n"))
    fill = {"op": "fill_missing", "columns": ["x"]}
    steps: list[dict[str, Any]] = [{"op": "drop_duplicates"}, fill]
    first = desk.clean("t@1", *steps)
    assert (first["version"], desk.clean("t@1", *steps)["version"]) == (2, 2)
    assert desk.frame("t@2").rows() == [(1, "a"), (2, "b"), (4, "b")]
    with desk.parts.db.read() as tx:
        tree = service.lineage(tx, TENANT, "t")
        down = service.lineage(tx, TENANT, "t@1")["children"]
    assert tree["source"]["recipe"] == {"steps": steps}
    assert tree["source"]["fitted"] == [{}, {"x": 2}]
    assert tree["parents"][0]["source"]["kind"] == "files"
    assert down == [{"dataset": "t", "version": 2, "digest": first["digest"]}]
    assert desk.profile("t@2")["rows"] == 3


def test_a_recipe_that_leaves_no_rows_is_refused(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "x\n1\n"))
    with pytest.raises(TapsterError, match="no rows"):
        desk.clean("t", {"op": "filter", "column": "x", "operator": ">", "value": 5})
