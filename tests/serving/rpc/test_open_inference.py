"""Open Inference v2 over gRPC: every datatype, raw and typed, columns, outputs, and bad calls."""

from typing import Any
from urllib.parse import unquote_to_bytes

import grpc
import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.serving.rpc import contents
from tapster.serving.rpc.encoding import delimited, text
from tapster.serving.rpc.hpack import Decoder
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.statuses import MAX_MESSAGE, refusal
from tests.serving import packages
from tests.serving.conftest import Plane
from tests.serving.rpc.calling import (
    INFER,
    ask,
    call,
    channel,
    infer,
    infer_request,
    outputs,
    refused,
    sum_request,
    tensor,
)

RESPONSE = "inference.ModelInferResponse"
REQUEST = "inference.ModelInferRequest"
VALUES = packages.EVERY


def test_every_datatype_comes_back_as_it_went(plane: Plane) -> None:
    given = [tensor(f"x_{name}", values, name) for name, values in VALUES.items()]
    expected = {f"y_{name[2:]}": array.tolist() for name, _, array in given}
    answer = ask(plane, INFER, RESPONSE, infer_request("every", *given))
    assert outputs(answer) == expected
    assert [output.datatype for output in answer.outputs] == list(VALUES)
    assert all(list(output.shape) == [2, 2] for output in answer.outputs)


@pytest.mark.parametrize("datatype", [name for name in VALUES if name != "FP16"])
@pytest.mark.parametrize("repeats", [1, 20_000])
def test_typed_contents_hold_every_datatype_but_half_floats(datatype: str, repeats: int) -> None:
    name, _, array = tensor("x", VALUES[datatype] * repeats, datatype)
    request = infer_request("any", (name, datatype, array), typed=True)
    given = request.inputs[0]
    given.contents.MergeFromString(delimited(99, b"a field that nobody knows"))
    found = contents.decode("x", datatype, given.shape, given.contents)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_typed_contents_are_answered_raw(plane: Plane) -> None:
    three = [[float(row), 1.0, 2.0] for row in range(30_000)]
    found = infer(plane, infer_request("sum", tensor("numeric", three), typed=True))
    assert found == {"prediction": [row + 4.0 for row in range(30_000)]}
    words = [["a"], [""], ["é"]]
    request = infer_request("words", tensor("x_BYTES", words, "BYTES"), typed=True)
    assert infer(plane, request) == {"y_BYTES": words}


def test_nan_and_infinity_pass_exactly(plane: Plane) -> None:
    odd = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [np.inf, -np.inf, 0]], np.float32)
    found = infer(plane, infer_request("sum", ("numeric", "FP32", odd)))["prediction"]
    assert np.array_equal(found, [np.nan, np.inf, np.nan], equal_nan=True)


def test_rows_of_many_callers_are_kept_apart(plane: Plane) -> None:
    with channel(plane) as made:
        asking = made.unary_unary(f"/{INFER}")
        key = [("authorization", "Bearer tap_test-key")]
        waiting = []
        for number in range(300):
            rows = [[number, row, 0] for row in range(number % 4 + 1)]
            request = infer_request("sum", tensor("numeric", rows), id=str(number))
            data = request.SerializeToString()
            waiting.append((rows, request.id, asking.future(data, metadata=key, timeout=30)))
        for rows, identifier, future in waiting:
            answer = message(RESPONSE).FromString(future.result())
            assert answer.id == identifier
            assert outputs(answer) == {"prediction": [sum(row) + 1.0 for row in rows]}


def test_values_may_come_by_column(plane: Plane) -> None:
    request = infer_request(
        "mixed",
        tensor("size", [0.5, 0.5]),
        tensor("city", ["Turin", "Rome"], "BYTES"),
        tensor("member", [True, False], "BOOL"),
        tensor("since", ["1970-04-11", ""], "BYTES"),
        tensor('<b>"quoted"\'; 😀', ["", ""], "BYTES"),
        outputs=[{"name": "prediction"}],
    )
    assert infer(plane, request) == {"prediction": ["yes", "no"]}


def test_outputs_are_chosen_and_the_id_comes_back(plane: Plane) -> None:
    request = infer_request(
        "mixed",
        tensor("numeric", [[2, 1, 100]]),
        tensor("text", [["Turin", "x"]], "BYTES"),
        id="käse",
        outputs=[{"name": "probabilities"}, {"name": "prediction"}],
    )
    answer = ask(plane, INFER, RESPONSE, request)
    assert (answer.model_name, answer.model_version, answer.id) == ("mixed", "3", "käse")
    found = outputs(answer)
    assert list(found) == ["probabilities", "prediction"]
    assert found["prediction"] == ["yes"]
    assert found["probabilities"][0][1] > 0.9


def test_versions_labels_and_sticky_keys_choose(plane: Plane) -> None:
    for version, bias in (("1", 1.0), ("2", 2.0)):
        request = sum_request(name="sum-two", model_version=version)
        assert infer(plane, request) == {"prediction": [6 + bias]}
    sticky = {
        infer(plane, sum_request(name="sum-two"), x_sticky_key="somebody")["prediction"][0]
        for _ in range(20)
    }
    assert len(sticky) == 1
    status, said = refused(plane, INFER, sum_request(name="sum-two", model_version="7"))
    assert (status, "it serves: 1, 2" in said) == ("NOT_FOUND", True)


def test_the_request_id_is_echoed(plane: Plane) -> None:
    reply = call(plane, INFER, sum_request(), x_request_id="trace-7")
    assert reply.trailers["x-request-id"] == "trace-7"
    made = call(plane, INFER, sum_request()).trailers["x-request-id"]
    assert made != call(plane, INFER, sum_request()).trailers["x-request-id"] != ""
    odd = call(plane, INFER, sum_request(), x_request_id="x" * 129)
    assert odd.trailers["x-request-id"] != "x" * 129
    error = call(plane, INFER, sum_request(name="none"), x_request_id="trace-8")
    assert error.trailers["x-request-id"] == "trace-8"


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_requests_may_be_compressed(plane: Plane, algorithm: grpc.Compression) -> None:
    for rows in (1, 60_000):
        request = infer_request("sum", tensor("numeric", [[1, 2, 3]] * rows))
        assert infer(plane, request, compression=algorithm) == {"prediction": [7.0] * rows}
    bomb = infer_request("sum", tensor("numeric", [[0, 0, 0]] * 400_000))
    assert bomb.ByteSize() > 4_000_000
    assert refused(plane, INFER, bomb, compression=algorithm)[0] == "RESOURCE_EXHAUSTED"


def test_large_messages_pass_and_larger_ones_do_not(plane: Plane) -> None:
    request = infer_request("sum", tensor("numeric", [[1, 2, 3]] * 320_000))
    with channel(plane) as made:
        key = [("authorization", "Bearer tap_test-key")]
        asking = made.unary_unary(f"/{INFER}")
        data = request.SerializeToString()
        waiting = [asking.future(data, metadata=key, timeout=30) for _ in range(6)]
        for future in waiting:
            answer = message(RESPONSE).FromString(future.result())
            assert outputs(answer)["prediction"] == [7.0] * 320_000
    request = infer_request("sum", tensor("numeric", [[1, 2, 3]] * 340_000))
    status, said = refused(plane, INFER, request)
    assert (status, "4000000 bytes" in said) == ("RESOURCE_EXHAUSTED", True)
    typed = infer_request("sum", tensor("numeric", [[1, 2, 3]] * 100_000), typed=True)
    assert infer(plane, typed) == {"prediction": [7.0] * 100_000}


def changed(**values: Any) -> Any:
    """A good request of one row, but for some of its input's fields."""
    request = sum_request()
    for name, value in values.items():
        if name == "shape":
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(value)
        elif name == "raw":
            del request.raw_input_contents[:]
            request.raw_input_contents.extend(value)
        elif name == "contents":
            request.inputs[0].contents.MergeFrom(message("inference.InferTensorContents")(**value))
        else:
            setattr(request.inputs[0], name, value)
    return request


@pytest.mark.parametrize(
    "request_",
    [
        changed(shape=[16, 2**60 + 2]),
        changed(shape=[4, 2**60 + 2]),
        changed(shape=[2**63 - 1, 2**63 - 1]),
        changed(shape=[-1, 3]),
        changed(shape=[1, -3]),
        changed(shape=[2, 3]),
        changed(shape=[1, 2]),
        changed(shape=[3]),
        changed(shape=[1] * 10_000),
        changed(shape=[0, 3], raw=[b""]),
        changed(shape=[]),
        changed(datatype="fp32"),
        changed(datatype="OBJECT"),
        changed(datatype=""),
        changed(datatype="FP64"),
        changed(datatype="FP16"),
        changed(name="other"),
        changed(raw=[]),
        changed(raw=[b"123"]),
        changed(raw=[bytes(12), bytes(12)]),
        changed(contents={"fp32_contents": [1, 2, 3]}),
        changed(raw=[], contents={"fp32_contents": [1, 2]}),
        changed(raw=[], contents={"fp32_contents": [1, 2, 3], "int_contents": [1]}),
        changed(raw=[], contents={"fp64_contents": [1, 2, 3]}),
        changed(raw=[], contents={"int_contents": [1, 2, 3]}),
        changed(raw=[], datatype="FP16", contents={"fp32_contents": [1, 2, 3]}),
        changed(raw=[], datatype="BF16", contents={"fp32_contents": [1, 2, 3]}),
        infer_request("sum"),
        infer_request("sum", *[tensor("numeric", [[1, 2, 3]])] * 2),
        infer_request("sum", tensor("numeric", [[1, 2, 3]]), tensor("more", [1])),
        infer_request("typed", tensor("i8", [300], "INT64"), typed=True),
        infer_request("words", ("x_BYTES", "BYTES", np.empty((1, 1), np.object_))),
        sum_request(outputs=[{"name": "other"}]),
        sum_request(outputs=[{"name": "prediction"}] * 2),
        sum_request(id="a\nb"),
        sum_request(id="x" * 2000),
        sum_request(parameters={"timeout": {"int64_param": 0}}),
        sum_request(parameters={"timeout": {"int64_param": -5}}),
        sum_request(parameters={"timeout": {"string_param": "5"}}),
    ],
)
def test_bad_calls_are_invalid(plane: Plane, request_: Any) -> None:
    if request_.model_name == "words":
        request_.raw_input_contents[0] = b"\xff\xff\xff\xffabc"
    assert refused(plane, INFER, request_)[0] == "INVALID_ARGUMENT"
    assert infer(plane, sum_request()) == {"prediction": [7.0]}


def test_narrow_integers_do_not_wrap(plane: Plane) -> None:
    for name, value in (("i8", 300), ("i8", -129)):
        request = message(REQUEST)(model_name="typed")
        request.inputs.add(
            name=name, datatype="INT8", shape=[1], contents={"int_contents": [value]}
        )
        request.inputs.add(
            name="i64", datatype="INT64", shape=[1, 2], contents={"int64_contents": [1, 2]}
        )
        request.inputs.add(
            name="flag", datatype="BOOL", shape=[1], contents={"bool_contents": [True]}
        )
        status, said = refused(plane, INFER, request)
        assert (status, "INT8 cannot hold" in said) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x0a\x05sum",
        sum_request().SerializeToString()[:-1],
        text(1, "sum") + delimited(1, b"\xff\xfe"),
        delimited(5, b"\xff"),
        b"\x0a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_what_is_no_message_is_an_internal_error(plane: Plane, data: bytes) -> None:
    status, said = refused(plane, INFER, data)
    assert (status, "protobuf" in said) == ("INTERNAL", True)


def test_unknown_names_are_not_found(plane: Plane) -> None:
    for name in ("none", "", "a\nb\x1b[31m", "../sum", "x" * 100_000, "theirs", "SUM"):
        status, said = refused(plane, INFER, sum_request(name=name))
        assert status == "NOT_FOUND"
        assert "\n" not in said
        assert "\x1b" not in said
    assert len(said) < 1000
    assert refused(plane, "inference.GRPCInferenceService/Other")[0] == "UNIMPLEMENTED"
    assert refused(plane, "other.Service/ModelInfer")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("before", range(4))
def test_a_long_message_of_a_status_ends_with_a_whole_character(before: int) -> None:
    """Some clients, tonic for one, cannot tell the status of what is no UTF-8."""
    error = TapsterError("invalid", "x" * before + "\U0001f600" * 1000)
    found = dict(Decoder(1 << 20).decode(refusal(error, b"id"))[0])
    said = unquote_to_bytes(found[b"grpc-message"])
    assert len(said) > MAX_MESSAGE - 4
    assert error.message.startswith(said.decode())


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_outputs_that_cannot_be_had_so_are_refused(plane: Plane, name: str) -> None:
    """The caller would look for its answer elsewhere, or take numbers for names of classes."""
    request = sum_request()
    given = request.outputs.add(name="prediction").parameters[name]
    if name == "classification":
        given.int64_param = 2
    else:
        given.string_param = "region"
    status, said = refused(plane, INFER, request)
    assert (status, f"{name} is not understood" in said) == ("INVALID_ARGUMENT", True)
