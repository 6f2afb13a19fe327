"""Every bad source gets one clear error that names the thing and the remedy."""

import os
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from tapster.contract.errors import TapsterError
from tests.datasets.conftest import Desk

GZIP = b"\x1f\x8b\x08\x00" + bytes(40)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b" \n\n ", "a.csv is empty"),
        ("a.csv", b"x,y\n", "no rows"),
        ("a.csv", b"\nx,y\n1,2\n", "first line of a.csv is blank"),
        ("a.csv", b"x,y\n1,2\n3\n4,5\n", "line 3 of a.csv has 1 field; the header has 2"),
        ("a.csv", b"x,y\n1,2\n3,4,5\n", "line 3 of a.csv has 3 fields; the header has 2"),
        ("a.csv", b'x,y\n"1\n1",2\n"3",4,5\n', "line 4 of a.csv has 3 fields"),
        ("a.csv", b'x,y\n1,2\n"3\n', "quotation mark opened in line 3 of a.csv is never closed"),
        (
            "a.csv",
            b'x,y\n1,2\n5" pipe,2\n3" rod,4\n',
            "line 3 of a.csv has a quotation mark inside",
        ),
        ("a.jsonl", b'\xef\xbb\xbf{"a": 1}', "line 1 of a.jsonl begins with a byte order mark"),
        ("a.json", b'[{"a": 1}]', "line 1 of a.json begins a JSON list"),
        ("a.csv", b"x,y\n1,caf\xe9\n", "byte 0xE9 in line 2 .byte 9."),
        ("a.csv", "x\n1\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"x\n1\x002\n", "is binary|NUL byte"),
        ("a.csv", b"x\n" + b"1\n" * 60_000 + b"\x00\n", "line 60,002 .byte 120,002. holds a NUL"),
        ("a.csv", GZIP, "gzip"),
        ("a.xlsx", b"PK\x03\x04" + bytes(40), "Excel"),
        ("a.csv", b"x\ry\r1\r", "no line end"),
        ("a.csv", b"x,y,x\n1,2,3\n", "two columns named 'x': 1 and 3"),
        ("a.csv", b"x\ty,z\n1,2\n", r"control character U\+0009"),
        ("a.csv", b'"x\x7f",z\n1,2\n', r"control character U\+007F"),
        ("a.csv", b'"x\ny",z\n1,2\n', r"control character U\+000A"),
        ("a.csv", b"n" * 257 + b",z\n1,2\n", "257 characters"),
        ("a.parquet", b"PAR1" + bytes(50) + b"PAR1", "not a whole Parquet file"),
        ("a.arrow", b"ARROW1" + bytes(50), "not a whole Arrow file"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 of a.jsonl is not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2 of a.jsonl is not a JSON object"),
        ("a.jsonl", b'{"a": [1]}\n', "line 1 of a.jsonl holds a list under 'a'"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "byte 0xFF in line 2"),
        ("a.jsonl", b"\n", "no rows"),
    ],
)
def test_bad_files(name: str, content: bytes, says: str, desk: Desk, put: Any) -> None:
    with pytest.raises(TapsterError, match=says) as caught:
        desk.add("t", put(name, content))
    assert caught.value.code in {"invalid", "too_large"}
    assert caught.value.hint
    assert str(desk.parts.settings.home) not in f"{caught.value.message} {caught.value.hint}"


def test_a_parquet_file_cut_off_is_refused(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"x": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TapsterError, match="not a whole Parquet file"):
        desk.add("t", path)


def test_a_corrupt_page_is_refused(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"x": [str(i) * 20 for i in range(5000)]}).write_parquet(path)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(TapsterError, match=r"a\.parquet cannot be read as parquet"):
        desk.add("t", path)


def test_nested_columns_are_refused_by_name(desk: Desk, tmp_path: Path) -> None:
    pl.DataFrame({"x": [[1]]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(TapsterError, match=r"column 'x' of a\.parquet holds list"):
        desk.add("t", tmp_path / "a.parquet")


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_a_hundred_thousand_columns_are_refused_without_eating_memory(
    form: str, desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / f"wide.{form}"
    names = [f"column {i}" for i in range(100_000)]
    if form == "csv":
        path.write_text(",".join(names) + "\n" + ("1," * 99_999 + "1\n") * 20)
    elif form == "jsonl":
        path.write_text("{" + ",".join(f'"{name}": 1' for name in names) + "}\n")
    else:
        pl.DataFrame({name: [1] for name in names}).write_parquet(path)
    before = psutil.Process().memory_info().rss
    with pytest.raises(TapsterError, match="10,000") as caught:
        desk.add("t", path)
    assert caught.value.code == "too_large"
    assert psutil.Process().memory_info().rss - before < 500e6


def test_two_thousand_columns_are_welcome(desk: Desk, tmp_path: Path) -> None:
    names = [f"column {i}" for i in range(2_000)]
    path = tmp_path / "wide.csv"
    path.write_text(",".join(names) + "\n" + ("1," * 1_999 + "2\n") * 5)
    assert desk.add("t", path)["columns"] == 2_000


def test_files_of_a_folder_must_agree(desk: Desk, put: Any) -> None:
    with pytest.raises(TapsterError, match=r"b\.csv lacks 'y' and has 'z' besides"):
        desk.add("t", put("a.csv", "x,y\n1,2\n"), put("b.csv", "x,z\n1,2\n"))
    with pytest.raises(TapsterError, match="another order"):
        desk.add("t", put("a.csv", "x,y\n1,2\n"), put("b.csv", "y,x\n1,2\n"))
    with pytest.raises(TapsterError, match=r"a\.csv is csv and b\.jsonl is jsonl"):
        desk.add("t", put("a.csv", "x,y\n1,2\n"), put("b.jsonl", '{"x": 1}\n'))


def test_a_declared_type_that_does_not_fit_names_row_and_value(desk: Desk, put: Any) -> None:
    path = put("a.csv", "x\n1\nNA\nthree\n")
    with pytest.raises(TapsterError, match="'x' is not integer: row 3 holds 'three'") as caught:
        desk.add("t", path, schema={"x": "integer"})
    assert caught.value.field == "x"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schema": {"x": "int"}}, "unknown type 'int'"),
        ({"schema": {"xx": "integer"}}, "no column 'xx'"),
        ({"format": "xml"}, "format 'xml' is unknown"),
        ({"infinities": "keep"}, "infinities 'keep' is unknown"),
        ({"table": "t"}, "are for databases"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str, desk: Desk, put: Any) -> None:
    with pytest.raises(TapsterError, match=says):
        desk.add("t", put("a.csv", "x\n1\n"), **options)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "x" * 101, "..", "a@1"])
def test_bad_names(name: str, desk: Desk, put: Any) -> None:
    with pytest.raises(TapsterError, match="cannot be a name"):
        desk.add(name, put("a.csv", "x\n1\n"))


def test_an_import_needs_one_source(desk: Desk) -> None:
    with pytest.raises(TapsterError, match="either an upload or a url"):
        desk.add("t")
    with pytest.raises(TapsterError, match="not a URL that data can come from"):
        desk.add("t", url="file:///etc/passwd")


@pytest.mark.system
def test_a_full_disk_is_told_and_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=True)
    path = tmp_path / "a.csv"
    noise = pl.DataFrame({"x": pl.Series([os.urandom(8).hex() for _ in range(60_000)])})
    noise.write_csv(path)
    desk.work = small
    try:
        with pytest.raises(TapsterError) as caught:
            desk.add("t", path)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert caught.value.code == "storage_full"
    assert "disk is full" in caught.value.message
    assert list(desk.parts.blobs.keys()) == []
