"""Rows to predict: CSV and JSON text, or a frame, turned into objects of column values."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError

Row = dict[str, Any]
_ROW: Final = re.compile(r"(row |rows\[)(\d+)")
_BOOLEANS: Final = {
    "true": True, "yes": True, "1": True, "1.0": True,
    "false": False, "no": False, "0": False, "0.0": False,
}  # fmt: skip


def from_text(text: str, signature: dict[str, Any], *, form: str = "") -> list[Row]:
    """Rows in `text`; `form` is csv or json, or "" to tell by the first character.

    In CSV the header names the columns, an empty cell is missing, and cells become numbers or
    booleans where the signature's column is one. Raises TapsterError(invalid) naming the line.
    """
    text = text.removeprefix("\ufeff")
    if not form:
        form = "json" if text.lstrip()[:1] in {"[", "{"} else "csv"
    rows = _from_json(text) if form == "json" else _from_csv(text, signature)
    if not rows:
        raise TapsterError("invalid", "there are no rows to predict", hint="give at least one row")
    return rows


def from_parquet(path: Path) -> list[Row]:
    """Rows of a Parquet file. Raises TapsterError(invalid) naming it."""
    import polars as pl

    try:
        rows = from_frame(pl.read_parquet(path, glob=False))
    except OSError as error:
        raise TapsterError(
            "invalid",
            f"{str(path)!r} cannot be read: {error.strerror or 'is it there?'}",
            hint="check the path",
        ) from None
    except pl.exceptions.PolarsError:
        raise TapsterError("invalid", f"{str(path)!r} cannot be read as Parquet") from None
    if not rows:
        raise TapsterError("invalid", "there are no rows to predict", hint="give at least one row")
    return rows


def further(error: TapsterError, rows: int) -> TapsterError:
    """A refusal of some of many rows, which begins with the row: counted from `rows` before."""

    def moved(text: str) -> str:
        found = _ROW.match(text)
        return f"{found[1]}{int(found[2]) + rows}{text[found.end() :]}" if found else text

    return TapsterError(
        error.code,
        moved(error.message),
        hint=error.hint,
        field=moved(error.field),
        retry_after=error.retry_after,
    )


def from_frame(frame: Any) -> list[Row]:
    """Rows of a pandas or polars frame, or of any iterable of mappings; NaN becomes None.

    Raises TapsterError(invalid) for what is no row, and for infinities: JSON has none, and they
    would be taken for missing.
    """
    if hasattr(frame, "to_dicts"):
        rows = frame.to_dicts()
    elif hasattr(frame, "to_dict") and hasattr(frame, "columns"):
        rows = frame.to_dict("records")
    else:
        rows = [frame] if isinstance(frame, Mapping) else list(frame)
    return [_named(row, at) for at, row in enumerate(rows)]


def _named(row: Any, at: int) -> Row:
    if not isinstance(row, Mapping):
        raise TapsterError(
            "invalid",
            f"row {at} is a {type(row).__name__}, not an object of column: value",
            hint='give rows such as {"age": 44, "plan": "pro"}, or a frame',
            field=f"rows[{at}]",
        )
    named = {str(name): _plain(value) for name, value in row.items()}
    for name, value in named.items():
        if isinstance(value, float) and math.isinf(value):
            raise TapsterError(
                "invalid",
                f"row {at}, column {name[:100]!r}: expected a finite number, got {value}",
                hint="a missing value is None",
                field=f"rows[{at}].{name[:100]}",
            )
    return named


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if hasattr(value, "isoformat"):
        # pandas has no dates, only their midnights; a column of either kind takes a date
        text = str(value.isoformat()).removesuffix("T00:00:00")
        return None if text == "NaT" else text
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_json(text: str) -> list[Row]:
    try:
        found = json.loads(text)
    except ValueError as error:
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise TapsterError("invalid", f"the rows are not JSON: {error}") from None
    if isinstance(found, dict):
        found = found.get("rows", found.get("instances", [found]))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise TapsterError(
            "invalid",
            "the JSON holds no list of objects",
            hint='write [{"column": value, ...}, ...]',
        )
    return found


def _from_csv(text: str, signature: dict[str, Any]) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    kinds = {column["name"]: column["kind"] for column in signature.get("columns", [])}
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise TapsterError("invalid", f"the header names the column {twice!r} twice")
        for cells in reader:
            if not cells and len(header) > 1:
                continue
            rows.append(_row(header, cells or [""], kinds, reader.line_num))
    except csv.Error as error:
        message = f"line {reader.line_num} is not CSV: {error}"
        raise TapsterError("invalid", message) from None
    return rows


def _row(header: list[str], cells: list[str], kinds: dict[str, str], line: int) -> Row:
    if len(cells) != len(header):
        raise TapsterError(
            "invalid",
            f"line {line} has {len(cells)} cells, the header has {len(header)}",
            hint="quote values that hold commas",
        )
    named = zip(header, cells, strict=True)
    return {name: _cell(cell, kinds.get(name, ""), name, line) for name, cell in named}


def _cell(cell: str, kind: str, name: str, line: int) -> Any:
    if cell == "":
        return None
    if kind in {"text", "date", "datetime"}:
        return cell
    if kind == "boolean":
        if (value := _BOOLEANS.get(cell.strip().lower())) is None:
            raise _mistyped(cell, "true or false", name, line)
        return value
    number = _number(cell)
    if number is None and kind == "number":
        raise _mistyped(cell, "a finite number", name, line)
    return cell if number is None else number


def _number(cell: str) -> float | int | None:
    try:
        return int(cell)
    except ValueError:
        pass
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _mistyped(cell: str, wanted: str, name: str, line: int) -> TapsterError:
    shown = cell if len(cell) <= 40 else cell[:40] + "..."
    return TapsterError(
        "invalid",
        f"line {line}: {shown!r} in column {name!r} is not {wanted}",
        hint="leave the cell empty if the value is missing",
        field=name,
    )
