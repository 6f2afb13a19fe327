"""Files of every format become typed, immutable versions."""

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.datasets import service
from tests.datasets.conftest import TENANT, Desk

ODD_NAMES = [
    'say "hi"',
    "'; DROP TABLE datasets; --",
    "<script>alert(1)</script>",
    "😀 naïve 列",
    "a,b;c|d",
    "^.*$",
    "*",
    "c0",
    " padded ",
    "{}[]%s\\n",
]


def _table() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "n": [1, 2, None, 4],
            "x": [0.5, None, 2.0, -1e300],
            "ok": [True, False, None, True],
            "day": [dt.date(2024, 2, 29), None, dt.date(1969, 12, 31), dt.date(2030, 1, 1)],
            "at": [dt.datetime(2024, 1, 2, 3, 4, 5, 678000), None, dt.datetime(1950, 1, 1), None],
            "word": ["a", "b, c", None, 'q"uo\nte'],
        }
    )


TYPES = {
    "n": "integer",
    "x": "number",
    "ok": "boolean",
    "day": "date",
    "at": "datetime",
    "word": "text",
}


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "jsonl", "arrow", "arrows"])
def test_every_format_gives_the_same_table(form: str, desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / f"table.{form}"
    table = _table()
    match form:
        case "csv":
            table.write_csv(path)
        case "tsv":
            table.write_csv(path, separator="\t")
        case "parquet":
            table.write_parquet(path)
        case "jsonl":
            table.with_columns(pl.col("day").cast(pl.String)).write_ndjson(path)
        case "arrow":
            table.write_ipc(path)
        case "arrows":
            table.write_ipc_stream(path)
    assert desk.add("t", path)["version"] == 1
    assert desk.types("t") == TYPES
    assert desk.frame("t").equals(table)


def test_a_folder_is_one_table_in_the_order_of_its_names(desk: Desk, put: Any) -> None:
    first = put("b.csv", "x,w\n3,c\n")
    second = put("a.csv", "x,w\r\n1,a\r\n2.5,b")
    desk.add("t", first, second)
    assert desk.frame("t").rows() == [(1.0, "a"), (2.5, "b"), (3.0, "c")]


def test_parquet_parts_may_differ_in_width_of_numbers(desk: Desk, tmp_path: Path) -> None:
    pl.DataFrame({"x": pl.Series([1], dtype=pl.Int8)}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"x": pl.Series([2.5], dtype=pl.Float32)}).write_parquet(tmp_path / "2.parquet")
    desk.add("t", tmp_path / "1.parquet", tmp_path / "2.parquet")
    assert desk.frame("t")["x"].to_list() == [1.0, 2.5]


def test_the_same_bytes_are_the_same_version_by_any_name(desk: Desk, put: Any) -> None:
    first = desk.add("t", put("one.csv", "x\n1\n"))
    again = desk.add("t", put("two.csv", "x\n1\n"))
    other = desk.add("t", put("two.csv", "x\n2\n"))
    typed = desk.add("t", put("two.csv", "x\n2\n"), schema={"x": "text"})
    assert [r["version"] for r in (first, again, other, typed)] == [1, 1, 2, 3]
    assert (first["known"], again["known"]) == (False, True)


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_odd_names_are_exact_everywhere(form: str, desk: Desk, tmp_path: Path) -> None:
    rows = {name: [i, i + 1, None, i + 1] for i, name in enumerate(ODD_NAMES)}
    table = pl.DataFrame(rows)
    path = tmp_path / f"t.{form}"
    getattr(table, {"jsonl": "write_ndjson"}.get(form, f"write_{form}"))(path)
    desk.add("t", path)
    assert desk.frame("t").equals(table)
    assert [c["name"] for c in desk.profile("t")["columns"]] == ODD_NAMES
    for name in ODD_NAMES:
        assert desk.split("t", name=f"by-{ODD_NAMES.index(name)}", kind="group", column=name,
                          fractions=[0.7, 0.3, 0])["column"] == name  # fmt: skip
    desk.clean(
        "t",
        {"op": "fill_missing", "columns": ODD_NAMES},
        {"op": "scale", "columns": ODD_NAMES, "method": "minmax"},
        {"op": "rename", "names": {ODD_NAMES[0]: ODD_NAMES[0] + "!"}},
    )
    assert desk.frame("t").columns == [ODD_NAMES[0] + "!", *ODD_NAMES[1:]]
    assert desk.frame("t")["*"].to_list() == [0.0, 1.0, 1.0, 1.0]


def test_a_name_may_have_256_characters(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "é" * 256 + "\n1\n"))
    assert desk.frame("t").columns == ["é" * 256]


def test_types_can_be_overridden(desk: Desk, put: Any) -> None:
    path = put("a.csv", "zip,flag,n,when\n123,1,5,2024-01-01\n456,0,6,2024-01-02T10:00:00Z\n")
    schema = {"zip": "text", "flag": "boolean", "n": "number", "when": "datetime"}
    desk.add("t", path, schema=schema)
    assert desk.types("t") == schema
    assert desk.frame("t").rows()[1] == ("456", False, 6.0, dt.datetime(2024, 1, 2, 10))


def test_columns_of_typed_files_can_be_overridden_too(desk: Desk, tmp_path: Path) -> None:
    pl.DataFrame({"x": [1.0, 2.0], "d": ["2024-01-01", None]}).write_parquet(tmp_path / "a.parquet")
    desk.add("t", tmp_path / "a.parquet", schema={"x": "integer", "d": "date"})
    assert desk.frame("t").rows() == [(1, dt.date(2024, 1, 1)), (2, None)]


def test_a_surprise_after_the_sample_widens_the_type_and_is_told(desk: Desk, put: Any) -> None:
    lines = [f"{i},{i},2024-01-01" for i in range(25_000)] + ["1.5,late,2024-01-01T00:00:00"]
    desk.add("t", put("a.csv", "a,b,c\n" + "\n".join(lines)))
    assert desk.types("t") == {"a": "number", "b": "text", "c": "datetime"}
    notes = {
        w["column"]: w["message"] for w in desk.profile("t")["warnings"] if w["kind"] == "mixed"
    }
    assert "row 25,001 holds '1.5'" in notes["a"]
    assert "row 25,001 holds 'late'" in notes["b"]
    assert desk.frame("t")["b"][-1] == "late"


def test_a_column_that_is_empty_in_the_sample_gets_its_type_from_the_rest(
    desk: Desk, put: Any
) -> None:
    desk.add("t", put("a.csv", "a,b\n" + ",1\n" * 25_000 + "7,1\n"))
    assert desk.types("t")["a"] == "integer"
    assert desk.frame("t")["a"].to_list()[-1] == 7


def test_missing_spellings_are_missing_in_numbers_and_words_in_texts(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", 'n,w\n1,NA\nNA,None\n?,""\n nan ,x\n'))
    assert desk.frame("t").rows() == [(1, "NA"), (None, "None"), (None, None), (None, "x")]


def test_leading_zeros_keep_a_column_text(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", "zip,n\n01234,0\n99999,0.5\n"))
    assert desk.types("t") == {"zip": "text", "n": "number"}


@pytest.mark.parametrize("first", ["1", ""])
def test_leading_zeros_keep_a_column_text_wherever_they_are(
    first: str, desk: Desk, put: Any
) -> None:
    desk.add("t", put("a.csv", "zip,n\n" + f"{first},1\n" * 25_000 + "007,1\n"))
    assert desk.types("t")["zip"] == "text"
    assert desk.frame("t")["zip"].to_list()[-1] == "007"


@pytest.mark.parametrize("first", ["true", ""])
def test_a_late_yes_is_no_boolean_any_more_than_an_early_one(
    first: str, desk: Desk, put: Any
) -> None:
    desk.add("t", put("a.csv", "b,n\n" + f"{first},1\n" * 25_000 + "yes,1\nNA,2\n"))
    assert desk.types("t")["b"] == "text"
    assert desk.frame("t")["b"].to_list()[-2:] == ["yes", "NA"]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognised(separator: str, desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", f"a{separator}b\n1{separator}2\n3{separator}4\n"))
    assert desk.frame("t").rows() == [(1, 2), (3, 4)]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_and_line_ends_inside_quotes_separate_nothing(
    separator: str, desk: Desk, put: Any
) -> None:
    text = f'a{separator}b\n1{separator}"x{separator}y\nz"\n3{separator}w\n'
    desk.add("t", put("a.csv", text))
    assert desk.frame("t").rows() == [(1, f"x{separator}y\nz"), (3, "w")]


def test_a_comma_inside_a_quoted_name_is_no_separator(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.csv", '"price, net";land\n1,5;DE\n2;FR\n'))
    assert desk.types("t") == {"price, net": "text", "land": "text"}


def test_the_separator_of_long_lines_is_found(desk: Desk, put: Any) -> None:
    line = f"1;{'x' * 9_000};2\n"
    desk.add("t", put("a.csv", "a;b;c\n" + line * 12))
    assert desk.types("t") == {"a": "integer", "b": "text", "c": "integer"}


def test_line_ends_blank_lines_quotes_and_a_byte_order_mark(desk: Desk, put: Any) -> None:
    text = '\ufeff"a ""x""",b\r\n\r\n1,"two\r\nlines, and ""quotes"""\r\n\n2,\r\n\r\n'
    desk.add("t", put("a.csv", text))
    assert desk.frame("t").columns == ['a "x"', "b"]
    assert desk.frame("t").rows() == [(1, 'two\r\nlines, and "quotes"'), (2, None)]


def test_random_tables_come_back_exactly(desk: Desk, tmp_path: Path) -> None:
    rng = random.Random(7)
    letters = 'ab",;\n é😀'
    for trial in range(25):
        width = rng.randint(2, 5)
        cells = [
            ["w" + "".join(rng.choices(letters, k=rng.randint(0, 8))) for _ in range(width)]
            for _ in range(rng.randint(1, 40))
        ]
        table = pl.DataFrame(cells, schema=[f"k{i}" for i in range(width)], orient="row")
        table.write_csv(tmp_path / "r.csv", line_terminator=rng.choice(["\n", "\r\n"]))
        desk.add(f"t{trial}", tmp_path / "r.csv")
        assert desk.frame(f"t{trial}").equals(table)


def test_a_pandas_index_without_a_name_is_left_out_and_told(desk: Desk, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2], "c": pd.Categorical(["u", "v"])}, index=["p", "q"])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.rename_axis("key").to_parquet(tmp_path / "b.parquet")
    desk.add("a", tmp_path / "a.parquet")
    desk.add("b", tmp_path / "b.parquet")
    assert desk.frame("a").rows() == [(1, "u"), (2, "v")]
    assert desk.frame("b").columns == ["x", "c", "key"]
    assert [w["kind"] for w in desk.profile("a")["warnings"]] == ["dropped"]


def test_json_lines_take_late_keys_and_mixed_values(desk: Desk, put: Any) -> None:
    lines = ['{"a": 1}'] * 3000 + ['{"a": 2.5, "b": "2024-05-06", "c": true}', "", '{"c": "x"}']
    desk.add("t", put("a.jsonl", "\n".join(lines)))
    assert desk.types("t") == {"a": "number", "b": "date", "c": "text"}
    assert desk.frame("t").rows()[-2:] == [(2.5, dt.date(2024, 5, 6), "true"), (None, None, "x")]


def test_json_lines_take_huge_numbers(desk: Desk, put: Any) -> None:
    desk.add("t", put("a.jsonl", '{"a": 1}\n{"a": 12345678901234567890}\n'))
    assert desk.frame("t")["a"].to_list() == [1.0, 12345678901234567890.0]


def test_a_file_of_a_folder_without_a_value_in_a_column_leaves_its_type(
    desk: Desk, tmp_path: Path
) -> None:
    values = {"n": 7, "d": dt.date(2024, 5, 15), "b": True, "w": "x", "gone": None}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pl.DataFrame({name: [None] for name in values}).write_parquet(files[0])
    pl.DataFrame([values]).write_parquet(files[1])
    desk.add("t", *files)
    types = {"n": "integer", "d": "date", "b": "boolean", "w": "text", "gone": "text"}
    assert desk.types("t") == types
    assert desk.frame("t").rows() == [(None,) * 5, tuple(values.values())]


def test_dates_outside_the_calendar(desk: Desk, put: Any, tmp_path: Path) -> None:
    rows = "2024-05-15,2024-05-15T10:00:00\n0000-01-01,0001-01-01T00:00:00+05:00\n"
    desk.add("t", put("a.csv", "d,t\n" + rows))
    assert desk.types("t") == {"d": "text", "t": "text"}
    far = pl.Series("d", [0, 3_000_000]).cast(pl.Int32)
    for dtype in (pl.Date, pl.Datetime("us")):
        far.cast(pl.Date).cast(dtype).to_frame().write_parquet(tmp_path / "a.parquet")
        with pytest.raises(TapsterError, match=r"'d' holds a date outside .* in row 2"):
            desk.add("far", tmp_path / "a.parquet")


def test_infinities_are_made_missing_when_asked(desk: Desk, put: Any) -> None:
    path = put("a.csv", "x\n1.5\ninf\n-Infinity\n")
    with pytest.raises(TapsterError, match="'x' holds an infinity in row 2") as caught:
        desk.add("t", path)
    assert "missing" in caught.value.hint
    desk.add("t", path, infinities="missing")
    assert desk.frame("t")["x"].to_list() == [1.5, None, None]


def test_a_refused_import_leaves_nothing(desk: Desk, put: Any) -> None:
    with pytest.raises(TapsterError):
        desk.add("t", put("a.csv", "x\ninf\n"))
    with desk.parts.db.read() as tx:
        assert service.listing(tx, TENANT) == []
    assert list(desk.parts.blobs.keys()) == []
