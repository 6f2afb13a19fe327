"""Open Inference v2 over gRPC: tensors in, typed or raw, and raw tensors out.

Values may also come as one tensor a column, named as in the model's metadata.
Source: the protocol's `inference_grpc` page and Triton's extensions of it.
"""

from functools import cache, lru_cache
from typing import Any, Final, cast

from tapster.contract.inference import Array
from tapster.contract.manifest import TensorSpec
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest import raw
from tapster.serving.rest.bodies import check_text, invalid, shown
from tapster.serving.rest.open_inference import admit, misunderstood
from tapster.serving.rest.wires import Request
from tapster.serving.rpc import contents
from tapster.serving.rpc.calls import Call
from tapster.serving.rpc.encoding import delimited, header, text, varint
from tapster.serving.rpc.messages import message

_NAME, _VERSION, _ID, _PARAMETERS, _OUTPUT, _RAW = 1, 2, 3, 4, 5, 6
MANY_INPUTS: Final = 256
_ROWS: Final = "rpc.v2"
_WHOLE: Final = "rpc.v2.raw"


@cache
def _request() -> Any:
    return message("inference.ModelInferRequest").FromString


def parse(data: bytes) -> Any:
    """See Wire."""
    return _request()(data)


def wanted(call: Call, request: Any) -> tuple[str, str, str]:
    """See Wire."""
    identifier = request.id
    if identifier:
        check_text(identifier, "the id")
        call.tag = text(_ID, identifier)
    return request.model_name, request.model_version, ""


def slow(request: Any) -> bool:
    """See Wire. Raw tensors are used as they come, unless they are texts."""
    if not request.raw_input_contents or len(request.inputs) > MANY_INPUTS:
        return True
    return any(given.datatype == "BYTES" for given in request.inputs)


def read(call: Call, request: Any) -> None:
    """See Wire."""
    model = call.target.model
    given = request.inputs
    pieces = request.raw_input_contents
    if model.packed is None or len(pieces) != 1 or len(given) != 1 or not _packed(call, request):
        pairs = _raw(given, pieces) if pieces else _typed(given)
        admit(cast(Request, call), model, pairs)
    if request.outputs:
        call.chosen = _chosen(model, [_plain(output) for output in request.outputs])
    if request.parameters:
        _hurry(call, request.parameters)


def write(call: Call, answer: Answer, first: int) -> bytes:
    """See Wire."""
    target = call.target
    if answer.singly and call.chosen is None:
        key = (_ROWS, target)
        bodies = answer.spelled.get(key)
        if bodies is None:
            bodies = answer.spelled[key] = _spell_rows(call, answer)
        if bodies:
            return bodies[first] + call.tag if call.tag else bodies[first]
    specs = target.model.signature.outputs
    chosen = range(len(specs)) if call.chosen is None else call.chosen
    parts = [_begin(target.endpoint.plan.name, target.version), call.tag]
    tail = []
    for index in chosen:
        array = answer.arrays[index]
        if not answer.alone:
            array = array[first : first + call.rows]
        parts.append(_described(specs[index], array.shape))
        tail.append(delimited(_RAW, _data(answer, index, first, array, specs[index])))
    if answer.note:
        parts.append(_noted(answer.note))
    return b"".join((*parts, *tail))


def _packed(call: Call, request: Any) -> bool:
    """Take the only input's bytes as they are, if its rows are just as the model has them."""
    place = call.target.model.packed
    given = request.inputs[0]
    shape = given.shape
    if (
        place is None
        or given.name != place[0]
        or given.datatype != "FP32"
        or len(shape) != 2
        or shape[1] != place[1]
        or given.HasField("contents")
    ):
        return False
    data: bytes = request.raw_input_contents[0]
    rows = shape[0]
    if rows < 1 or len(data) != rows * place[1] * 4:
        return False
    call.inputs, call.rows = data, rows
    return True


def _raw(given: Any, pieces: Any) -> list[tuple[str, str, Array]]:
    if len(pieces) != len(given):
        raise invalid(
            f"there are {len(given)} inputs and {len(pieces)} raw_input_contents",
            hint="give each input one entry, in the same order, or all of them typed contents",
        )
    pairs = []
    for one, data in zip(given, pieces, strict=True):
        if one.HasField("contents"):
            raise invalid(
                f"input {shown(one.name)} has contents beside raw_input_contents",
                hint="give one of the two",
                field=one.name[:100],
            )
        array = raw.decode(one.name, one.datatype, one.shape, memoryview(data))
        pairs.append((one.name, one.datatype, array))
    return pairs


def _typed(given: Any) -> list[tuple[str, str, Array]]:
    return [
        (one.name, one.datatype, contents.decode(one.name, one.datatype, one.shape, one.contents))
        for one in given
    ]


def _chosen(model: Model, names: list[str]) -> tuple[int, ...]:
    known = {spec.name: index for index, spec in enumerate(model.signature.outputs)}
    for name in names:
        if name not in known:
            raise invalid(
                f"the model has no output {shown(name)}",
                hint=f"its outputs: {', '.join(known)}",
                field=name[:100],
            )
    if len(set(names)) < len(names):
        raise invalid("an output is asked for twice", hint="name each output once")
    return tuple(known[name] for name in names)


def _plain(output: Any) -> str:
    """The name of an output that is wanted as it is. Raises TapsterError(invalid)."""
    for name in ("classification", "shared_memory_region"):
        if name in output.parameters:
            raise misunderstood(name, output.name)
    found: str = output.name
    return found


def _hurry(call: Call, parameters: Any) -> None:
    """Take over the time limit, which Triton has in microseconds."""
    if "timeout" not in parameters:
        return
    given = parameters["timeout"]
    kind = given.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"} or getattr(given, kind) <= 0:
        raise invalid(
            "the parameter timeout must be a number of microseconds above 0",
            field="parameters.timeout",
        )
    call.deadline = min(call.deadline, call.began / 1e9 + getattr(given, kind) / 1e6)


def _spell_rows(call: Call, answer: Answer) -> list[bytes]:
    """A body for each row, for requests of one row; nothing if outputs do not come so."""
    target = call.target
    specs = target.model.signature.outputs
    arrays = answer.arrays
    if answer.note or any(array.shape[:1] != (answer.rows,) or not array.size for array in arrays):
        return []
    if any(spec.datatype == "BYTES" for spec in specs):
        return []
    begin = _begin(target.endpoint.plan.name, target.version) + b"".join(
        [_described(spec, (1, *array.shape[1:])) for spec, array in zip(specs, arrays, strict=True)]
    )
    columns = []
    for array in arrays:
        data, size = array.tobytes(), array.nbytes // answer.rows
        before = header(_RAW, size)
        columns.append([before + data[at : at + size] for at in range(0, len(data), size)])
    if len(columns) == 1:
        return [begin + cell for cell in columns[0]]
    return [begin + b"".join(row) for row in zip(*columns, strict=True)]


def _data(answer: Answer, index: int, first: int, array: Array, spec: TensorSpec) -> bytes:
    """The raw contents of an output's rows; the whole batch is turned into bytes only once."""
    if answer.alone or spec.datatype == "BYTES":
        return raw.encode(spec.datatype, array)
    whole = answer.spelled.get(_WHOLE)
    if whole is None:
        whole = answer.spelled[_WHOLE] = [b""] * len(answer.arrays)
    if not whole[index]:
        whole[index] = answer.arrays[index].tobytes()
    size = answer.arrays[index].nbytes // answer.rows
    return whole[index][first * size : first * size + array.nbytes]


@lru_cache(4096)
def _begin(name: str, version: str) -> bytes:
    return text(_NAME, name) + text(_VERSION, version)


@lru_cache(4096)
def _described(spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
    """An output's name, datatype and shape."""
    sizes = b"".join(map(varint, shape))
    tensor = text(1, spec.name) + text(2, spec.datatype) + (delimited(3, sizes) if sizes else b"")
    return delimited(_OUTPUT, tensor)


def _noted(note: dict[str, Any]) -> bytes:
    """What an answer says about itself, as parameters."""
    from msgspec.json import encode

    response = message("inference.ModelInferResponse")()
    for name, value in note.items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        kind = kinds.get(type(value))
        if kind is None:
            response.parameters[name].string_param = encode(value).decode()
        else:
            setattr(response.parameters[name], kind, value)
    data: bytes = response.SerializeToString()
    return data
