"""Opens files that were uploaded or fetched: CSV, TSV, JSON Lines, Parquet, Arrow."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.core.crypto import file_digest
from tapster.datasets import jsonlines, scanning
from tapster.datasets.columns import check_names
from tapster.datasets.conversion import blank_to_null
from tapster.datasets.tables import Advance, Table, safe_names, same_columns, settled

_EXTENSIONS: Final = {
    "csv": "csv",
    "txt": "csv",
    "data": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "arrow": "arrow",
    "arrows": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
}


@dataclass(frozen=True)
class File:
    """A file to read, by its public name."""

    path: Path
    name: str


def open_files(files: list[File], form: str, options: dict[str, Any], advance: Advance) -> Table:
    """Open files of one format and one set of columns as one table, in the order given.

    `form` is one of `columns.FORMATS`, or "" to go by name and content. The digest covers the
    bytes and `options`, not the names. Raises TapsterError naming the file and what is wrong.
    """
    if not files:
        raise TapsterError("invalid", "there is no file to import", hint="send at least one file")
    forms = {file.name: form or _format(file) for file in files}
    first = forms[files[0].name]
    odd = next((name for name, other in forms.items() if other != first), None)
    if odd is not None:
        raise TapsterError(
            "invalid",
            f"the files of a folder must have one format; {files[0].name} is {first} and "
            f"{odd} is {forms[odd]}",
            hint="import them as datasets of their own",
            field=odd,
        )
    size = sum(file.path.stat().st_size for file in files)
    progress = _bytes_read(size, advance)
    if first in {"csv", "tsv"}:
        table, digests = _delimited(files, "\t" if first == "tsv" else "", progress)
    elif first == "jsonl":
        table, digests = jsonlines.open_lines([(f.path, f.name) for f in files], progress)
    else:
        table, digests = _columnar(files, first, progress)
    table.digest = _digest(digests, first, options)
    table.source = {
        "kind": "files",
        "format": first,
        "files": [
            {"name": file.name, "bytes": file.path.stat().st_size, "sha256": digest}
            for file, digest in zip(files, digests, strict=True)
        ],
    }
    return table


def _format(file: File) -> str:
    with file.path.open("rb") as stream:
        start = stream.read(16)
    if not start:
        raise TapsterError(
            "invalid", f"{file.name} is empty", hint="give a file with rows", field=file.name
        )
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    extension = file.name.rpartition(".")[2].lower()
    return _EXTENSIONS.get(extension, "csv")


def _bytes_read(total: int, advance: Advance) -> Callable[[int], None]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        advance(min(1.0, done / max(1, total)), f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    return progress


def _digest(digests: list[str], form: str, options: dict[str, Any]) -> str:
    parts = {"format": form, "files": digests, "options": options, "import": 2}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _delimited(
    files: list[File], separator: str, progress: Callable[[int], None]
) -> tuple[Table, list[str]]:
    shapes = [scanning.scan_delimited(f.path, f.name, separator, progress) for f in files]
    names = check_names(shapes[0].header, files[0].name)
    for file, shape in zip(files, shapes, strict=True):
        same_columns(names, check_names(shape.header, file.name), file.name)
        if not shape.even:
            scanning.find_ragged(file.path, file.name, shape)
    safe = safe_names(len(names))
    parts = [_scan(file, shape, safe) for file, shape in zip(files, shapes, strict=True)]
    rows = sum(shape.records for shape in shapes)
    table = Table(pl.concat(parts), names, "", rows, loose=dict.fromkeys(safe, True))
    return table, [shape.sha256 for shape in shapes]


def _scan(file: File, shape: scanning.Shape, safe: list[str]) -> pl.LazyFrame:
    frame = pl.scan_csv(
        file.path,
        has_header=False,
        skip_rows=1,
        schema=dict.fromkeys(safe, pl.String),
        separator=shape.separator,
        low_memory=True,
        missing_columns="insert",  # polars counts the fields of the first line, blank or not
        glob=False,
    )
    if shape.blanks and len(safe) > 1:
        frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))
    return frame


def diagnose(files: list[File], form: str) -> TapsterError:
    """What to say when polars could not parse files that looked well-formed."""
    if not files:
        return TapsterError("internal", "the rows that were read could not be stored")
    form = form or _format(files[0])
    for file in files if form in {"csv", "tsv"} else []:
        try:
            shape = scanning.scan_delimited(
                file.path, file.name, "\t" if form == "tsv" else "", lambda _: None
            )
            scanning.find_stray_quote(file.path, file.name, shape)
            scanning.find_ragged(file.path, file.name, shape)
        except TapsterError as error:
            return error
    return TapsterError(
        "invalid",
        f"{', '.join(file.name for file in files[:3])} cannot be read as {form}",
        hint="quotation marks inside a value are written twice and the whole value quoted"
        if form in {"csv", "tsv"}
        else "export it again, or choose its format",
    )


def _columnar(
    files: list[File], form: str, progress: Callable[[int], None]
) -> tuple[Table, list[str]]:
    digests, frames, dropped = [], [], []
    names: list[str] = []
    for file in files:
        frame = _open_columnar(file, form)
        frame, index = _without_index(frame)
        dropped += [name for name in index if name not in dropped]
        empty = [dtype == pl.Null for dtype in frame.collect_schema().dtypes()]
        frame, found = settled(frame, file.name)
        frame = frame.with_columns(
            pl.col(safe).cast(pl.Null)
            for safe, null in zip(safe_names(len(found)), empty, strict=True)
            if null
        )
        names = names or found
        same_columns(names, found, file.name)
        digests.append(file_digest(file.path))
        progress(file.path.stat().st_size)
        frames.append(frame)
    table = Table(pl.concat(_alike(frames), how="vertical"), names, "", 0)
    table.rows = int(table.frame.select(pl.len()).collect(engine="streaming").item())
    table.notes = [
        {"kind": "dropped", "column": name, "message": "an unnamed pandas index was left out"}
        for name in dropped
    ]
    return table, digests


def _open_columnar(file: File, form: str) -> pl.LazyFrame:
    try:
        if form == "parquet":
            frame = pl.scan_parquet(file.path, glob=False)
        else:
            with file.path.open("rb") as stream:
                stream_format = stream.read(6) != b"ARROW1"
            if stream_format:
                frame = pl.read_ipc_stream(file.path).lazy()
            else:
                frame = pl.scan_ipc(file.path, glob=False)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError, ValueError):
        raise TapsterError(
            "invalid",
            f"{file.name} is not a whole {'Parquet' if form == 'parquet' else 'Arrow'} file",
            hint="it may be cut off or of another format; export or send it again",
            field=file.name,
        ) from None
    return frame


def _without_index(frame: pl.LazyFrame) -> tuple[pl.LazyFrame, list[str]]:
    """Pandas stores an index without a name under a name of this form."""
    names = frame.collect_schema().names()
    index = [name for name in names if name.startswith("__index_level_") and name[-2:] == "__"]
    return (frame.drop(index), index) if index and len(index) < len(names) else (frame, [])


def _alike(frames: list[pl.LazyFrame]) -> list[pl.LazyFrame]:
    """Parts whose types differ (whole numbers here, fractions there) take the wider type."""
    schemas = [frame.collect_schema() for frame in frames]
    wider: dict[str, pl.DataType] = {}
    for name in schemas[0].names():
        found = {schema[name] for schema in schemas}
        # A file without a single value in a column says nothing about its type.
        kinds = found - {pl.Null()} or {pl.String()}
        if len(kinds) > 1:
            numbers = kinds <= {pl.Int64(), pl.Float64()}
            wider[name] = pl.Float64() if numbers else pl.String()
        elif kinds != found:
            wider[name] = kinds.pop()
    if not wider:
        return frames
    return [
        frame.with_columns(blank_to_null_if_text(name, dtype) for name, dtype in wider.items())
        for frame in frames
    ]


def blank_to_null_if_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column cast to a wider type; "" stays missing."""
    cast = pl.col(name).cast(dtype)
    return blank_to_null(cast).alias(name) if dtype == pl.String() else cast
