"""Open Inference calls whose tensors follow their JSON as bytes.

The header Inference-Header-Content-Length says how long the JSON is; an input with the parameter
`binary_data_size` takes so many of the bytes that follow, in the order of inputs. Length 0 means
that all of the body is the model's only input: one element of BYTES, else as many rows as there
are bytes for, its other variable dimension, if any, found from the size with one row.
Source: Triton's binary tensor data extension.
"""

import math
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tapster.contract.inference import Array
from tapster.serving.model import Model
from tapster.serving.rest import large, raw
from tapster.serving.rest.bodies import decode, invalid, shown, strict
from tapster.serving.rest.open_inference import (
    Document,
    InputParameters,
    admit,
    all_bytes,
    options,
    refuse,
    write,
)
from tapster.serving.rest.tensors import count_of, spell_shape, tensor
from tapster.serving.rest.wires import Request

__all__ = ["read", "refuse", "write"]

MAX_KEPT: Final = 2048


class _Tensor(Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | UnsetType = UNSET
    parameters: InputParameters | UnsetType | None = UNSET


_DECODER: Final = msgspec.json.Decoder(Document[_Tensor])


def read(call: Request, body: bytes | bytearray) -> None:
    """See Wire."""
    model = call.target.model
    length = call.form.header
    if length > len(body):
        raise invalid("the header inference-header-content-length is longer than the body")
    if length == 0:
        _read_bare(call, model, body)
        return
    if length > large.MAX_ODD:
        raise large.too_odd()
    head = bytes(body[:length])
    request = _kept(head) if length <= MAX_KEPT else _parse(head)
    options(call, request, model)
    data = memoryview(body)[length:]
    if _read_packed(call, model, request.inputs, data):
        return
    given = []
    at = 0
    for one in request.inputs:
        size = _size(one)
        given.append((one.name, one.datatype, _array(one, data[at : at + size])))
        at += size
    if at != len(data):
        raise invalid(
            f"{len(data)} bytes follow the JSON, the inputs' binary_data_size add up to {at}"
        )
    admit(call, model, given)


def _parse(head: bytes) -> Document[_Tensor]:
    request = decode(_DECODER, head)
    strict(head)
    return request


# A caller's calls of one shape begin with the same JSON.
_kept: Final = lru_cache(1024)(_parse)


def _read_packed(call: Request, model: Model, given: list[_Tensor], data: memoryview) -> bool:
    """Take the rows of a model's only input as they are; False when they are anything else."""
    if model.packed is None or len(given) != 1:
        return False
    name, width = model.packed
    one = given[0]
    rows = one.shape[0] if len(one.shape) == 2 else 0
    if (
        one.name != name
        or one.datatype != "FP32"
        or one.data is not UNSET
        or rows < 1
        or one.shape[1] != width
        or not 4 * rows * width == len(data) == _size(one)
    ):
        return False
    call.inputs, call.rows = bytes(data), rows
    return True


def _size(one: _Tensor) -> int:
    """Bytes that follow for an input: none when its data are in the JSON."""
    if one.data is not UNSET:
        return 0
    size = one.parameters.binary_data_size if one.parameters else UNSET
    if size is UNSET or size < 0:
        raise invalid(
            f"input {shown(one.name)} has neither data nor a binary_data_size of 0 or more",
            field=one.name[:100],
        )
    return size


def _array(one: _Tensor, data: memoryview) -> Array:
    if one.data is not UNSET:
        return tensor(one.name, one.datatype, one.shape, one.data)
    if one.datatype != "BYTES" or len(data) == _size(one):
        return raw.decode(one.name, one.datatype, one.shape, data)
    raise invalid(f"input {shown(one.name)} is longer than the body", field=one.name[:100])


def _read_bare(call: Request, model: Model, body: bytes | bytearray) -> None:
    if len(model.inputs) != 1:
        raise invalid(
            f"the model has {len(model.inputs)} inputs, so a JSON header must tell them apart",
            hint="send Inference-Header-Content-Length: the length of that JSON",
        )
    ((name, (datatype, wanted)),) = model.inputs.items()
    if datatype == "BYTES":
        array = _element(name, wanted, body)
    else:
        shape = _shape_for(name, datatype, wanted, len(body))
        array = raw.decode(name, datatype, shape, memoryview(body))
    call.chosen = all_bytes(len(model.signature.outputs))
    admit(call, model, [(name, datatype, array)])


def _element(name: str, wanted: tuple[int, ...], body: bytes | bytearray) -> Array:
    if any(size not in {-1, 1} for size in wanted):
        raise invalid(f"input {shown(name)} takes more than one element, so it needs a JSON header")
    data = memoryview(len(body).to_bytes(4, "little") + bytes(body))
    return raw.texts(name, 1, data).reshape([1] * len(wanted))


def _shape_for(name: str, datatype: str, wanted: tuple[int, ...], size: int) -> list[int]:
    shape = list(wanted)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    element = raw.size_of(datatype, 1) or 1
    step = element * math.prod(abs(each) for each in shape)
    found = [size // step if each == -1 and step else each for each in shape]
    whole = shape.count(-1) <= 1 and count_of(name, found) * element == size > 0
    if not whole:
        raise invalid(
            f"input {shown(name)}: {size} bytes do not make {datatype} {spell_shape(wanted)}",
            hint="send a JSON header with the shape",
            field=name[:100],
        )
    return found
