"""TensorFlow Serving v1 over REST: `:predict` by rows (`instances`) or by columns (`inputs`).

Source: TensorFlow Serving's RESTful API page. A row is an object of column names (or of tensor
names), or a list of values: those of the only tensor, or of all columns in the order of the
model's metadata. `null` is a missing value in objects only. NaN and Infinity are bare words.
"""

import base64
import binascii
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tapster.serving.batcher import Answer
from tapster.serving.engine import Endpoint, Target
from tapster.serving.model import Model
from tapster.serving.rest.bodies import accounted, decode, invalid, shown, spell
from tapster.serving.rest.open_answers import refuse
from tapster.serving.rest.plain import Row, quotes_of, rows_in
from tapster.serving.rest.tensors import Inputs, conform, nested, rows_of
from tapster.serving.rest.wires import Request

__all__ = ["describe", "read", "refuse", "status", "write"]

SIGNATURE: Final = "serving_default"
STATES: Final = "AVAILABLE"


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
    if model.columns and body.count(b"{") > 1 and _read_objects(call, model, body):
        return
    request = decode(_DECODER, body)
    accounted(body, 2)
    if request.signature_name is not UNSET and request.signature_name != SIGNATURE:
        raise invalid(
            f"there is no signature {shown(request.signature_name)}", hint=f"use {SIGNATURE!r}"
        )
    if (request.instances is UNSET) == (request.inputs is UNSET):
        raise invalid("give either `instances` (rows) or `inputs` (columns)")
    if request.instances is not UNSET:
        call.by_row = True
        call.inputs, call.rows = _from_rows(model, request.instances)
    else:
        call.by_row = False
        call.inputs, call.rows = _from_columns(model, request.inputs)


def write(call: Request, answer: Answer, first: int) -> bytes:
    """See Wire."""
    names = [spec.name for spec in call.target.model.signature.outputs]
    columns = [rows_in(answer, index, first, call.rows) for index in range(len(names))]
    document: dict[str, Any]
    if not call.by_row:
        document = {
            "outputs": columns[0] if len(names) == 1 else dict(zip(names, columns, strict=True))
        }
    elif len(names) == 1:
        document = {"predictions": columns[0]}
    else:
        rows = zip(*columns, strict=True)
        document = {"predictions": [dict(zip(names, row, strict=True)) for row in rows]}
    return spell(document, answer.finite)


def status(endpoint: Endpoint, targets: list[Target]) -> dict[str, Any]:
    """The state of versions, with what other servers say of a model under the same path."""
    return {
        "model_version_status": [
            {
                "version": target.version,
                "state": STATES,
                "status": {"error_code": "OK", "error_message": ""},
            }
            for target in targets
        ],
        "name": endpoint.plan.name,
        "ready": True,
        "id": endpoint.plan.name,
        "object": "model",
        "owned_by": endpoint.plan.tenant,
    }


def describe(target: Target) -> dict[str, Any]:
    """The metadata of a model, as TensorFlow Serving spells it."""
    signature = target.model.signature
    return {
        "model_spec": {
            "name": target.endpoint.plan.name,
            "signature_name": "",
            "version": target.version,
        },
        "metadata": {
            "signature_def": {
                "signature_def": {
                    SIGNATURE: {
                        "inputs": {spec.name: _info(spec) for spec in signature.inputs},
                        "outputs": {spec.name: _info(spec) for spec in signature.outputs},
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
        "columns": [{"name": c.name, "kind": c.kind} for c in signature.columns],
    }


def _info(spec: Any) -> dict[str, Any]:
    return {
        "dtype": _DTYPES[spec.datatype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape],
            "unknown_rank": False,
        },
        "name": spec.name,
    }


_DTYPES: Final = {
    "BOOL": "DT_BOOL", "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32",
    "INT64": "DT_INT64", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64", "FP16": "DT_HALF", "BF16": "DT_BFLOAT16", "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE", "BYTES": "DT_STRING",
}  # fmt: skip


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
    rows = [_plain(row) for row in rows]
    if all(isinstance(row, dict) for row in rows):
        return _from_objects(model, rows)
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


def _from_objects(model: Model, rows: list[dict[str, Any]]) -> tuple[Inputs, int]:
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
    given = _plain(given)
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


def _plain(value: Any) -> Any:
    """Values with every {"b64": text} replaced by the UTF-8 text it stands for."""
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return _text(value["b64"])
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [_plain(item) for item in value]
    return value


def _text(spelled: Any) -> str:
    try:
        return base64.b64decode(spelled, validate=True).decode()
    except (TypeError, ValueError, binascii.Error):
        raise invalid("a b64 value is not base64 of UTF-8 text") from None
