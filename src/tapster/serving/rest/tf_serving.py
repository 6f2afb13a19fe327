"""TensorFlow Serving v1 over REST: `:predict` by rows (`instances`) or by columns (`inputs`).

KServe's v1 protocol is the same, by rows only.

Source: TensorFlow Serving's RESTful API page. A row is an object of column names (or of tensor
names), or a list of values: those of the only tensor, or of all columns in the order of the
model's metadata. `null` is a missing value in objects only. NaN and Infinity are bare words.
"""

import base64
import binascii
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tapster.contract.errors import TapsterError
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest import large
from tapster.serving.rest.bodies import accounted, decode, encode, invalid, shown, spell_list
from tapster.serving.rest.heads import JSON
from tapster.serving.rest.open_answers import refuse
from tapster.serving.rest.plain import Row, noted, quotes_of, read_objects
from tapster.serving.rest.rows import finite_in, rows_in
from tapster.serving.rest.tensors import Inputs, conform, nested, rows_of
from tapster.serving.rest.tf_models import PREDICT, SIGNATURE
from tapster.serving.rest.wires import Request

__all__ = [
    "SIGNATURE", "check_signature", "from_objects", "note", "plain", "read", "refuse", "write",
]  # fmt: skip

# Outputs whose names end so are bytes, not text, to TensorFlow Serving's callers.
BYTES_SUFFIX: Final = "_bytes"
_B64: Final = b'"b64"'


class _Call(Struct, forbid_unknown_fields=True):
    signature_name: str | UnsetType = UNSET
    instances: list[Any] | UnsetType = UNSET
    inputs: Any = UNSET


class _Objects(Struct, forbid_unknown_fields=True):
    instances: list[Row]


_DECODER: Final = msgspec.json.Decoder(_Call)
_OBJECTS: Final = msgspec.json.Decoder(_Objects)


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    model = call.target.model
    if len(body) >= large.LARGE and _read_large(call, model, body):
        return
    if len(body) > large.MAX_ODD:
        raise large.too_odd()
    if model.columns and body.count(b"{") > 1 and _read_objects(call, model, body):
        return
    request = decode(_DECODER, body)
    accounted(body, 2)
    encoded = _B64 in body or b"\\" in body
    check_signature(request.signature_name, PREDICT)
    if (request.instances is UNSET) == (request.inputs is UNSET):
        raise invalid("give either `instances` (rows) or `inputs` (columns)")
    if request.instances is not UNSET:
        call.by_row = True
        rows = [plain(row, model) for row in request.instances] if encoded else request.instances
        call.inputs, call.rows = _from_rows(model, rows)
    else:
        call.by_row = False
        given = plain(request.inputs, model) if encoded else request.inputs
        call.inputs, call.rows = _from_columns(model, given)


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    model = call.target.model
    names = [spec.name for spec in model.signature.outputs]
    columns = [
        _column(name, rows_in(model, answer, index, first, call.rows))
        for index, name in enumerate(names)
    ]
    finite = finite_in(model, answer)
    note(call, answer)
    if call.by_row:
        return b'{"predictions":%b}' % _by_row(names, columns, finite)
    return b'{"outputs":%b}' % _by_column(names, columns, finite)


def note(call: Request, answer: Answer) -> None:
    """What the answer must say of itself goes in a header: its body is the protocol's."""
    if answer.note:
        call.lines = JSON + noted(answer)


def check_signature(name: str | UnsetType, fitting: str) -> None:
    """Refuse the name of a signature that does not fit what is asked. Raises TapsterError."""
    if name is not UNSET and name not in {SIGNATURE, fitting}:
        hint = f"use {SIGNATURE!r} or {fitting!r}"
        raise invalid(
            f"there is no signature {shown(name)} here", hint=hint, field="signature_name"
        )


def plain(value: Any, model: Model) -> Any:
    """Values with every {"b64": text} replaced by the UTF-8 text that it stands for, or by its
    bytes as numbers where they are for an input of UINT8. Raises TapsterError(invalid)."""
    raw = {name for name, (datatype, _) in model.inputs.items() if datatype == "UINT8"}
    if isinstance(value, dict) and value.keys() != {"b64"}:
        return {name: _plain(item, name in raw) for name, item in value.items()}
    return _plain(value, len(raw) == len(model.inputs))


def _by_row(names: list[str], columns: list[list[Any]], finite: bool) -> bytes:
    if len(names) == 1:
        return spell_list(columns[0], finite)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return spell_list(rows, finite)


def _by_column(names: list[str], columns: list[list[Any]], finite: bool) -> bytes:
    spelled = [spell_list(column, finite) for column in columns]
    if len(names) == 1:
        return spelled[0]
    pairs = [b"%b:%b" % (encode(name), text) for name, text in zip(names, spelled, strict=True)]
    return b"{%b}" % b",".join(pairs)


def _read_objects(call: Request, model: Model, body: bytes | bytearray) -> bool:
    """Read rows as objects of plain values; False when the body is anything else."""
    try:
        rows = _OBJECTS.decode(body).instances
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if not rows or rows[0].keys() == model.inputs.keys() != model.columns.keys():
        return False
    accounted(body, 2 + quotes_of(rows))
    call.by_row = True
    call.inputs = model.encoder.rows(rows)
    call.rows = rows_of(call.inputs)
    return True


def _from_rows(model: Model, rows: list[Any]) -> tuple[Inputs, int]:
    if not rows:
        raise invalid("there are no rows", hint="send at least one row", field="instances")
    if all(isinstance(row, dict) for row in rows):
        return from_objects(model, rows)
    if any(isinstance(row, dict) for row in rows):
        raise invalid("some rows are objects and some are not", field="instances")
    if len(model.inputs) == 1 and not _needs_columns(model, rows):
        ((name, (datatype, _)),) = model.inputs.items()
        return conform(model, {name: (datatype, nested(name, datatype, rows))})
    if not model.columns:
        raise invalid(
            "the model has several inputs, so a row must be an object",
            hint=f"give each row as an object with: {', '.join(model.inputs)}",
        )
    names = list(model.columns)
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise invalid(
                f"row {index} must be a list of {len(names)} values, one for each column",
                hint="in the order of the model's metadata, or as an object of column names",
                field=f"instances[{index}]",
            )
    inputs = model.encoder.rows([dict(zip(names, row, strict=True)) for row in rows], nulls=False)
    return inputs, rows_of(inputs)


def from_objects(model: Model, rows: list[dict[str, Any]]) -> tuple[Inputs, int]:
    """Inputs from rows as objects of columns, or of tensors. Raises TapsterError(invalid)."""
    if model.columns and rows[0].keys() != model.inputs.keys():
        inputs = model.encoder.rows(rows)
        return inputs, rows_of(inputs)
    for index, row in enumerate(rows):
        if row.keys() != model.inputs.keys():
            raise invalid(
                f"row {index} must have exactly: {', '.join(model.inputs)}",
                field=f"instances[{index}]",
            )
    return conform(
        model,
        {
            name: (datatype, nested(name, datatype, [row[name] for row in rows]))
            for name, (datatype, _) in model.inputs.items()
        },
    )


def _from_columns(model: Model, given: Any) -> tuple[Inputs, int]:
    if not isinstance(given, dict):
        if len(model.inputs) != 1:
            raise invalid(
                "the model has several inputs, so `inputs` must be an object", field="inputs"
            )
        given = {next(iter(model.inputs)): given}
    tensors, columns = given.keys() & model.inputs.keys(), given.keys() & model.columns.keys()
    if model.columns and given.keys() != model.inputs.keys() and (columns or not tensors):
        inputs = model.encoder.columns(given)
        return inputs, rows_of(inputs)
    arrays = {}
    for name, data in given.items():
        datatype = model.inputs[name][0] if name in model.inputs else "FP32"
        arrays[name] = (datatype, nested(name, datatype, data))
    return conform(model, arrays)


def _needs_columns(model: Model, rows: list[Any]) -> bool:
    """Whether rows of values hold something that only a column's codec understands."""
    if not model.columns or not model.numeric:
        return False
    return any(
        isinstance(cell, str | bool) for row in rows if isinstance(row, list) for cell in row
    )


def _plain(value: Any, raw: bool) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return _decoded(value["b64"], raw)
        return {name: _plain(item, raw) for name, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [_plain(item, raw) for item in value]
    return value


def _decoded(spelled: Any, raw: bool) -> Any:
    try:
        data = base64.b64decode(spelled, validate=True)
        return list(data) if raw else data.decode()
    except (TypeError, ValueError, binascii.Error):
        raise invalid(
            "a b64 value is not base64 of UTF-8 text",
            hint="bytes that are no text are for inputs of UINT8",
        ) from None


def _column(name: str, values: list[Any]) -> list[Any]:
    """An output's rows; those of bytes in base64."""
    return _encoded(values) if name.endswith(BYTES_SUFFIX) else values


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    return {"b64": base64.b64encode(value.encode()).decode()} if isinstance(value, str) else value


def _read_large(call: Request, model: Model, body: bytes | bytearray) -> bool:
    """Read rows of numbers for an only input, or rows as objects of columns; False when it is
    anything else."""
    if model.columns and _read_large_objects(call, model, body):
        return True
    if len(model.inputs) != 1:
        return False
    ((name, (datatype, shape)),) = model.inputs.items()
    for key, by_row in ((b'"instances"', True), (b'"inputs"', False)):
        parts = large.cut(body, key)
        if parts is None or len(parts[1]) != 1 or shape[:1] != (-1,):
            continue
        skeleton, (span,) = parts
        try:
            request = decode(_DECODER, skeleton)
        except TapsterError:
            return False  # the whole of it tells better what is wrong
        accounted(skeleton, -1)
        array = large.rows(body, span, shape[1:], datatype)
        if array is None or (request.instances if by_row else request.inputs) != []:
            return False
        check_signature(request.signature_name, PREDICT)
        call.by_row = by_row
        call.inputs, call.rows = conform(model, {name: (datatype, array)})
        return True
    return False


def _read_large_objects(call: Request, model: Model, body: bytes | bytearray) -> bool:
    found = large.cut_objects(body, b'"instances"')
    if found is None:
        return False
    try:
        request = decode(_DECODER, found[0])
        accounted(found[0], -1)
        check_signature(request.signature_name, PREDICT)
    except TapsterError:
        return False
    inputs = read_objects(model, body, found[1]) if request.inputs is UNSET else None
    if inputs is None:
        return False
    call.by_row = True
    call.inputs, call.rows = inputs, rows_of(inputs)
    return True
