"""TensorFlow Serving's `Predict`: tensors by name in, tensors by name out.

A tensor's values come as bytes (`tensor_content`) or in the field of their type, where the last
one stands for all that follow. Values may also come as one tensor a column. Answers have their
values in the typed fields, where TensorFlow Serving has them and clients look for them.
Source: TensorFlow Serving's `predict.proto`, TensorFlow's `tensor.proto`.
"""

from functools import cache, lru_cache
from typing import Any, Final, cast

import numpy as np

from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Datatype
from tapster.serving.batcher import Answer
from tapster.serving.rest.bodies import invalid, shown
from tapster.serving.rest.open_inference import admit
from tapster.serving.rest.tensors import count_of
from tapster.serving.rest.tf_models import PREDICT, SIGNATURE
from tapster.serving.rest.wires import Request
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.encoding import delimited, number, packed, text
from tapster.serving.rpc.messages import message

# Datatypes by TensorFlow's number, with the field of their values.
TYPES: Final[dict[int, tuple[Datatype, str]]] = {
    1: ("FP32", "float_val"),
    2: ("FP64", "double_val"),
    3: ("INT32", "int_val"),
    4: ("UINT8", "int_val"),
    5: ("INT16", "int_val"),
    6: ("INT8", "int_val"),
    7: ("BYTES", "string_val"),
    9: ("INT64", "int64_val"),
    10: ("BOOL", "bool_val"),
    14: ("BF16", "half_val"),
    17: ("UINT16", "int_val"),
    19: ("FP16", "half_val"),
    22: ("UINT32", "uint32_val"),
    23: ("UINT64", "uint64_val"),
}
NUMBERS: Final = {datatype: number for number, (datatype, _) in TYPES.items()}
# Bytes of a message's values that are not in it but stand for those that are.
MAX_FILLED: Final = 1 << 20
_OUTPUTS, _SPEC = 1, 2


@cache
def _class(name: str) -> Any:
    return message(name)


def parse(data: bytes) -> Any:
    """See Wire."""
    return _class("tensorflow.serving.PredictRequest").FromString(data)


def wanted(call: Call, request: Any) -> tuple[str, str, str]:
    """See Wire."""
    return named(request.model_spec)


def named(spec: Any) -> tuple[str, str, str]:
    """The endpoint, version and label of a ModelSpec. Raises TapsterError(invalid)."""
    if spec.signature_name not in {"", SIGNATURE, PREDICT}:
        raise invalid(
            f"there is no signature {shown(spec.signature_name)}", hint=f"use {SIGNATURE!r}"
        )
    chosen = spec.WhichOneof("version_choice")
    if chosen is None:
        return spec.name, "", ""
    if chosen == "version":
        return spec.name, str(spec.version.value), ""
    if not spec.version_label:
        raise invalid("the version_label is empty")
    return spec.name, "", spec.version_label


def slow(request: Any) -> bool:
    """See Wire. Bytes are used as they come."""
    return any(not tensor.tensor_content for tensor in request.inputs.values())


def read(call: Call, request: Any) -> None:
    """See Wire."""
    model = call.target.model
    pairs = []
    room = MAX_FILLED
    for name, tensor in request.inputs.items():
        datatype, array, filled = _array(name, tensor, room)
        room -= filled
        pairs.append((name, datatype, array))
    admit(cast(Request, call), model, pairs)
    if request.output_filter:
        call.chosen = _chosen(call, list(request.output_filter))


def write(call: Call, answer: Answer, first: int) -> bytes:
    """See Wire."""
    specs = call.target.model.signature.outputs
    parts = []
    for index in range(len(specs)) if call.chosen is None else call.chosen:
        array = answer.arrays[index]
        if not answer.alone:
            array = array[first : first + call.rows]
        spec = specs[index]
        tensor = _head(spec.datatype, array.shape) + _values(spec.datatype, array)
        parts.append(delimited(_OUTPUTS, text(1, spec.name) + delimited(2, tensor)))
    parts.append(_spec(call.target.endpoint.plan.name, call.target.version))
    return b"".join(parts)


def _array(name: str, tensor: Any, room: int) -> tuple[str, Array, int]:
    """Datatype and array of a TensorProto, and how many bytes of it were filled in, which `room`
    bounds. Raises TapsterError(invalid).
    """
    known = TYPES.get(tensor.dtype)
    if known is None:
        raise invalid(f"input {shown(name)} has a dtype that is not taken here", field=name[:100])
    datatype, field = known
    if tensor.tensor_shape.unknown_rank:
        raise invalid(f"input {shown(name)} has no shape", field=name[:100])
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    count = count_of(name, shape)
    if tensor.tensor_content:
        return datatype, _from_bytes(name, datatype, count, tensor).reshape(shape), 0
    array, filled = _filled(name, count, _from_field(name, datatype, getattr(tensor, field)), room)
    return datatype, array.reshape(shape), filled


def _from_bytes(name: str, datatype: Datatype, count: int, tensor: Any) -> Array:
    if datatype == "BYTES":
        raise invalid(f"input {shown(name)} must have its strings in string_val", field=name[:100])
    kind = np.dtype(NUMPY_TYPE[datatype])
    data: bytes = tensor.tensor_content
    if len(data) != count * kind.itemsize:
        raise invalid(
            f"input {shown(name)} has {len(data)} bytes, its shape takes {count * kind.itemsize}",
            field=name[:100],
        )
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise invalid(f"input {shown(name)} has a BOOL that is neither 0 nor 1", field=name[:100])
    return np.frombuffer(data, kind)


def _from_field(name: str, datatype: Datatype, values: Any) -> Array:
    if datatype == "BYTES":
        array = np.empty(len(values), np.object_)
        try:
            array[:] = [value.decode() for value in values]
        except UnicodeDecodeError:
            raise invalid(f"input {shown(name)} has a string that is not UTF-8") from None
        return array
    if datatype in {"FP16", "BF16"}:
        return _checked(name, "UINT16", values).view(NUMPY_TYPE[datatype])
    if datatype in {"FP32", "FP64", "BOOL"}:
        return np.array(values, NUMPY_TYPE[datatype])
    return _checked(name, datatype, values)


def _checked(name: str, datatype: Datatype, values: Any) -> Array:
    limits = np.iinfo(NUMPY_TYPE[datatype])
    if len(values) and (min(values) < limits.min or max(values) > limits.max):
        raise invalid(
            f"input {shown(name)} has a value that {datatype} cannot hold", field=name[:100]
        )
    return np.array(values, NUMPY_TYPE[datatype])


def _filled(name: str, count: int, values: Array, room: int) -> tuple[Array, int]:
    """As many values as the shape takes, the last one repeated, and the bytes of these."""
    if len(values) == count:
        return values, 0
    each = values.itemsize + (len(values[-1]) if values.dtype == object and len(values) else 0)
    size = (count - len(values)) * each
    if not 0 < len(values) < count or size > room:
        raise invalid(
            f"input {shown(name)} has {len(values)} values, its shape takes {count}",
            field=name[:100],
        )
    array = np.empty(count, values.dtype)
    array[: len(values)] = values
    array[len(values) :] = values[-1]
    return array, size


def _chosen(call: Call, names: list[str]) -> tuple[int, ...]:
    specs = call.target.model.signature.outputs
    known = {spec.name: index for index, spec in enumerate(specs)}
    for name in names:
        if name not in known:
            raise invalid(
                f"the model has no output {shown(name)}",
                hint=f"its outputs: {', '.join(known)}",
                field="output_filter",
            )
    return tuple({known[name]: None for name in names})


@lru_cache(1024)
def _head(datatype: Datatype, shape: tuple[int, ...]) -> bytes:
    """The dtype and shape of a TensorProto."""
    dimensions = b"".join(delimited(2, number(1, size)) for size in shape)
    return number(1, NUMBERS[datatype]) + delimited(2, dimensions)


def _values(datatype: Datatype, array: Array) -> bytes:
    """The typed values of a TensorProto."""
    if datatype == "FP32":
        return packed(5, array)
    if datatype == "FP64":
        return packed(6, array)
    if datatype in {"FP16", "BF16"}:
        array = array.view(np.uint16)
    tensor = _class("tensorflow.TensorProto")()
    values = array.ravel().tolist()
    if datatype == "BYTES":
        values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    getattr(tensor, TYPES[NUMBERS[datatype]][1]).extend(values)
    data: bytes = tensor.SerializeToString()
    return data


@lru_cache(4096)
def _spec(name: str, version: str) -> bytes:
    """The ModelSpec of an answer."""
    value = delimited(2, number(1, int(version)))
    return delimited(_SPEC, text(1, name) + value + text(3, SIGNATURE))
