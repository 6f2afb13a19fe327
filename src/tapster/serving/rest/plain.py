"""The plain wire: rows as objects of column values in, predictions out.

    {"rows": [{"age": 42, "city": "Turin"}]}
    {"predictions": [{"prediction": "yes", "probabilities": {"no": 0.1, "yes": 0.9}}]}

`null`, or NaN, is a missing value. A model whose outputs have other names gives them by name.
Rows may also come, and predictions go, as CSV (see `csv_rows`).
"""

import json
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from tapster.contract.errors import TapsterError
from tapster.runtimes.parity import PREDICTION, PROBABILITIES
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest import csv_rows, large
from tapster.serving.rest.bodies import PIECE, accounted, decode, encode, spell
from tapster.serving.rest.rows import finite_in, rows_in
from tapster.serving.rest.tensors import Inputs, rows_of
from tapster.serving.rest.wires import Request

Cell = float | str | bool | None
Row = dict[str, Cell]


class _Call(Struct, forbid_unknown_fields=True):
    rows: list[Row]


_DECODER: Final = msgspec.json.Decoder(_Call)
_ROWS: Final = msgspec.json.Decoder(list[Row])


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    model = call.target.model
    inputs = csv_rows.read(model, body) if call.form.csv else _read_json(model, body)
    call.inputs, call.rows = inputs, rows_of(inputs)


def _read_json(model: Model, body: bytes | bytearray) -> Inputs:
    inputs = _read_large(model, body) if len(body) >= large.LARGE else None
    if inputs is not None:
        return inputs
    if len(body) > large.MAX_ODD:
        raise large.too_odd()
    rows = decode(_DECODER, body).rows
    accounted(body, 2 + quotes_of(rows))
    return model.encoder.rows(rows)


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    if call.form.as_csv:
        call.lines = csv_rows.CONTENT_TYPE + noted(answer)
        return csv_rows.write(call, answer, first)
    note = b'"note":%b,' % encode(answer.note) if answer.note else b""
    model = call.target.model
    finite = finite_in(model, answer)
    pieces = [
        spell(
            _by_row(model, answer, first + at, min(PIECE, call.rows - at)),
            finite,
        )
        for at in range(0, call.rows, PIECE)
    ]
    return b'{%b"predictions":[%b]}' % (note, b",".join([piece[1:-1] for piece in pieces]))


def refuse(error: TapsterError) -> bytes:
    """See Wire: the four parts that the control API gives too."""
    return encode({"error": error.as_dict()})


def noted(answer: Answer) -> bytes:
    """What an answer must say of itself, as a header; for bodies that have no place for it."""
    return b"x-tapster-note: %b\r\n" % json.dumps(answer.note).encode() if answer.note else b""


def read_objects(model: Model, body: bytes | bytearray, span: large.Span) -> Inputs | None:
    """The inputs that a long list of rows makes; None if it is not just rows of plain values."""
    parts: list[Inputs] = []
    for piece in large.objects(body, span):
        try:
            rows = _ROWS.decode(piece)
            accounted(piece, quotes_of(rows))
            parts.append(model.encoder.rows(rows))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TapsterError):
            return None
    if not parts:
        return None
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_large(model: Model, body: bytes | bytearray) -> Inputs | None:
    found = large.cut_objects(body, b'"rows"')
    if found is None:
        return None
    try:
        decode(_DECODER, found[0])
    except TapsterError:
        return None
    return read_objects(model, body, found[1]) if found[0].count(b'"') == 2 else None


def quotes_of(rows: list[Row]) -> int:
    """Quotation marks that spell these rows."""
    return 2 * sum(len(row) + list(map(type, row.values())).count(str) for row in rows)


def _by_row(model: Model, answer: Answer, first: int, rows: int) -> list[dict[str, Any]]:
    """An object a row: `prediction`, `probabilities` by label, or outputs by their names."""
    names = [spec.name for spec in model.signature.outputs]
    columns = [
        _cells(model, name, rows_in(model, answer, index, first, rows))
        for index, name in enumerate(names)
    ]
    if len(names) == 1:
        names = [PREDICTION]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells(model: Model, name: str, rows: list[Any]) -> list[Any]:
    if name != PROBABILITIES or not model.labels:
        return rows
    labels = model.labels
    return [dict(zip(labels, row, strict=True)) for row in rows]
