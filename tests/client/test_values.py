"""Rows to predict, from text and from frames."""

import datetime
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from tapster.client.values import from_frame, from_parquet, from_text, further
from tapster.contract.errors import TapsterError

SIGNATURE = {
    "columns": [
        {"name": "age", "kind": "number"},
        {"name": "member", "kind": "boolean"},
        {"name": "zip", "kind": "text"},
        {"name": "since", "kind": "date"},
    ]
}


def test_csv_cells_become_what_the_signature_says() -> None:
    text = "age,member,zip,since\n41,true,01234,2024-02-29\n4.5e1,0,,\n"
    assert from_text(text, SIGNATURE) == [
        {"age": 41, "member": True, "zip": "01234", "since": "2024-02-29"},
        {"age": 45.0, "member": False, "zip": None, "since": None},
    ]


def test_csv_without_a_signature_takes_numbers_for_numbers() -> None:
    assert from_text("a,b\n1,x\n2.5,\n", {}) == [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}]


def test_csv_may_quote_commas_and_newlines_and_begin_with_a_byte_order_mark() -> None:
    assert from_text('\ufeffa,b\n"1, 2","x\ny"\n', {}) == [{"a": "1, 2", "b": "x\ny"}]


def test_one_column_of_empty_cells_is_rows_of_missing_values() -> None:
    assert from_text("age\n\n7\n", SIGNATURE) == [{"age": None}, {"age": 7}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,zip\n1\n", ["line 2", "1 cells", "2"]),
        ("age,age\n1,2\n", ["age", "twice"]),
        ("age\nold\n", ["line 2", "old", "age", "number"]),
        ("age\ninf\n", ["line 2", "inf", "age"]),
        ("member\nperhaps\n", ["line 2", "perhaps", "true or false"]),
        ('age,zip\n"1,2\n', ["line", "CSV"]),
        ("age,zip\n", ["no rows"]),
        ("", ["no rows"]),
        ("[1, 2]", ["objects"]),
        ('{"rows": 3}', ["objects"]),
        ("{broken", ["JSON"]),
    ],
)
def test_what_cannot_be_rows_is_refused_with_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(TapsterError) as caught:
        from_text(text, SIGNATURE)
    assert caught.value.code == "invalid"
    for word in words:
        assert word in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '{"rows": [{"a": 1}, {"a": 2}]}',
        '{"instances": [{"a": 1}, {"a": 2}]}',
        '{"a": 1}\n{"a": 2}\n',
    ],
)
def test_json_rows_come_in_four_spellings(text: str) -> None:
    assert from_text(text, {}) == [{"a": 1}, {"a": 2}]


def test_frames_become_rows_with_none_for_what_is_missing() -> None:
    day = datetime.date(2024, 2, 29)
    rows = [{"n": 1.5, "t": "x", "d": "2024-02-29"}, {"n": None, "t": None, "d": None}]
    assert from_frame(pl.DataFrame({"n": [1.5, None], "t": ["x", None], "d": [day, None]})) == rows
    frame = pd.DataFrame({"n": [1.5, math.nan], "t": ["x", None], "d": [day, pd.NaT]})
    assert from_frame(frame) == rows


def test_a_single_row_is_a_list_of_one() -> None:
    assert from_frame({"a": 1}) == [{"a": 1}]


def test_midnights_of_pandas_are_dates_as_a_date_column_wants_them() -> None:
    frame = pd.DataFrame({"d": pd.to_datetime(["2024-02-29T00:00", None, "2024-02-29T17:05"])})
    assert [row["d"] for row in from_frame(frame)] == ["2024-02-29", None, "2024-02-29T17:05:00"]


def test_a_parquet_file_is_rows(tmp_path: Path) -> None:
    day, price = datetime.date(2024, 2, 29), Decimal("1.50")
    pl.DataFrame({"n": [1, None], "d": [day, None], "p": [price, None]}).write_parquet(
        tmp_path / "a.parquet"
    )
    assert from_parquet(tmp_path / "a.parquet") == [
        {"n": 1, "d": "2024-02-29", "p": 1.5}, {"n": None, "d": None, "p": None},
    ]  # fmt: skip
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    pl.DataFrame({"n": []}).write_parquet(tmp_path / "empty.parquet")
    for name, told in (
        ("b", "cannot be read as"),
        ("gone", "cannot be read"),
        ("empty", "no rows"),
    ):
        with pytest.raises(TapsterError, match=told) as refused:
            from_parquet(tmp_path / f"{name}.parquet")
        assert refused.value.code == "invalid"


def test_a_refusal_of_a_later_request_names_the_row_of_all() -> None:
    error = further(TapsterError("invalid", "row 7, column 'x': no", field="rows[7].x"), 2000)
    assert (error.message, error.field) == ("row 2007, column 'x': no", "rows[2007].x")
    error = further(TapsterError("invalid", "there are no rows", field="rows"), 2000)
    assert (error.message, error.field) == ("there are no rows", "rows")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"x": 1}, {"x": math.inf}], "row 1, column 'x': expected a finite number, got inf"),
        (pl.DataFrame({"x": [-math.inf]}), "row 0, column 'x': expected a finite number, got -inf"),
        ([[1, 2]], "row 0 is a list, not an object"),
        ("rows.csv", "row 0 is a str, not an object"),
    ],
)
def test_what_json_cannot_carry_is_refused_and_not_taken_for_missing(rows: Any, told: str) -> None:
    with pytest.raises(TapsterError) as refused:
        from_frame(rows)
    assert (refused.value.code, refused.value.message.startswith(told)) == ("invalid", True)
