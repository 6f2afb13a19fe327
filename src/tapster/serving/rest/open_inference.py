"""Open Inference Protocol v2 in JSON: calls, and what a model is.

Source: the protocol's `required_api` and `inference_rest` pages. Values may also come as one
tensor a column, named as in the model's metadata. NaN, Infinity and -Infinity are written and
understood as these bare words, as Python's json module and Triton do.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.serving.batcher import Answer
from tapster.serving.engine import Endpoint, Target
from tapster.serving.model import Model
from tapster.serving.rest.bodies import (
    accounted,
    check_text,
    decode,
    encode,
    encode_lines,
    invalid,
    shown,
    spell,
)
from tapster.serving.rest.tensors import FLOAT_LIMITS, conform, rows_of, tensor
from tapster.serving.rest.wires import Request

T = TypeVar("T")
PLATFORM: Final = {"onnx": "onnx_onnxv1"}
EXTENSIONS: Final[list[str]] = []


class _Tensor(Struct, Generic[T], gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: list[T]
    parameters: dict[str, Any] | UnsetType = UNSET


class _RawTensor(Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw
    parameters: dict[str, Any] | UnsetType = UNSET


class _Output(Struct):
    name: str
    parameters: dict[str, Any] | UnsetType = UNSET


class _Call(Struct, Generic[T], gc=False):
    inputs: list[_Tensor[T]]
    id: str | UnsetType = UNSET
    outputs: list[_Output] | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


class _RawCall(Struct):
    inputs: list[_RawTensor]
    id: str | UnsetType = UNSET
    outputs: list[_Output] | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


# From this size on, numbers are decoded a piece at a time: a list of them takes ten times the
# memory of their text.
LARGE: Final = 1 << 20
_PIECE: Final = 1 << 18
_FLOATS: Final = msgspec.json.Decoder(list[float])
_RAW: Final = msgspec.json.Decoder(_RawCall)
_NUMERIC: Final = msgspec.json.Decoder(_Call[float])
_PLAIN: Final = msgspec.json.Decoder(_Call[float | str])
_ANY: Final = msgspec.json.Decoder(_Call[Any])
# Quotation marks of a call's and of a tensor's keys and strings, without those of its data.
MAX_PACKED: Final = 1024
_CALL_QUOTES: Final = 2
_TENSOR_QUOTES: Final = 12


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    model = call.target.model
    if model.plain and _read_plain(call, model, body):
        return
    request = decode(_ANY, body)
    accounted(body, _CALL_QUOTES + _TENSOR_QUOTES * len(request.inputs))
    _options(call, request, model)
    arrays = {
        given.name: (given.datatype, tensor(given.name, given.datatype, given.shape, given.data))
        for given in request.inputs
    }
    if len(arrays) < len(request.inputs):
        raise invalid("two inputs have the same name", hint="give each input once")
    if arrays.keys() != model.inputs.keys() and arrays.keys() & model.columns.keys():
        call.inputs = model.encoder.columns({name: array for name, (_, array) in arrays.items()})
        call.rows = rows_of(call.inputs)
    else:
        call.inputs, call.rows = conform(model, arrays)


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
    chosen = range(len(heads)) if call.chosen is None else call.chosen
    rows = call.rows
    outputs = []
    for index in chosen:
        values, width, shape = answer.columns[index]
        if not answer.alone:
            values = values[first * width : (first + rows) * width]
            shape = (rows, *shape[1:])
        sizes = ",".join(map(str, shape))
        data = spell(values, answer.finite)
        outputs.append(b'%b%b],"data":%b}' % (heads[index], sizes.encode(), data))
    return b'%b%b"outputs":[%b]}' % (target.prefix, call.tag, b",".join(outputs))


def _spell_rows(target: Target, answer: Answer) -> list[bytes]:
    """A body for each row, for requests of one row; nothing if outputs do not come by row."""
    if not answer.finite:
        return []
    heads = _heads(target.model)
    if any(shape[:1] != (answer.rows,) or not width for _, width, shape in answer.columns):
        return []
    columns = []
    for values, width, _ in answer.columns:
        cells = [values[at : at + width] for at in range(0, len(values), width)]
        columns.append(encode_lines(cells).splitlines())
    shapes = tuple([(1, *shape[1:]) for _, _, shape in answer.columns])
    template = _template(target.prefix, tuple(heads), shapes)
    return [template % row for row in zip(*columns, strict=True)]


@lru_cache(256)
def _template(
    prefix: bytes, heads: tuple[bytes, ...], shapes: tuple[tuple[int, ...], ...]
) -> bytes:
    """A body with %b in place of each output's data."""
    outputs = [
        b'%b%b],"data":' % (head, ",".join(map(str, shape)).encode())
        for head, shape in zip(heads, shapes, strict=True)
    ]
    pieces = (b'%b"outputs":[' % prefix, *outputs)
    whole = [piece.replace(b"%", b"%%") for piece in pieces]
    return whole[0] + b"%b},".join(whole[1:]) + b"%b}]}"


def refuse(error: TapsterError) -> bytes:
    """See Wire: one string, because clients read nothing else."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return encode({"error": text})


def describe(target: Target) -> dict[str, Any]:
    """The metadata of a model: its tensors, and its columns as parameters of ours."""
    model = target.model
    signature = model.signature
    described: dict[str, Any] = {
        "name": target.endpoint.plan.name,
        "versions": [each.version for each in target.endpoint.targets],
        "platform": PLATFORM.get(model.manifest.runtime, model.manifest.runtime),
        "inputs": [_spec(spec) for spec in signature.inputs],
        "outputs": [_spec(spec) for spec in signature.outputs],
    }
    if signature.columns:
        described["parameters"] = {
            "columns": [
                {"name": c.name, "kind": c.kind, "input": c.tensor, "position": c.position}
                for c in signature.columns
            ],
            "classes": list(signature.classes),
        }
    return described


def versions(endpoint: Endpoint) -> list[str]:
    """The versions that an endpoint serves now."""
    return [target.version for target in endpoint.targets]


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _heads(model: Model) -> list[bytes]:
    heads = model.spelled.get("v2")
    if heads is None:
        heads = model.spelled["v2"] = [
            b'{"name":%b,"datatype":"%b","shape":[' % (encode(spec.name), spec.datatype.encode())
            for spec in model.signature.outputs
        ]
    return heads


def _read_plain(call: Request, model: Model, body: bytes | bytearray) -> bool:
    """Read a call whose tensors are flat floats and strings; False when it is anything else.

    This is the hot path: whatever does not fit exactly is left to the careful one, which says
    what is wrong.
    """
    try:
        small = model.numeric and len(body) < LARGE
        request = _NUMERIC.decode(body) if small else _decoded(model, body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    packed = _packed(model.packed, request.inputs) if model.packed else None
    found = packed or _exact(model, request.inputs)
    if found is None:
        return False
    call.inputs, call.rows, quotes = found
    if request.id is not UNSET:
        quotes += 4
    if request.outputs is not UNSET or request.parameters is not UNSET:
        quotes = -1
    accounted(body, quotes)
    if request.id or request.outputs:
        _options(call, request, model)
    return True


def _packed(place: tuple[str, int], given: list[_Tensor[Any]]) -> tuple[bytes, int, int] | None:
    """The rows of a model's only input as bytes, how many, and the call's quotation marks."""
    name, width = place
    first = given[0] if len(given) == 1 else None
    if first is None or first.name != name or first.datatype != "FP32":
        return None
    data = first.data
    count = len(data)
    rows = count // width
    if (
        first.shape != [rows, width]
        or rows * width != count
        or not 0 < count <= MAX_PACKED
        or first.parameters is not UNSET
    ):
        return None
    try:
        return _packer(count)(*data), rows, _CALL_QUOTES + _TENSOR_QUOTES
    except (OverflowError, struct.error):
        return None


def _exact(model: Model, given: list[_Tensor[Any]]) -> tuple[dict[str, Array], int, int] | None:
    """Tensors that are just as the model takes them, their rows, and quotation marks."""
    quotes = _CALL_QUOTES
    rows = 0
    inputs = {}
    for one in given:
        array = _exact_array(model, one)
        if array is None or (rows and rows != len(array)):
            return None
        rows = len(array)
        inputs[one.name] = array
        quotes += _TENSOR_QUOTES
        if one.datatype == "BYTES":
            quotes += 2 * len(one.data)
    if not len(model.inputs) == len(inputs) == len(given):
        return None
    return inputs, rows, quotes


def _exact_array(model: Model, given: _Tensor[Any]) -> Array | None:
    """The array of a tensor that is just as the model takes it, else None."""
    spec = model.inputs.get(given.name)
    shape, data = given.shape, given.data
    if (
        spec is None
        or spec[0] != given.datatype
        or len(shape) != 2
        or len(spec[1]) != 2
        or spec[1] != (-1, shape[1])
        or shape[0] < 1
        or shape[0] * shape[1] != len(data)
        or given.parameters is not UNSET
    ):
        return None
    datatype = spec[0]
    if datatype == "FP32" and 0 < len(data) <= MAX_PACKED:
        try:
            packed = _packer(len(data))(*data)
        except (OverflowError, struct.error):
            return None
        return np.frombuffer(packed, np.float32).reshape(shape)
    if datatype == "BYTES":
        fits = set(map(type, data)) == {str}
    else:
        limit = FLOAT_LIMITS[datatype]
        if isinstance(data, np.ndarray):
            fits = bool(data.min() >= -limit and data.max() <= limit)
        else:
            fits = (model.numeric or set(map(type, data)) == {float}) and (
                -limit <= min(data) and max(data) <= limit
            )
    return np.array(data, dtype=NUMPY_TYPE[datatype]).reshape(shape) if fits else None


def _decoded(model: Model, body: bytes | bytearray) -> "_Call[Any]":
    """A call with texts, or a large one, whose data come as arrays. Raises what msgspec raises."""
    if not model.numeric:
        return _PLAIN.decode(body)
    raw = _RAW.decode(body)
    inputs: list[_Tensor[Any]] = [
        _Tensor(t.name, t.shape, t.datatype, _pieces(bytes(t.data)), t.parameters)
        for t in raw.inputs
    ]
    return _Call(inputs, raw.id, raw.outputs, raw.parameters)


def _pieces(text: bytes) -> Any:
    """The numbers of a flat JSON array, as FP64, decoded a piece at a time."""
    inner = text.strip()[1:-1]
    arrays = []
    start = 0
    while start < len(inner):
        end = inner.find(b",", start + _PIECE)
        end = len(inner) if end < 0 else end
        arrays.append(np.array(_FLOATS.decode(b"[%b]" % inner[start:end]), dtype=np.float64))
        start = end + 1
    return np.concatenate(arrays) if arrays else np.empty(0)


@lru_cache(256)
def _packer(count: int) -> Callable[..., bytes]:
    """Turns so many numbers into 32-bit floats; refuses strings, and numbers beyond their range.

    On a row or a few this takes a third of the time that numpy takes.
    """
    return struct.Struct(f"={count}f").pack


def _options(call: Request, request: "_Call[Any]", model: Model) -> None:
    """The identifier to echo, and which outputs are asked for."""
    if request.id is not UNSET and request.id:
        check_text(request.id, "the id")
        call.tag = b'"id":%b,' % encode(request.id)
    if request.outputs is UNSET or not request.outputs:
        return
    known = {spec.name: index for index, spec in enumerate(model.signature.outputs)}
    for output in request.outputs:
        if output.name not in known:
            raise invalid(
                f"the model has no output {shown(output.name)}",
                hint=f"its outputs: {', '.join(known)}",
                field=output.name[:100],
            )
    chosen = tuple(known[output.name] for output in request.outputs)
    if len(set(chosen)) < len(chosen):
        raise invalid("an output is asked for twice", hint="name each output once")
    call.chosen = chosen
