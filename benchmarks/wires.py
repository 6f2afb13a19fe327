"""What goes over each wire: whole requests made beforehand, and scores read out of answers.

`json` and `binary` are Open Inference v2 over HTTP (binary: its tensor extension, as tritonclient
sends it), `grpc` is `inference.GRPCInferenceService/ModelInfer` with raw contents. Protobuf is
written and read here by hand, from the field numbers of the protocol's `grpc_predict_v2.proto`:
the load generator must not share the code of a server that it measures.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WIRES: Final = ("json", "binary", "grpc")
METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES: Final = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
NUMPY: Final = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}
_CONTENTS: Final = {6: "<f4", 7: "<f8"}
_JSON_LENGTH: Final = re.compile(rb"(?i)\r\ninference-header-content-length: *(\d+)")


def infer_path(model: str) -> str:
    """The path of an Open Inference request."""
    return f"/v2/models/{model}/infer"


def spell(wire: str, model: str, name: str, rows: Array) -> tuple[bytes, dict[str, str]]:
    """The body of a request for the rows of input `name`, and the headers that belong to it."""
    if wire == "grpc":
        return _message(model, name, rows), {}
    tensor: dict[str, Any] = {
        "name": name,
        "shape": rows.shape,
        "datatype": DATATYPES[rows.dtype.name],
    }
    if wire == "json":
        tensor["data"] = [_plain(value) for value in rows.ravel()]
        return json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}
    raw = rows.tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(request).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return head + raw, headers


def _plain(value: Any) -> float | int:
    """The shortest number that is exactly `value` in its type."""
    return int(value) if value.dtype.kind == "i" else float(str(value))


def http_request(
    path: str, host: str, headers: dict[str, str], body: bytes, extra: dict[str, str]
) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = "".join(f"{name}: {text}\r\n" for name, text in {**headers, **extra}.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read(wire: str, head: bytes, body: bytes, output: str) -> list[float]:
    """The scores in an answer. Raises ValueError or LookupError for anything else.

    `head` are the header lines of an HTTP answer.
    """
    if wire == "grpc":
        return _scores_of_message(body, output)
    if wire == "binary":
        found = _JSON_LENGTH.search(head)
        if found is None:
            raise ValueError("an answer without binary tensors")
        return _scores_of_binary(body, int(found[1]), output)
    outputs = {tensor["name"]: tensor["data"] for tensor in json.loads(body)["outputs"]}
    return [float(value) for value in outputs[output]]


def _scores_of_binary(body: bytes, length: int, output: str) -> list[float]:
    at = length
    for tensor in json.loads(body[:length])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        if tensor["name"] == output:
            return _floats(body[at : at + size], NUMPY[tensor["datatype"]], tensor["shape"])
        at += size
    raise LookupError(output)


def _floats(data: bytes, kind: Any, shape: list[int]) -> list[float]:
    values = np.frombuffer(data, kind)
    if values.size != math.prod(shape):
        raise ValueError(f"{values.size} values of shape {shape}")
    return [float(value) for value in values]


# -- protobuf


def _message(model: str, name: str, rows: Array) -> bytes:
    """A ModelInferRequest: model_name 1, inputs 5 (name 1, datatype 2, shape 3), raw contents 7."""
    shape = b"".join(_varint(size) for size in rows.shape)
    tensor = _field(1, name.encode()) + _field(2, DATATYPES[rows.dtype.name].encode())
    tensor += _field(3, shape)
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, rows.tobytes())


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, text, a message or packed numbers (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: numbers as int, everything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _number(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _number(data, at)
        else:
            size = {1: 8, 5: 4}[kind]
        if at + size > len(data):
            raise ValueError("a truncated message")
        yield tag >> 3, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return number, at


def _scores_of_message(data: bytes, output: str) -> list[float]:
    """From a ModelInferResponse: outputs 5 (name 1, datatype 2, shape 3, contents 5), raw 6."""
    found = list(fields(data))
    raw = [value for number, value in found if number == 6]
    tensors = [list(fields(value)) for number, value in found if number == 5]
    for index, tensor in enumerate(tensors):
        parts = dict(tensor)
        if parts[1].decode() != output:
            continue
        if raw:
            return _floats(raw[index], NUMPY[parts[2].decode()], _shape(tensor))
        contents = dict(fields(parts[5]))
        number = next(number for number in _CONTENTS if number in contents)
        return _floats(contents[number], np.dtype(_CONTENTS[number]), _shape(tensor))
    raise LookupError(output)


def _shape(tensor: list[tuple[int, Any]]) -> list[int]:
    sizes: list[int] = []
    for number, value in tensor:
        if number == 3 and isinstance(value, int):
            sizes.append(value)
        elif number == 3:
            at = 0
            while at < len(value):
                size, at = _number(value, at)
                sizes.append(size)
    return sizes
