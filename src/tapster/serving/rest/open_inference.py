"""Open Inference Protocol v2 in JSON: calls as callers spell them.

Source: the protocol's `required_api` and `inference_rest` pages. Values may also come as one
tensor a column, named as in the model's metadata. NaN, Infinity and -Infinity are understood as
these bare words, as Python's json module and Triton do.
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
from tapster.serving.model import Model
from tapster.serving.rest import large, raw
from tapster.serving.rest.bodies import accounted, check_text, decode, encode, invalid, shown
from tapster.serving.rest.open_answers import refuse, write
from tapster.serving.rest.tensors import FLOAT_LIMITS, conform, rows_of, tensor
from tapster.serving.rest.wires import Request

__all__ = [
    "Document", "InputParameters", "admit", "all_bytes", "misunderstood", "options", "read",
    "refuse", "write",
]  # fmt: skip

T = TypeVar("T")


class InputParameters(Struct, gc=False):
    """What a caller may say of an input."""

    binary_data_size: int | UnsetType = UNSET


class _OutputParameters(Struct, gc=False):
    binary_data: bool | UnsetType = UNSET
    classification: Any = UNSET
    shared_memory_region: Any = UNSET


class _CallParameters(Struct, gc=False):
    binary_data_output: bool | UnsetType = UNSET
    timeout: int | UnsetType = UNSET


class _Tensor(Struct, Generic[T], gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: list[T]
    parameters: InputParameters | UnsetType | None = UNSET


class _Output(Struct, gc=False):
    name: str
    parameters: _OutputParameters | UnsetType | None = UNSET


class Document(Struct, Generic[T], gc=False):
    """A call, with inputs of type T."""

    inputs: list[T]
    id: str | UnsetType | None = UNSET
    outputs: list[_Output] | UnsetType | None = UNSET
    parameters: _CallParameters | UnsetType | None = UNSET


_NUMERIC: Final = msgspec.json.Decoder(Document[_Tensor[float]])
_PLAIN: Final = msgspec.json.Decoder(Document[_Tensor[float | str]])
_ANY: Final = msgspec.json.Decoder(Document[_Tensor[Any]])
MAX_PACKED: Final = 1024
# Quotation marks of a call's and of a tensor's keys and strings, without those of its data.
_CALL_QUOTES: Final = 2
_TENSOR_QUOTES: Final = 12
# Microseconds; no float holds every number that a caller may write.
_FOR_EVER: Final = 1 << 63


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    model = call.target.model
    if len(body) >= large.LARGE:
        if _read_large(call, model, body):
            return
        if len(body) > large.MAX_ODD:
            raise large.too_odd()
    elif model.plain and _read_plain(call, model, body):
        return
    request = decode(_ANY, body)
    accounted(body, quotes_of(request) + _TENSOR_QUOTES * len(request.inputs))
    options(call, request, model)
    pairs = [
        (given.name, given.datatype, tensor(given.name, given.datatype, given.shape, given.data))
        for given in request.inputs
    ]
    admit(call, model, pairs)


def admit(call: Request, model: Model, given: list[tuple[str, str, Array]]) -> None:
    """Make (name, datatype, array) the call's inputs: the model's tensors, or its columns.

    Raises TapsterError(invalid).
    """
    arrays = {name: (datatype, array) for name, datatype, array in given}
    if len(arrays) < len(given):
        raise invalid("two inputs have the same name", hint="give each input once")
    if arrays.keys() != model.inputs.keys() and arrays.keys() & model.columns.keys():
        columns = {name: _numbers(datatype, array) for name, (datatype, array) in arrays.items()}
        call.inputs = model.encoder.columns(columns)
        call.rows = rows_of(call.inputs)
    else:
        call.inputs, call.rows = conform(model, arrays)


def _numbers(datatype: str, array: Array) -> Array:
    """A column's values; BF16 is carried as bits."""
    return raw.widened(array) if datatype == "BF16" else array


def quotes_of(request: "Document[Any]") -> int:
    """Quotation marks of everything in a call but its tensors' own."""
    quotes = _CALL_QUOTES + _quotes_of_value(request.id) + _quotes(request.parameters)
    if request.outputs is not UNSET:
        quotes += 2
        for output in request.outputs or ():
            quotes += 4 + _quotes(output.parameters)
    return quotes + sum([_quotes(one.parameters) for one in request.inputs])


def _quotes_of_value(value: object) -> int:
    """Of a key and a value that may be a string."""
    return 0 if value is UNSET else 4 if isinstance(value, str) else 2


def _quotes(parameters: Struct | UnsetType | None) -> int:
    """Of the key `parameters` and of those parameters that are known."""
    if parameters is UNSET or parameters is None:
        return 0 if parameters is UNSET else 2
    given = [getattr(parameters, name) for name in parameters.__struct_fields__]
    return 2 + 2 * sum([value is not UNSET for value in given])


def options(call: Request, request: "Document[Any]", model: Model, *, binary: bool = False) -> None:
    """Take what a call says beside its inputs: its identifier, how long it may take, and which
    outputs it wants, as bytes or (unless `binary`) in JSON.

    Raises TapsterError(invalid).
    """
    if request.id:
        check_text(request.id, "the id")
        call.tag = b'"id":%b,' % encode(request.id)
    parameters = request.parameters
    if parameters:
        if parameters.timeout is not UNSET:
            _hurry(call, parameters.timeout)
        if parameters.binary_data_output is not UNSET:
            binary = parameters.binary_data_output
    if request.outputs:
        call.chosen = _chosen(model, request.outputs, binary)
    elif binary:
        call.chosen = all_bytes(len(model.signature.outputs))


@lru_cache(256)
def all_bytes(outputs: int) -> tuple[tuple[int, bool], ...]:
    """All of so many outputs, as bytes."""
    return tuple((index, True) for index in range(outputs))


def _hurry(call: Request, timeout: int) -> None:
    if timeout <= 0:
        raise invalid(
            "the parameter timeout must be a number of microseconds above 0",
            field="parameters.timeout",
        )
    call.deadline = min(call.deadline, call.began / 1e9 + min(timeout, _FOR_EVER) / 1e6)


def _chosen(model: Model, outputs: list[_Output], binary: bool) -> tuple[tuple[int, bool], ...]:
    known = {spec.name: index for index, spec in enumerate(model.signature.outputs)}
    chosen: dict[int, bool] = {}
    for output in outputs:
        if output.name not in known:
            raise invalid(
                f"the model has no output {shown(output.name)}",
                hint=f"its outputs: {', '.join(known)}",
                field=output.name[:100],
            )
        chosen[known[output.name]] = _as_bytes(output, binary)
    if len(chosen) < len(outputs):
        raise invalid("an output is asked for twice", hint="name each output once")
    return tuple(chosen.items())


def _as_bytes(output: _Output, binary: bool) -> bool:
    parameters = output.parameters
    if not parameters:
        return binary
    for name in ("classification", "shared_memory_region"):
        if getattr(parameters, name) is not UNSET:
            raise misunderstood(name, output.name)
    return binary if parameters.binary_data is UNSET else parameters.binary_data


def misunderstood(parameter: str, output: str) -> TapsterError:
    """What is wrong with an output that is wanted as it cannot be had here."""
    return invalid(
        f"the output parameter {parameter} is not understood here",
        hint="a classifier's output `probabilities` has every class"
        if parameter == "classification"
        else "outputs come in the answer",
        field=output[:100],
    )


def _read_plain(call: Request, model: Model, body: bytes | bytearray) -> bool:
    """Read a call whose tensors are flat floats and strings; False when it is anything else.

    This is the hot path: whatever does not fit exactly is left to the careful one, which says
    what is wrong.
    """
    try:
        request: Document[Any] = (_NUMERIC if model.numeric else _PLAIN).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    packed = _packed(model.packed, request.inputs) if model.packed else None
    found = packed or _exact(model, request.inputs)
    if found is None:
        return False
    call.inputs, call.rows, quotes = found
    if request.id is UNSET and request.outputs is UNSET and request.parameters is UNSET:
        accounted(body, quotes + _CALL_QUOTES)
        return True
    accounted(body, quotes + quotes_of(request))
    options(call, request, model)
    return True


def _read_large(call: Request, model: Model, body: bytes | bytearray) -> bool:
    """Read a call whose tensors are just numbers; False when it is anything else."""
    parts = large.cut(body, b'"data"')
    if parts is None:
        return False
    skeleton, spans = parts
    try:
        request = decode(_ANY, skeleton)
    except TapsterError:
        return False  # the whole of it tells better what is wrong
    if len(request.inputs) != len(spans):
        return False
    accounted(skeleton, quotes_of(request) + _TENSOR_QUOTES * len(request.inputs))
    given = []
    for one, span in zip(request.inputs, spans, strict=True):
        array = large.numbers(body, span, one.shape, one.datatype)
        if array is None:
            return False
        given.append((one.name, one.datatype, array))
    options(call, request, model)
    admit(call, model, given)
    return True


def _packed(place: tuple[str, int], given: list[_Tensor[Any]]) -> tuple[bytes, int, int] | None:
    """The rows of a model's only input as bytes, how many, and the tensor's quotation marks."""
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
        return _packer(count)(*data), rows, _TENSOR_QUOTES
    except (OverflowError, struct.error):
        return None


def _exact(model: Model, given: list[_Tensor[Any]]) -> tuple[dict[str, Array], int, int] | None:
    """Tensors that are just as the model takes them, their rows, and quotation marks."""
    quotes = rows = 0
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
        fits = (model.numeric or set(map(type, data)) == {float}) and (
            -limit <= min(data) and max(data) <= limit
        )
    return np.array(data, dtype=NUMPY_TYPE[datatype]).reshape(shape) if fits else None


@lru_cache(256)
def _packer(count: int) -> Callable[..., bytes]:
    """Turns so many numbers into 32-bit floats; refuses strings, and numbers beyond their range.

    On a row or a few this takes a third of the time that numpy takes.
    """
    return struct.Struct(f"={count}f").pack
