"""An answer row by row, for wires that give it so."""

from typing import Any

from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.raw import widened


def finite_in(model: Model, answer: Answer) -> bool:
    """Whether every value can be written as a JSON number; of BF16, that is not known."""
    return answer.finite and all(spec.datatype != "BF16" for spec in model.signature.outputs)


def rows_in(model: Model, answer: Answer, output: int, first: int, rows: int) -> list[Any]:
    """An output's values row by row: bare values for one a row, else lists nested by shape.

    Raises TapsterError(invalid) when the output does not come by row.
    """
    values, width, shape = answer.columns[output]
    if shape[:1] != (answer.rows,) if answer.alone else not shape:
        raise invalid(
            "this model's answer cannot be given row by row",
            hint="call it by the Open Inference protocol",
        )
    if model.signature.outputs[output].datatype == "BF16":  # carried as bits
        part = answer.arrays[output][first : first + rows]
        values, first = widened(part).ravel().tolist(), 0
    if len(shape) == 1:
        return values[first : first + rows]
    cut = [values[row * width : (row + 1) * width] for row in range(first, first + rows)]
    return [_nest(cells, shape[1:]) for cells in cut] if len(shape) > 2 else cut


def _nest(cells: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for size in reversed(shape[1:]):
        cells = [cells[start : start + size] for start in range(0, len(cells), size or 1)]
    return cells
