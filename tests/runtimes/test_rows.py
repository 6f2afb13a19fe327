"""Values by column name to tensors, and exact errors for everything that does not fit."""

import math
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column, ColumnKind, Signature, TensorSpec
from tapster.runtimes.rows import Encoder, days, encode_columns, encode_rows

NASTY = '\'; DROP TABLE x; -- <b>"🍷"</b> ../é'
SIGNATURE = Signature(
    inputs=(TensorSpec("numeric", "FP32", (-1, 4)), TensorSpec("text", "BYTES", (-1, 2))),
    outputs=(TensorSpec("prediction", "FP32", (-1,)),),
    columns=(
        Column(NASTY, "text", "text", 1),
        Column("when", "datetime", "numeric", 3),
        Column("age", "number", "numeric", 0),
        Column("ok", "boolean", "numeric", 1),
        Column("born", "date", "numeric", 2),
        Column("city", "text", "text", 0),
    ),
)
ENCODER = Encoder(SIGNATURE)
ROW: dict[str, Any] = {
    "age": 41.5,
    "ok": True,
    "born": "1970-01-03",
    "when": "1970-01-02T12:00:00Z",
    "city": "Köln",
    NASTY: "x",
}


def refusal(rows: Any, **options: Any) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        ENCODER.rows(rows, **options)
    assert caught.value.code == "invalid"
    return caught.value


def test_each_value_goes_to_its_place() -> None:
    tensors = encode_rows(SIGNATURE, [ROW, ROW | {"ok": False, "age": -1}])
    assert list(tensors) == ["numeric", "text"]
    assert tensors["numeric"].dtype == np.float32
    assert tensors["numeric"].tolist() == [[41.5, 1, 2, 1.5], [-1, 0, 2, 1.5]]
    assert tensors["text"].dtype == np.object_
    assert tensors["text"].tolist() == [["Köln", "x"], ["Köln", "x"]]


def test_null_is_missing_in_rows() -> None:
    tensors = ENCODER.rows([dict.fromkeys(ROW)])
    assert np.isnan(tensors["numeric"]).all()
    assert tensors["numeric"].shape == (1, 4)
    assert tensors["text"].tolist() == [["", ""]]


def test_null_is_refused_where_it_means_nothing() -> None:
    for name in ROW:
        error = refusal([ROW | {name: None}], nulls=False)
        assert repr(name) in error.message
        assert "got null" in error.message
        assert "missing value" in error.hint
        assert ("NaN" in error.hint) == (name in {"age", "ok"})


@pytest.mark.parametrize("name", ["age", "ok", "born", "when"])
def test_nan_is_missing_in_every_float(name: str) -> None:
    tensor = ENCODER.rows([ROW | {name: math.nan}])["numeric"]
    assert np.isnan(tensor).sum() == 1


def test_the_token_nan_and_empty_dates_are_missing() -> None:
    tensor = ENCODER.rows([ROW | {"age": "NaN", "born": "", "when": ""}])["numeric"]
    assert np.isnan(tensor).tolist() == [[True, False, True, True]]


@pytest.mark.parametrize(
    ("name", "value", "expected", "got"),
    [
        ("age", "41", "a number", "the string '41'"),
        ("age", True, "a number", "true"),
        ("age", [41], "a number", "a list"),
        ("age", {}, "a number", "an object"),
        ("age", math.inf, "finite", "inf"),
        ("age", -math.inf, "finite", "-inf"),
        ("age", "Infinity", "a number", "the string 'Infinity'"),
        ("age", 1e39, "32-bit float", "1e+39"),
        ("age", 10**400, "32-bit float", "a very large whole number"),
        ("ok", 10**400, "true or false", "a very large whole number"),
        ("ok", "true", "true or false", "the string 'true'"),
        ("ok", 2, "true or false", "2"),
        ("born", "yesterday", "a date", "the string 'yesterday'"),
        ("born", "2026-02-30", "a date", "the string '2026-02-30'"),
        ("born", "2026-02-01T00:00:00", "a date", "the string"),
        ("born", 20000, "a date", "20000"),
        ("when", "25:00", "a date and time", "the string '25:00'"),
        ("when", 1.5, "a date and time", "1.5"),
        ("city", 3, "a string", "3"),
        ("city", False, "a string", "false"),
        (NASTY, ["a"], "a string", "a list"),
    ],
)
def test_an_error_names_row_column_and_what_was_expected(
    name: str, value: Any, expected: str, got: str
) -> None:
    error = refusal([ROW, ROW, ROW | {name: value}])
    assert error.message.startswith("row 2, column ")
    assert repr(name) in error.message
    assert f"expected {expected}" in error.message or expected in error.message
    assert f"got {got}" in error.message
    assert error.field.startswith("rows[2].")


def test_missing_extra_and_misnamed_columns() -> None:
    less = {name: value for name, value in ROW.items() if name != "age"}
    assert "lacks column 'age'" in refusal([ROW, less]).message
    assert refusal([ROW, less]).message.startswith("row 1")
    extra = refusal([ROW | {"weight": 1}])
    assert "has column 'weight' that the model does not know" in extra.message
    misnamed = refusal([less | {"Age": 1}])
    assert "lacks column 'age' and has column 'Age'" in misnamed.message
    assert misnamed.hint == "did you mean 'age' instead of 'Age'?"
    assert "did you mean" not in refusal([less | {"target": 1}]).hint
    assert "and 1 more" in refusal([{}]).message


@pytest.mark.parametrize("rows", [[], None, "text", {"age": 1}, [1], [None], ["x" * 6], [[1] * 6]])
def test_what_is_not_a_list_of_objects_is_refused(rows: Any) -> None:
    assert refusal(rows).field.startswith("rows")


def test_long_names_and_values_are_shortened_in_errors() -> None:
    error = refusal([ROW | {"x" * 10_000: 1, "age": "y" * 10_000}])
    assert len(error.message) < 300
    assert len(refusal([ROW | {"age": "y" * 10_000}]).message) < 300


def test_a_model_of_tensors_takes_no_rows() -> None:
    bare = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
    with pytest.raises(TapsterError, match="takes tensors"):
        Encoder(bare).rows([{"x": 1}])


def test_columns_as_lists_and_arrays() -> None:
    columns: dict[str, Any] = {name: [value, value] for name, value in ROW.items()}
    columns["age"] = np.array([[1], [2]], dtype=np.int64)
    columns["ok"] = np.array([True, False])
    columns["city"] = [["a"], ["b"]]
    tensors = encode_columns(SIGNATURE, columns)
    assert tensors["numeric"].tolist() == [[1, 1, 2, 1.5], [2, 0, 2, 1.5]]
    assert tensors["text"].tolist() == [["a", "x"], ["b", "x"]]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("age", [1, 2, 3], "column 'age' 3"),
        ("age", 5, "one value a row"),
        ("age", "ab", "one value a row"),
        ("age", [[1, 2], [3, 4]], "one value a row"),
        ("age", np.zeros((2, 2)), "one value a row"),
        ("age", [1, None], "got null"),
        ("age", [1, "2"], "row 1, column 'age'"),
        ("age", np.array([1.0, np.inf]), "finite"),
    ],
)
def test_columns_that_do_not_fit(name: str, values: Any, words: str) -> None:
    columns: dict[str, Any] = {key: [value, value] for key, value in ROW.items()}
    with pytest.raises(TapsterError) as caught:
        ENCODER.columns(columns | {name: values})
    assert caught.value.code == "invalid"
    assert words in caught.value.message


def test_missing_and_extra_columns_in_columns() -> None:
    with pytest.raises(TapsterError, match="lacks columns"):
        ENCODER.columns({"age": [1]})
    with pytest.raises(TapsterError, match="does not know"):
        ENCODER.columns({name: [value] for name, value in ROW.items()} | {"z": [1]})


cells = st.one_of(
    st.none(), st.floats(allow_infinity=False, width=32), st.integers(-(2**24), 2**24)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_the_fast_path_and_the_careful_path_agree(table: list[tuple[Any, Any]]) -> None:
    columns = (Column("b", "number", "n", 1), Column("a", "number", "n", 0))
    signature = Signature((TensorSpec("n", "FP32", (-1, 2)),), (), columns)
    encoder = Encoder(signature)
    rows = [{"a": a, "b": b} for a, b in table]
    fast = encoder.rows(rows)["n"]
    careful = encoder._carefully(rows, True)["n"]
    plain = np.array([[math.nan if c is None else c for c in row] for row in table], np.float32)
    assert fast.tobytes() == careful.tobytes() == plain.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.dates())
def test_days_of_a_date_count_from_1970(day: date) -> None:
    assert days(day.isoformat(), "date") == (day - date(1970, 1, 1)).days


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_days_of_a_datetime_are_microseconds_of_a_day(moment: datetime) -> None:
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (
        datetime(1970, 1, 1, microsecond=1) - datetime(1970, 1, 1)
    )
    expected = micros / 86_400_000_000
    naive = moment.replace(tzinfo=None).isoformat()
    assert days(moment.isoformat(), "datetime") == expected
    assert days(naive, "datetime") == expected


def test_offsets_count() -> None:
    assert days("1970-01-02T01:00:00+01:00", "datetime") == 1.0
    assert days("1970-01-02", "datetime") == 1.0
    assert math.isnan(days("", "date"))


@pytest.mark.parametrize(
    ("text", "kind"), [("x", "date"), ("1970-01-01T00:00", "date"), ("1", "datetime")]
)
def test_what_is_no_date(text: str, kind: ColumnKind) -> None:
    with pytest.raises(ValueError, match=r"."):
        days(text, kind)
