"""The plain wire: rows as objects of column values in, predictions out.

    {"rows": [{"age": 42, "city": "Turin"}]}
    {"predictions": [{"prediction": "yes", "probabilities": {"no": 0.1, "yes": 0.9}}]}

`null`, or NaN, is a missing value. A model whose outputs have other names gives them by name.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from tapster.contract.errors import TapsterError
from tapster.runtimes.parity import PREDICTION, PROBABILITIES
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest.bodies import accounted, decode, encode, invalid, spell
from tapster.serving.rest.tensors import rows_of
from tapster.serving.rest.wires import Request

Cell = float | str | bool | None
Row = dict[str, Cell]


class _Call(Struct, forbid_unknown_fields=True):
    rows: list[Row]


_DECODER: Final = msgspec.json.Decoder(_Call)


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    rows = decode(_DECODER, body).rows
    accounted(body, 2 + quotes_of(rows))
    call.inputs = call.target.model.encoder.rows(rows)
    call.rows = rows_of(call.inputs)


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    return spell({"predictions": by_row(call, answer, first)}, answer.finite)


def refuse(error: TapsterError) -> bytes:
    """See Wire: the four parts that the control API gives too."""
    return encode({"error": error.as_dict()})


def quotes_of(rows: list[Row]) -> int:
    """Quotation marks that spell these rows."""
    return 2 * sum(len(row) + list(map(type, row.values())).count(str) for row in rows)


def by_row(call: Request, answer: Answer, first: int) -> list[dict[str, Any]]:
    """An object a row: `prediction`, `probabilities` by label, or outputs by their names."""
    model = call.target.model
    names = [spec.name for spec in model.signature.outputs]
    columns = [
        _cells(model, name, rows_in(answer, index, first, call.rows))
        for index, name in enumerate(names)
    ]
    if len(names) == 1:
        names = [PREDICTION]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def rows_in(answer: Answer, output: int, first: int, rows: int) -> list[Any]:
    """An output's values row by row: bare values for one a row, else lists nested by shape."""
    values, width, shape = answer.columns[output]
    if shape[:1] != (rows,) if answer.alone else not shape:
        raise invalid(
            "this model's answer cannot be given row by row",
            hint="call it by the Open Inference protocol",
        )
    if len(shape) == 1:
        return values[first : first + rows]
    cut = [values[row * width : (row + 1) * width] for row in range(first, first + rows)]
    return [_nest(cells, shape[1:]) for cells in cut] if len(shape) > 2 else cut


def _nest(cells: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for size in reversed(shape[1:]):
        cells = [cells[start : start + size] for start in range(0, len(cells), size or 1)]
    return cells


def _cells(model: Model, name: str, rows: list[Any]) -> list[Any]:
    if name != PROBABILITIES or not model.labels:
        return rows
    labels = model.labels
    return [dict(zip(labels, row, strict=True)) for row in rows]
