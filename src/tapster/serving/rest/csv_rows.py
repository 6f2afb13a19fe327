"""Rows as CSV (RFC 4180): a header with the model's columns in any order, then a row a line.

A number is a decimal or NaN, a boolean true, false, 1 or 0 in any case, a date or datetime
ISO-8601 text; nothing between two commas is a missing value. Predictions come as `prediction`, the
probability of each class as `probability_CLASS`, and other outputs by their names, with a number
where there are several values a row. A byte-order mark and empty lines are passed over.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.runtimes.parity import PREDICTION, PROBABILITIES
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest.bodies import invalid, shown
from tapster.serving.rest.rows import rows_in
from tapster.serving.rest.tensors import FLOAT_LIMITS, Inputs
from tapster.serving.rest.wires import Request

CONTENT_TYPE: Final = b"content-type: text/csv; charset=utf-8\r\n"
PIECE: Final = 2048
_LARGEST: Final = FLOAT_LIMITS["FP32"]
_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}

Row = dict[str, Any]
Cell = Callable[[str], Any]
Numbered = tuple[int, Row]


def read(model: Model, body: bytes | bytearray) -> Inputs:
    """The inputs that a table makes. Raises TapsterError(invalid) naming line and column."""
    parts: list[Inputs] = []
    rows = _rows(model, body)
    while piece := list(islice(rows, PIECE)):
        try:
            parts.append(model.encoder.rows([row for _, row in piece]))
        except TapsterError:
            _explain(model, piece)
            raise
    if not parts:
        raise invalid("there are no rows below the header", hint="send at least one row")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    model = call.target.model
    columns: dict[str, list[Any]] = {}
    for index, spec in enumerate(model.signature.outputs):
        rows = rows_in(model, answer, index, first, call.rows)
        columns |= _columns(model, spec.name, rows)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows(zip(*(map(_spell, column) for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _rows(model: Model, body: bytes | bytearray) -> Iterator[Numbered]:
    """Rows with the numbers of their lines."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8 text") from None
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(filter(None, table), [])
        cells = [_CELLS[model.columns.get(name, "text")] for name in names]
        _check_header(model, names)
        for values in table:
            if values:
                yield table.line_num, _row(table.line_num, names, cells, values)
    except csv.Error as error:
        raise invalid(f"line {table.line_num}: {error}") from None


def _check_header(model: Model, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(f"the header has the column {shown(twice)} twice", field=twice[:100])
    if names and model.columns and names[0] not in model.columns and len(names) == 1:
        raise invalid(
            f"the header is {shown(names[0])}, which is no column of the model",
            hint="begin with the names of the columns, separated by commas",
        )
    try:
        model.encoder.columns({name: [] for name in names})
    except TapsterError as error:
        if model.columns and set(names) == model.columns.keys():
            return  # there is only nothing to encode
        error.message = error.message.replace("the request", "the header", 1)
        raise


def _row(line: int, names: list[str], cells: list[Cell], values: list[str]) -> Row:
    if len(values) != len(names):
        raise invalid(
            f"line {line} has {len(values)} values, the header {len(names)}",
            hint="put values that have commas in them between double quotes",
            field=f"line {line}",
        )
    row: Row = {}
    for name, cell, value in zip(names, cells, values, strict=True):
        try:
            row[name] = cell(value) if value else None
        except ValueError as error:
            raise _bad(line, name, str(error), value) from None
    return row


def _bad(line: int, name: str, expected: str, value: str) -> TapsterError:
    return invalid(
        f"line {line}, column {shown(name)}: expected {expected}, got {shown(value)}",
        hint="a missing value is nothing between two commas",
        field=f"line {line}, {name[:100]}",
    )


def _explain(model: Model, piece: list[Numbered]) -> None:
    """Raise the error of the first row that cannot be encoded, with its line."""
    for line, row in piece:
        try:
            model.encoder.rows([row])
        except TapsterError as error:
            error.message = error.message.replace("row 0", f"line {line}", 1)
            error.field = error.field.replace("rows[0].", f"line {line}, ", 1)
            raise


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if "_" in text:
        raise ValueError("a number")
    if abs(number) > _LARGEST:
        raise ValueError("a finite number that fits in a 32-bit float")
    return number


def _truth(text: str) -> bool | float:
    truth = _TRUTHS.get(text.strip().lower())
    if truth is None:
        if text.strip().lower() == "nan":
            return math.nan
        raise ValueError("true or false")
    return truth


_CELLS: Final[dict[str, Cell]] = {
    "number": _number,
    "boolean": _truth,
    "date": str,
    "datetime": str,
    "text": str,
}


def _columns(model: Model, name: str, rows: list[Any]) -> dict[str, list[Any]]:
    """An output as columns by their names in the header."""
    if not rows or not isinstance(rows[0], list):
        only = len(model.signature.outputs) == 1
        return {PREDICTION if only else name: rows}
    if any(isinstance(cell, list) for cell in rows[0]):
        raise invalid(f"the output {shown(name)} is no table", hint="accept application/json")
    if name == PROBABILITIES and model.labels:
        names = [f"probability_{label}" for label in model.labels]
    else:
        names = [f"{name}_{index}" for index in range(len(rows[0]))]
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _spell(value: Any) -> Any:
    """A value as JSON would spell it; texts and finite numbers as they are."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
