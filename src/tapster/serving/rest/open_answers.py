"""Answers of the Open Inference Protocol: JSON, with tensors as bytes after it where asked for.

Source: the protocol's `inference_rest` page and Triton's binary tensor data extension. NaN,
Infinity and -Infinity are written as these bare words, as Triton does.
"""

from functools import lru_cache
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.serving.batcher import Answer
from tapster.serving.engine import Target
from tapster.serving.model import Model
from tapster.serving.rest import raw
from tapster.serving.rest.bodies import PIECE, encode, encode_lines, spell_list
from tapster.serving.rest.wires import Request

_BINARY: Final = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
)


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    target = call.target
    if answer.singly and call.chosen is None:
        bodies = answer.spelled.get(target)
        if bodies is None:
            bodies = answer.spelled[target] = _spell_rows(target, answer)
        if bodies:
            body = bodies[first]
            return target.prefix + call.tag + body[len(target.prefix) :] if call.tag else body
    heads = _heads(target.model)
    chosen = call.chosen or tuple((index, False) for index in range(len(heads)))
    if answer.singly and not answer.alone:
        rows = answer.spelled.get((target, chosen))
        if rows is None:
            rows = answer.spelled[target, chosen] = _spell_bytes(target.model, answer, chosen)
        if rows:
            head = b"%b%b%b" % (target.prefix, call.tag, rows[-1])
            call.lines = _BINARY % len(head)
            return head + rows[first]
    outputs: list[bytes] = []
    tail: list[bytes] = []
    for index, binary in chosen:
        if binary:
            array = _part(answer, index, first, call.rows)
            datatype = target.model.signature.outputs[index].datatype
            tail.append(raw.encode(datatype, array))
            outputs.append(_in_tail(heads[index], array.shape, len(tail[-1])))
        else:
            outputs.append(_in_json(target.model, answer, index, first, call.rows))
    note = b'"parameters":%b,' % encode(answer.note) if answer.note else b""
    head = b'%b%b%b"outputs":[%b]}' % (target.prefix, call.tag, note, b",".join(outputs))
    if not tail:
        return head
    call.lines = _BINARY % len(head)
    return b"".join((head, *tail))


def refuse(error: TapsterError) -> bytes:
    """See Wire: one string, because clients read nothing else."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return encode({"error": text})


def _part(answer: Answer, index: int, first: int, rows: int) -> Array:
    """An output's rows that belong to one request."""
    array = answer.arrays[index]
    return array if answer.alone else array[first : first + rows]


def _spell_bytes(model: Model, answer: Answer, chosen: tuple[tuple[int, bool], ...]) -> list[bytes]:
    """The bytes of each row, for requests of one row, and after them the JSON of the outputs, which
    is the same for all; nothing if that is not all that they take."""
    arrays = [answer.arrays[index] for index, _ in chosen]
    if answer.note or not all(binary for _, binary in chosen):
        return []
    if any(array.dtype.kind == "O" or not array.size for array in arrays):
        return []
    heads = _heads(model)
    outputs, columns = [], []
    for (index, _), array in zip(chosen, arrays, strict=True):
        data, width = array.tobytes(), array.nbytes // answer.rows
        columns.append([data[at : at + width] for at in range(0, len(data), width)])
        outputs.append(_in_tail(heads[index], (1, *array.shape[1:]), width))
    rows = [b"".join(row) for row in zip(*columns, strict=True)]
    return [*rows, b'"outputs":[%b]}' % b",".join(outputs)]


def _in_tail(head: bytes, shape: tuple[int, ...], size: int) -> bytes:
    sizes = ",".join(map(str, shape)).encode()
    return b'%b%b],"parameters":{"binary_data_size":%d}}' % (head, sizes, size)


def _in_json(model: Model, answer: Answer, index: int, first: int, rows: int) -> bytes:
    if model.signature.outputs[index].datatype == "BF16":
        array = raw.widened(_part(answer, index, first, rows))
        values, shape, finite = array.ravel().tolist(), array.shape, False
    else:
        values, width, shape = answer.columns[index]
        finite = answer.finite
        if not answer.alone:
            values = values[first * width : (first + rows) * width]
            shape = (rows, *shape[1:])
    sizes = ",".join(map(str, shape)).encode()
    return b'%b%b],"data":%b}' % (_heads(model)[index], sizes, spell_list(values, finite))


def _spell_rows(target: Target, answer: Answer) -> list[bytes]:
    """A body for each row, for requests of one row; nothing if outputs do not come by row."""
    heads = _heads(target.model)
    if answer.note or any(array.size > PIECE for array in answer.arrays) or not answer.finite:
        return []
    if any(shape[:1] != (answer.rows,) or not width for _, width, shape in answer.columns):
        return []
    columns = []
    for values, width, _ in answer.columns:
        cells = [values[at : at + width] for at in range(0, len(values), width)]
        columns.append(encode_lines(cells).splitlines())
    shapes = tuple([(1, *shape[1:]) for _, _, shape in answer.columns])
    template = _template(target.prefix, tuple(heads), shapes)
    return [template % row for row in zip(*columns, strict=True)] if template else []


@lru_cache(256)
def _template(
    prefix: bytes, heads: tuple[bytes, ...], shapes: tuple[tuple[int, ...], ...]
) -> bytes:
    """A body with %b in place of each output's data; b"" where bits must be made numbers first."""
    if any(b'"BF16"' in head for head in heads):
        return b""
    outputs = [
        b'%b%b],"data":' % (head, ",".join(map(str, shape)).encode())
        for head, shape in zip(heads, shapes, strict=True)
    ]
    pieces = (b'%b"outputs":[' % prefix, *outputs)
    whole = [piece.replace(b"%", b"%%") for piece in pieces]
    return whole[0] + b"%b},".join(whole[1:]) + b"%b}]}"


def _heads(model: Model) -> list[bytes]:
    heads = model.spelled.get("v2")
    if heads is None:
        heads = model.spelled["v2"] = [
            b'{"name":%b,"datatype":"%b","shape":[' % (encode(spec.name), spec.datatype.encode())
            for spec in model.signature.outputs
        ]
    return heads
