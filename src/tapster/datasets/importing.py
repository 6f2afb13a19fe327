"""The import job: a source becomes `data.parquet` and `profile.json`, streamed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets import profiling
from tapster.datasets.columns import shown, unknown_column
from tapster.datasets.conversion import DTYPES, beyond_calendar, convert
from tapster.datasets.databases import open_database
from tapster.datasets.files import File, diagnose, open_files
from tapster.datasets.inference import infer
from tapster.datasets.objects import fetch
from tapster.datasets.tables import Advance, Table, full_disk, safe_names, write_parquet
from tapster.jobs.context import JobContext


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Import, in a job process.

    `task` has `url`, `table`, `query` or (in `context.inputs["upload"]`) files; `schema`
    ({column: type}), `format` and `infinities` ("refuse" or "missing"). Answers {"digest",
    "rows", "columns", "source"}; the output `dataset` holds data.parquet and profile.json.
    """
    files = _files(task, context)
    output = context.output("dataset")
    with _plain_errors(files, task.get("format", "")):
        table = _open(files, task, context)
        declared = _declared(table, task.get("schema") or {})
        context.progress(0.35, "inferring", "finding column types")
        kinds, notes = infer(table.frame, table.public, table.loose, declared)
        frame = converted(table.frame, kinds)
        if task.get("infinities") == "missing":
            frame = without_infinities(frame, kinds)
        public = frame.rename(table.public)
        stages = Stages(context)
        write_parquet(public, output / "data.parquet", table.rows, stages("writing", 0.45, 0.7))
    return finish(output, table, notes, stages, str(task.get("infinities")))


class Stages:
    """Maps the progress of each stage of a job onto a part of the whole."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def __call__(self, phase: str, start: float, end: float) -> Advance:
        """A function that reports the stage's own fraction, 0..1."""
        return lambda done, text: self._context.progress(start + (end - start) * done, phase, text)


def finish(
    output: Path, table: Table, notes: list[dict[str, str]], stages: Stages, infinities: str
) -> dict[str, Any]:
    """Check and profile the written table, and describe it."""
    data = pl.scan_parquet(output / "data.parquet", glob=False)
    schema = data.collect_schema()
    if not data.select(pl.len()).collect().item():
        raise TapsterError(
            "invalid", "there are no rows to import", hint="a dataset needs at least one row"
        )
    if infinities != "missing":
        refuse_infinities(data)
    refuse_far_dates(data)
    profile = profiling.profile(output / "data.parquet", stages("profiling", 0.7, 1.0))
    profile["warnings"] = [*table.notes, *notes, *profile["warnings"]]
    (output / "profile.json").write_text(json.dumps(profile, ensure_ascii=False, allow_nan=False))
    names = {stored: kind for kind, stored in DTYPES.items()}
    return {
        "digest": table.digest,
        "rows": profile["rows"],
        "columns": [{"name": name, "type": names[dtype]} for name, dtype in schema.items()],
        "source": table.source,
    }


def _files(task: dict[str, Any], context: JobContext) -> list[File]:
    url = task.get("url") or ""
    if url.startswith("s3://"):
        return fetch(url, context.scratch("objects"), Stages(context)("fetching", 0.0, 0.15))
    if url:
        return []
    folder = context.inputs["upload"]
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [File(path, path.relative_to(folder).as_posix()) for path in paths]


def _open(files: list[File], task: dict[str, Any], context: JobContext) -> Table:
    url, stages = task.get("url") or "", Stages(context)
    options = {
        "schema": task.get("schema") or {},
        "infinities": task.get("infinities") or "refuse",
    }
    if url and not url.startswith("s3://"):
        return open_database(
            url,
            table=task.get("table") or "",
            query=task.get("query") or "",
            folder=context.scratch("rows"),
            options=options,
            advance=stages("reading", 0.05, 0.35),
        )
    table = open_files(files, task.get("format") or "", options, stages("reading", 0.15, 0.35))
    if url:
        table.source |= {"kind": "object", "url": url}
    return table


def _declared(table: Table, schema: dict[str, str]) -> dict[str, str]:
    safe = {name: key for key, name in table.public.items()}
    for name in schema:
        if name not in safe:
            raise unknown_column(name, table.names, f"schema.{name}")
    return {safe[name]: kind for name, kind in schema.items()}


def converted(frame: pl.LazyFrame, kinds: dict[str, str]) -> pl.LazyFrame:
    """Every column as its type."""
    schema = frame.collect_schema()
    return frame.select(
        convert(pl.col(safe), schema[safe], kinds[safe]).alias(safe) for safe in schema.names()
    )


def without_infinities(frame: pl.LazyFrame, kinds: dict[str, str]) -> pl.LazyFrame:
    """Infinite numbers made missing."""
    numbers = [safe for safe, kind in kinds.items() if kind == "number"]
    return frame.with_columns(
        pl.when(pl.col(safe).is_finite()).then(pl.col(safe)).alias(safe) for safe in numbers
    )


def refuse_infinities(data: pl.LazyFrame) -> None:
    """Raise TapsterError(invalid) naming the first column and row that hold an infinity."""
    hint = 'leave the cell empty, or import with infinities="missing"'
    _refuse(data, pl.Float64(), pl.Expr.is_infinite, "an infinity", hint)


def refuse_far_dates(data: pl.LazyFrame) -> None:
    """Raise TapsterError(invalid) naming the first column and row outside the calendar."""
    for dtype, family in ((pl.Date(), date), (pl.Datetime("us"), datetime)):
        odd = partial(beyond_calendar, family=family)
        what = "a date outside the years 1 to 9999"
        _refuse(data, dtype, odd, what, "leave the cell empty, or give the column as text")


def _refuse(
    data: pl.LazyFrame,
    dtype: pl.DataType,
    odd: Callable[[pl.Expr], pl.Expr],
    what: str,
    hint: str,
) -> None:
    schema = data.collect_schema()
    public = dict(zip(safe_names(len(schema)), schema.names(), strict=True))
    safe = data.rename({name: column for column, name in public.items()})
    asked = [c for c, stored in zip(public, schema.dtypes(), strict=True) if stored == dtype]
    if not asked:
        return
    found = safe.select(odd(pl.col(c)).any() for c in asked)
    for column, holds in zip(asked, found.collect(engine="streaming").row(0), strict=True):
        if holds:
            rows = safe.select(column).with_row_index("row", offset=1)
            row = rows.filter(odd(pl.col(column))).head(1).select("row").collect().item()
            raise TapsterError(
                "invalid",
                f"column {shown(public[column])} holds {what} in row {row:,}",
                hint=hint,
                field=public[column],
            )


@contextmanager
def _plain_errors(files: list[File], form: str) -> Iterator[None]:
    """Turn what polars says about a file into what a person can act on."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise full_disk(error) or diagnose(files, form) from error
