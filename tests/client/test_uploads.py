"""What is sent for a path, a folder or a frame."""

from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from tapster.client.saving import save
from tapster.client.uploads import absolute, collect, is_url
from tapster.contract.errors import TapsterError


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "wine.csv"
    path.write_bytes(b"a\n1\n")
    (item,) = collect(str(path))
    with item.open() as stream:
        assert (item.name, item.size, stream.read()) == ("wine.csv", 4, b"a\n1\n")


def test_of_a_folder_the_readable_files_are_sent_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.parquet", "notes.md", "c.CSV"):
        (tmp_path / name).write_text("x")
    assert [item.name for item in collect(tmp_path)] == ["a.parquet", "b.csv", "c.CSV"]


def test_names_that_an_upload_cannot_have_are_changed_and_stay_apart(tmp_path: Path) -> None:
    for name in ("a?.csv", "a!.csv", ".csv.csv"):
        (tmp_path / name).write_text("x")
    names = [item.name for item in collect(tmp_path)]
    assert len(set(names)) == 3
    assert all(name.endswith(".csv") and "?" not in name for name in names)


@pytest.mark.parametrize("make", [pl.DataFrame, pl.LazyFrame, pd.DataFrame])
def test_a_frame_is_sent_as_parquet(make: type) -> None:
    (item,) = collect(make({"a": [1, None], "b": ["x", "y"]}))
    with item.open() as stream:
        frame = pl.read_parquet(stream.read())
    assert frame["b"].to_list() == ["x", "y"]
    assert frame["a"].cast(pl.Float64).fill_nan(None).to_list() == [1.0, None]


def test_what_is_no_source_is_refused_by_name(tmp_path: Path) -> None:
    for source, word in ((tmp_path / "gone.csv", "gone.csv"), (tmp_path, "folder"), (7, "int")):
        with pytest.raises(TapsterError) as caught:
            collect(source)
        assert word in caught.value.message
        assert caught.value.hint


def test_a_url_is_left_to_the_server() -> None:
    assert is_url("s3://bucket/key.csv")
    assert is_url("sqlite:///shop.db")
    assert not is_url("data/wine.csv")
    assert not is_url(Path("s3://x"))


def test_a_relative_database_is_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///shop.db") == f"sqlite:///{tmp_path}/shop.db"
    for url in ("sqlite:////var/shop.db", "s3://bucket/a.csv", "postgresql://host/db"):
        assert absolute(url) == url


@pytest.mark.parametrize("folder", [".", "/", ""])
def test_a_folder_is_no_file_to_write(folder: str) -> None:
    with pytest.raises(TapsterError, match="is a folder"):
        save(folder, [b"x"])
