"""Tensors as bytes: what goes in comes back exactly, and sizes that do not add up are refused."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import Answer, Plane, request
from tests.serving.packages import EVERY, NUMBERS
from tests.serving.rest.test_open_inference import numeric, refused

NUMPY = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1",
    "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
LENGTH = "inference-header-content-length"


def as_bytes(datatype: str, values: Any) -> bytes:
    if datatype != "BYTES":
        return np.array(values, NUMPY[datatype]).tobytes()
    texts = [text.encode() for row in values for text in row]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tensor(name: str, datatype: str, shape: Any, size: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def send(plane: Plane, path: str, document: Any, *data: bytes, **headers: str) -> Answer:
    head = json.dumps(document).encode()
    headers.setdefault("Inference_Header_Content_Length", str(len(head)))
    return plane.call("POST", path, b"".join((head, *data)), **headers)


def split(answer: Answer) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The document of a binary answer, and the bytes of each output."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    document = json.loads(answer.body[:length])
    at = length
    found = {}
    for output in document["outputs"]:
        assert "data" not in output
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = answer.body[at : at + size]
        at += size
    assert at == len(answer.body)
    return document, found


ALL = [tensor(f"x_{kind}", kind, [2, 2], len(as_bytes(kind, EVERY[kind]))) for kind in EVERY]
ALL_BYTES = [as_bytes(kind, EVERY[kind]) for kind in EVERY]
EVERY_PATH = "/v2/models/every/infer"


def test_every_datatype_comes_back_bit_by_bit(plane: Plane) -> None:
    asked = {"id": "7", "inputs": ALL, "parameters": {"binary_data_output": True}}
    document, found = split(send(plane, EVERY_PATH, asked, *ALL_BYTES))
    assert (document["id"], document["model_name"]) == ("7", "every")
    assert [output["shape"] for output in document["outputs"]] == [[2, 2]] * len(EVERY)
    assert [found[f"y_{kind}"] for kind in EVERY] == ALL_BYTES


def test_every_datatype_as_json_is_the_same(plane: Plane) -> None:
    given = [
        {"name": f"x_{kind}", "datatype": kind, "shape": [2, 2], "data": values}
        for kind, values in EVERY.items()
    ]
    flat = {kind: [value for row in values for value in row] for kind, values in EVERY.items()}
    flat["FP32"] = [float(np.float32(value)) for value in flat["FP32"]]
    for answer in (
        plane.call("POST", EVERY_PATH, {"inputs": given}),
        send(plane, EVERY_PATH, {"inputs": ALL}, *ALL_BYTES),
    ):
        outputs = answer.json()["outputs"]
        assert {output["datatype"]: output["data"] for output in outputs} == flat
    asked = {"inputs": given, "outputs": [{"name": "y_FP16", "parameters": {"binary_data": True}}]}
    _, found = split(plane.call("POST", EVERY_PATH, asked))
    assert found == {"y_FP16": as_bytes("FP16", EVERY["FP16"])}


def test_each_output_as_it_is_asked_for(plane: Plane) -> None:
    asked = {
        "inputs": ALL,
        "outputs": [
            {"name": "y_FP32", "parameters": {"binary_data": False}},
            {"name": "y_INT64"},
            {"name": "y_BYTES", "parameters": {"binary_data": True}},
        ],
        "parameters": {"binary_data_output": True},
    }
    answer = send(plane, EVERY_PATH, asked, *ALL_BYTES)
    length = int(answer.headers[LENGTH])
    first, second, third = json.loads(answer.body[:length])["outputs"]
    assert first["data"][0] == 1.5
    sizes = [one["parameters"]["binary_data_size"] for one in (second, third)]
    assert answer.body[length:] == as_bytes("INT64", EVERY["INT64"]) + as_bytes(
        "BYTES", EVERY["BYTES"]
    )
    assert sum(sizes) == len(answer.body) - length


@pytest.mark.parametrize("rows", [1, 3, 40_000])
def test_rows_of_numbers(plane: Plane, rows: int) -> None:
    data = np.arange(3 * rows, dtype="<f4").reshape(rows, 3)
    given = {"inputs": [tensor("numeric", "FP32", [rows, 3], data.nbytes)]}
    sums = (data.sum(axis=1) + 1).astype("<f4")
    answer = send(plane, "/v2/models/sum/infer", given, data.tobytes())
    assert answer.json()["outputs"][0]["data"] == sums.tolist()
    given["parameters"] = {"binary_data_output": True}  # type: ignore[assignment]
    for _ in range(2):
        _, found = split(send(plane, "/v2/models/sum/infer", given, data.tobytes()))
        assert found["prediction"] == sums.tobytes()


def test_not_a_number_is_exact(plane: Plane) -> None:
    odd = struct.pack("<3I", 0x7FC00001, 0, 0xFF800000)  # NaN with a payload, 0, -Infinity
    given = {
        "inputs": [tensor("numeric", "FP32", [1, 3], 12)],
        "parameters": {"binary_data_output": True},
    }
    _, found = split(send(plane, "/v2/models/sum/infer", given, odd))
    assert np.isnan(np.frombuffer(found["prediction"], "<f4")).all()


def test_columns_may_be_bytes(plane: Plane) -> None:
    given = {
        "inputs": [
            tensor("alpha", "FP64", [2], 16),
            {"name": "beta", "datatype": "FP32", "shape": [2], "data": [2, 5]},
            tensor("gamma", "INT32", [2], 8),
        ]
    }
    data = (as_bytes("FP64", [1, 4]), as_bytes("INT32", [3, 6]))
    answer = send(plane, "/v2/models/sum/infer", given, *data)
    assert answer.json()["outputs"][0]["data"] == [7.0, 16.0]


def test_a_body_may_be_nothing_but_the_input(plane: Plane) -> None:
    def bare(name: str, body: bytes) -> Answer:
        path = f"/v2/models/{name}/infer"
        return plane.call("POST", path, body, Inference_Header_Content_Length="0")

    document, found = split(bare("sum", as_bytes("FP32", [[1, 2, 3], [4, 5, 6]])))
    assert (document["outputs"][0]["shape"], found["prediction"]) == (
        [2],
        as_bytes("FP32", [7, 16]),
    )
    _, found = split(bare("words", "naïve".encode()))
    assert found["y_BYTES"] == as_bytes("BYTES", [["naïve"]])
    document, found = split(bare("pixels", b"12345"))
    assert (document["outputs"][0]["shape"], found["y_UINT8"]) == ([1, 5], b"12345")
    refused(bare("sum", b"x" * 13), "13 bytes do not make FP32 [n, 3]")
    refused(bare("sum", b""), "0 bytes")
    refused(bare("mixed", b"x" * 12), "2 inputs")
    refused(bare("words", b"\xff"), "not UTF-8")


def test_bytes_that_are_no_text_are_refused(plane: Plane) -> None:
    given = {"inputs": [tensor("x_BYTES", "BYTES", [2, 1], 12)]}
    good = struct.pack("<I2sI2s", 2, b"ab", 2, b"cd")
    assert send(plane, "/v2/models/words/infer", given, good).json()["outputs"][0]["data"] == [
        "ab",
        "cd",
    ]
    words = refused(
        send(plane, "/v2/models/words/infer", given, good.replace(b"cd", b"\xc3\x28")),
        "element 1 is not UTF-8",
    )
    assert "UINT8" in words


@pytest.mark.parametrize(
    ("given", "data", "words"),
    [
        (tensor("numeric", "FP32", [1, 3], 8), b"x" * 8, "has 8 bytes, its shape [1, 3]"),
        (tensor("numeric", "FP32", [1, 3], 12), b"x" * 8, "has 8 bytes"),
        (tensor("numeric", "FP32", [1, 3], 12), b"x" * 16, "add up to 12"),
        (tensor("numeric", "FP32", [1, 3], -12), b"x" * 12, "neither data nor"),
        (tensor("numeric", "FP32", [1, 3], 2**63), b"x" * 12, "add up to 9223372036854775808"),
        (tensor("numeric", "FP32", [1, 3], "12"), b"x" * 12, "expected `int`"),
        (tensor("numeric", "FP32", [1, 3], 12.5), b"x" * 12, "expected `int`"),
        (tensor("numeric", "FP32", [1, 3], None), b"x" * 12, "expected `int`"),
        (tensor("numeric", "FP32", [4, 2**60 + 2], 12), b"x" * 12, "no data could fill"),
        (tensor("numeric", "FP32", [2**40, 2**40, 0], 0), b"", "no data could fill"),
        (tensor("numeric", "FP32", [-1, 3], 12), b"x" * 12, "negative"),
        (tensor("numeric", "FP32", [0, 3], 0), b"", "no rows"),
        (tensor("numeric", "FP64", [1, 3], 24), b"x" * 24, "must be FP32"),
        (tensor("numeric", "BF16", [1, 3], 6), b"x" * 6, "must be FP32"),
        (tensor("numeric", "BYTES", [1, 3], 12), b"\xff\xff\xff\xff" + b"x" * 8, "longer than"),
        (tensor("numeric", "BYTES", [1, 3], 3), b"x" * 3, "longer than"),
        (tensor("numeric", "BYTES", [1, 2**35], 4), bytes(4), "fewer elements"),
        (tensor("numeric", "BYTES", [1, 1], 8), bytes(8), "more elements"),
        (tensor("numeric", "FP32", [1, 3], 12) | {"data": [1, 2, 3]}, b"x" * 12, "add up to 0"),
        ({"name": "numeric", "datatype": "FP32", "shape": [1, 3]}, b"x" * 12, "neither data nor"),
        (tensor("other", "FP32", [1, 3], 12), b"x" * 12, "'numeric' is missing"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_add_up_are_refused(
    plane: Plane, given: Any, data: bytes, words: str
) -> None:
    refused(send(plane, "/v2/models/sum/infer", {"inputs": [given]}, data), words)


def test_odd_values_and_names_are_refused(plane: Plane) -> None:
    bad = [*ALL_BYTES]
    bad[0] = b"\x00\x01\x02\x01"
    refused(send(plane, EVERY_PATH, {"inputs": ALL}, *bad), "neither 0 nor 1")
    one = tensor("numeric", "FP32", [1, 3], 12)
    twice = {"inputs": [one, one]}
    refused(send(plane, "/v2/models/sum/infer", twice, b"x" * 24), "same name")
    for parameters, words in (
        ({"classification": 2}, "classification is not understood"),
        ({"shared_memory_region": "r"}, "shared_memory_region is not understood"),
        ({"binary_data": 1}, "expected `bool`"),
    ):
        asked = numeric([1, 2, 3]) | {"outputs": [{"name": "prediction", "parameters": parameters}]}
        refused(plane.call("POST", "/v2/models/sum/infer", asked), words)


@pytest.mark.parametrize("length", ["-1", "99999999999", "9" * 40, "x", "1.5", "+5", "", "200"])
def test_lengths_of_the_header_that_cannot_be_are_refused(plane: Plane, length: str) -> None:
    given = {"inputs": [tensor("numeric", "FP32", [1, 3], 12)]}
    answer = send(
        plane, "/v2/models/sum/infer", given, b"x" * 12, Inference_Header_Content_Length=length
    )
    refused(answer)
    wrong_wire = plane.call(
        "POST", "/v1/models/sum:predict", b"{}", Inference_Header_Content_Length="2"
    )
    refused(wrong_wire, "Open Inference protocol only")


def test_rows_that_run_together_keep_their_own_bytes(plane: Plane) -> None:
    """Pipelined, so that they are batched: with and without identifiers, and JSON among them."""
    data = b""
    for number in range(60):
        document = {
            "inputs": [tensor("numeric", "FP32", [1, 3], 12)],
            "parameters": {"binary_data_output": number % 3 != 0},
        } | ({"id": f"n{number}"} if number % 2 else {})
        head = json.dumps(document).encode()
        more = f"Inference-Header-Content-Length: {len(head)}\r\n"
        more += "Connection: close\r\n" if number == 59 else ""
        data += request("/v2/models/sum/infer", head + as_bytes("FP32", [number, 0, 0]), more=more)
    stream = plane.raw(data)
    for number in range(60):
        head, _, rest = stream.partition(b"\r\n\r\n")
        names = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        body, stream = rest[: int(names[b"content-length"])], rest[int(names[b"content-length"]) :]
        document = json.loads(body[: int(names.get(LENGTH.encode(), len(body)))])
        assert document.get("id") == (f"n{number}" if number % 2 else None)
        output = document["outputs"][0]
        assert output["shape"] == [1]
        if number % 3:
            assert (body[-4:], output["parameters"]) == (
                as_bytes("FP32", [number + 1]),
                {"binary_data_size": 4},
            )
        else:
            assert output["data"] == [number + 1.0]
    assert stream == b""


def test_columns_of_bf16_are_numbers(plane: Plane) -> None:
    asked = {"inputs": [tensor(name, "BF16", [1], 2) for name in NUMBERS]}
    answer = send(plane, "/v2/models/sum/infer", asked, b"\xc0\x3f" * 3)  # 1.5
    assert answer.json()["outputs"][0]["data"] == [5.5]
