"""Rows to predict, from text and from frames."""

import datetime
import math

import pandas as pd
import polars as pl
import pytest

from tapster.client.values import from_frame, from_text
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
