"""Hostile calls to the inference port, by the numbers of the threat list they are from.

Each has its stated outcome, and after each the same worker process serves the next request
rightly, has not grown, and has logged no traceback. HTTP itself, and who calls, are in
test_hostile_http; what comes by gRPC is in tests/serving/rpc.
"""

import gzip
import json
import zlib
from contextlib import suppress
from typing import Any

import pytest

from tests.security.hostile import (
    GOOD,
    HEAD,
    INFER,
    LIMIT,
    MIB,
    PLAIN,
    PREDICT,
    numeric,
    refused,
    statuses,
    swift,
)
from tests.serving.conftest import Plane, read_all, request

# -- tensors and JSON


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param([16, 2**60 + 2], id="1: elements overflow"),
        pytest.param([4, 2**60 + 2], id="2: bytes overflow"),
        pytest.param([-1, 3], id="3: negative"),
        pytest.param([1.0, 3], id="3: float"),
        pytest.param(["1", 3], id="3: string"),
        pytest.param([None, 3], id="3: null"),
        pytest.param([True, 3], id="3: boolean"),
        pytest.param([2, 3], id="4: another product"),
        pytest.param([1] * 10_000, id="5: ten thousand dimensions"),
        pytest.param([0, 3], id="6: nothing"),
        pytest.param([0, 2**70], id="6: nothing of a great size"),
        pytest.param([], id="6: no dimension"),
    ],
)
def test_shapes(plane: Plane, shape: list[Any]) -> None:
    refused(swift(plane, numeric([1, 2, 3], shape)))
    refused(swift(plane, numeric([], shape)))
    sized = {"parameters": {"binary_data_size": 12}}
    document = numeric([1, 2, 3], shape)
    del document["inputs"][0]["data"]
    document["inputs"][0] |= sized
    head = json.dumps(document).encode()
    refused(swift(plane, head + bytes(12), Inference_Header_Content_Length=str(len(head))))


@pytest.mark.parametrize("datatype", ["fp32", "OBJECT", "FP8", "", "BF16", "float32", "FP32 "])
def test_7_unknown_datatypes(plane: Plane, datatype: str) -> None:
    refused(swift(plane, numeric([1, 2, 3], datatype=datatype)))


@pytest.mark.parametrize(
    ("name", "datatype", "value"),
    [
        ("i8", "INT8", 300),
        ("i8", "INT8", -129),
        ("i64", "INT64", 2**63),
        ("i64", "INT64", -(2**63) - 1),
        ("i64", "INT64", 1.5),
        ("x_UINT8", "UINT8", -1),
        ("x_UINT8", "UINT8", 256),
    ],
)
def test_8_values_that_a_type_cannot_hold_are_not_wrapped(
    plane: Plane, name: str, datatype: str, value: Any
) -> None:
    tensor = {"name": name, "datatype": datatype, "shape": [1, 2], "data": [value, 0]}
    given = {
        "i8": {"name": "i8", "datatype": "INT8", "shape": [1], "data": [0]},
        "i64": {"name": "i64", "datatype": "INT64", "shape": [1, 2], "data": [0, 0]},
        "flag": {"name": "flag", "datatype": "BOOL", "shape": [1], "data": [True]},
    }
    if name == "i8":
        tensor |= {"shape": [1], "data": [value]}
    model, inputs = ("typed", given | {name: tensor})
    if name == "x_UINT8":
        model, inputs = "bytes", {name: tensor}
    refused(swift(plane, {"inputs": list(inputs.values())}, f"/v2/models/{model}/infer"))


def test_9_and_10_not_a_number_and_infinity_go_both_ways(plane: Plane) -> None:
    body = GOOD.replace(b"[1,2,3]", b"[%b,2,3]")
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        answer = swift(plane, body % word)
        assert answer.status == 200
        assert b'"data":[%b]' % word in answer.body
        rows = swift(plane, b'{"instances":[[%b,2,3]]}' % word, PREDICT)
        assert rows.body == b'{"predictions":[%b]}' % word
    for word in (b"1e999", b"-1e999", b"1e39", b"nan", b"Inf", b"+1", b"NaN1"):
        refused(swift(plane, body % word))


@pytest.mark.parametrize("path", [INFER, PREDICT, PLAIN, "/v1/models/sum:regress"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 120, id="11: 120 levels"),
        pytest.param(b'{"a":' * 250_000, id="11: 250,000 objects"),
        pytest.param(b'{"inputs":' + b"[" * 250_000 + b"]" * 250_000 + b"}", id="11: lists"),
        pytest.param(b'{"instances":' + b"[" * 250_000 + b"]" * 250_000 + b"}", id="11: rows"),
        pytest.param(b'{"rows":' + b"[" * 250_000 + b"]" * 250_000 + b"}", id="11: plain"),
        pytest.param(GOOD[:-1], id="13: cut short"),
        pytest.param(GOOD + b"x", id="13: something after it"),
        pytest.param(GOOD.replace(b"numeric", b"num\xff"), id="13: not UTF-8"),
        pytest.param(GOOD[:-1] + b',"id":"\\ud800"}', id="13: half a surrogate"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, id="13: a byte-order mark"),
        pytest.param(GOOD.replace(b"[1,2,3]", b"[1,2," + b"9" * 5000 + b"]"), id="14: digits"),
        pytest.param(b"", id="13: nothing"),
    ],
)
def test_bodies_that_are_no_calls(plane: Plane, path: str, body: bytes) -> None:
    refused(swift(plane, body, path))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, GOOD[:-1] + b',"inputs":[]}'),
        (INFER, GOOD[:-1] + b',"id":"a","id":"b"}'),
        (INFER, GOOD[:-1] + b',"\\u0069nputs":[]}'),
        (INFER, GOOD.replace(b'"data":', b'"data":[9,9,9],"data":')),
        (INFER, json.dumps({"inputs": numeric([1, 2, 3])["inputs"] * 2}).encode()),
        (INFER, GOOD[:-1] + b',"outputs":[{"name":"prediction"},{"name":"prediction"}]}'),
        (PREDICT, b'{"instances":[[1,2,3]],"instances":[[1,2,3]]}'),
        (PREDICT, b'{"instances":[{"alpha":1,"beta":2,"gamma":3,"alpha":4}]}'),
        (PLAIN, b'{"rows":[{"alpha":1,"beta":2,"gamma":3,"alpha":4}]}'),
        ("/v1/models/sum:regress", b'{"examples":[{"alpha":1,"beta":2,"gamma":3,"beta":4}]}'),
    ],
)
def test_12_nothing_is_said_twice(plane: Plane, path: str, body: bytes) -> None:
    refused(swift(plane, body, path))


def test_14_long_numbers_are_refused_quickly(plane: Plane) -> None:
    digits = b"9" * (LIMIT - 1000)
    for number in (digits, b"-" + digits, digits[:1_000_000] + b"e999999999", b"0." + digits):
        assert swift(plane, GOOD.replace(b"[1,2,3]", b"[1,2,%b]" % number)).status in {200, 400}


def test_15_bodies_over_the_limit_are_not_kept(plane: Plane) -> None:
    stated = f"{HEAD}Content-Length: {LIMIT + 1}\r\n\r\n".encode()
    assert statuses(plane.raw(stated)) == [413]
    expecting = f"{HEAD}Expect: 100-continue\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode()
    assert statuses(plane.raw(expecting)) == [413]
    with plane.connect() as line:
        line.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(OSError):
            for _ in range(1000):
                line.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        assert statuses(read_all(line)) == [413]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_16_bombs(plane: Plane, coding: str) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    bomb = b"".join(stream.compress(bytes(MIB)) for _ in range(200)) + stream.flush()
    assert len(bomb) * 900 < 200 * MIB
    for path in (INFER, PREDICT, PLAIN):
        refused(swift(plane, bomb, path, Content_Encoding=coding), 413)
    many = gzip.compress(b"") * 100_000
    refused(swift(plane, many, Content_Encoding="gzip"))
    twice = gzip.compress(gzip.compress(GOOD))
    for spelled in ("gzip, gzip", "gzip,deflate", "deflate, gzip"):
        refused(swift(plane, twice, Content_Encoding=spelled), 415)
    refused(swift(plane, twice, Content_Encoding="gzip"))


def test_17_unknown_types_and_encodings(plane: Plane) -> None:
    for encoding in ("br", "zstd", "compress", "GZIP2", "gzip;q=1", "\x01"):
        refused(swift(plane, GOOD, Content_Encoding=encoding), 400, 415)
    for kind in ("text/xml", "application/grpc", "multipart/form-data", "image/png", ";;"):
        refused(swift(plane, GOOD, Content_Type=kind), 415)


def test_18_names_cannot_forge_a_log_line(plane: Plane) -> None:
    forged = "x%0AFORGED%20line%20%1b%5B31m"
    for name in (forged, "a%00b", "..%2F..%2Fetc", "%1b%5B2J", "x" * 300, "%ff", "%E2%80%AEx"):
        for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}:predict"):
            answer = refused(plane.call("POST", path, GOOD), 400, 404)
            assert not any(byte < 32 for byte in answer.body)
        refused(plane.call("POST", f"/v2/repository/models/{name}/load"), 400, 404)
    for identifier in ("a\nb", "a\x00b", "\x1b[31m", "x" * 5000):
        refused(swift(plane, numeric([1, 2, 3]) | {"id": identifier}))
    log = (plane.home / "log").read_bytes().decode()
    assert not any(line.lstrip().startswith("FORGED") for line in log.splitlines())
    assert "\x1b" not in log


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {},
        numeric([1, 2, 3], name="Numeric"),
        numeric([1, 2, 3], name="numeric "),
        {"inputs": [*numeric([1, 2, 3])["inputs"], *numeric([1], [1], name="more")["inputs"]]},
        {"inputs": {"numeric": [1, 2, 3]}},
        {"inputs": [None]},
        numeric([1, 2, 3]) | {"outputs": [{"name": "nothing"}]},
    ],
)
def test_19_inputs_that_do_not_fit(plane: Plane, body: Any) -> None:
    refused(swift(plane, body))


# -- binary


def test_20_lengths_of_the_json(plane: Plane) -> None:
    for length in ("-1", "99999999999", str(len(GOOD) + 1), "x", "0x10", "1e2", "", "1" * 400):
        refused(swift(plane, GOOD, Inference_Header_Content_Length=length))
    repeated = "Inference-Header-Content-Length: 5\r\n" * 2
    assert statuses(plane.raw(request(INFER, GOOD, more=repeated))) == [400]


@pytest.mark.parametrize(
    ("model", "size", "data"),
    [
        pytest.param("sum", 8, bytes(8), id="21: not the shape's"),
        pytest.param("sum", -12, bytes(12), id="21: negative"),
        pytest.param("sum", 24, bytes(12), id="21: more than the body"),
        pytest.param("sum", 2**63, bytes(12), id="21: out of range"),
        pytest.param("sum", 12, bytes(13), id="21: less than the body"),
        pytest.param("words", 8, b"\xff\xff\xff\xffabcd", id="22: a length beyond all"),
        pytest.param("words", 8, b"\x05\x00\x00\x00abcd", id="22: a length beyond the bytes"),
        pytest.param("words", 3, b"\x00\x00\x00", id="22: half a length"),
        pytest.param("words", 8, b"\x00\x00\x00\x00\x00\x00\x00\x00", id="22: two elements"),
        pytest.param("words", 8, b"\x04\x00\x00\x00\xff\xfe\xfd\xfc", id="22: not text"),
    ],
)
def test_sizes_of_binary_data(plane: Plane, model: str, size: int, data: bytes) -> None:
    name, datatype, shape = (
        ("numeric", "FP32", [1, 3]) if model == "sum" else ("x_BYTES", "BYTES", [1, 1])
    )
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    path = f"/v2/models/{model}/infer"
    refused(swift(plane, head + data, path, Inference_Header_Content_Length=str(len(head))))
