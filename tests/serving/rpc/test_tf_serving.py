"""TensorFlow Serving over gRPC: Predict in every datatype, signatures, states of versions."""

from typing import Any

import numpy as np
import pytest

from tapster.contract.inference import NUMPY_TYPE
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.tf_serving import MAX_FILLED, NUMBERS, TYPES
from tests.serving import packages
from tests.serving.conftest import Plane
from tests.serving.rpc.calling import ask, refused

PREDICT = "tensorflow.serving.PredictionService/Predict"
METADATA = "tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "tensorflow.serving.ModelService/GetModelStatus"


def proto(values: Any, datatype: str = "FP32", *, typed: bool = False) -> Any:
    """A TensorProto."""
    array = np.array(values, NUMPY_TYPE[datatype])  # type: ignore[index]
    number = NUMBERS[datatype]  # type: ignore[index]
    shape = {"dim": [{"size": size} for size in array.shape]}
    made = message("tensorflow.TensorProto")(dtype=number, tensor_shape=shape)
    if datatype == "BYTES":
        made.string_val.extend(value.encode() for value in array.ravel())
    elif not typed:
        made.tensor_content = array.tobytes()
    else:
        bits = array.view(np.uint16) if datatype in {"FP16", "BF16"} else array
        getattr(made, TYPES[number][1]).extend(bits.ravel().tolist())
    return made


def request(name: str, inputs: dict[str, Any], **more: Any) -> Any:
    """A PredictRequest."""
    spec = {"name": name, **more.pop("spec", {})}
    return message("tensorflow.serving.PredictRequest")(model_spec=spec, inputs=inputs, **more)


def predict(plane: Plane, asked: Any) -> Any:
    return ask(plane, PREDICT, "tensorflow.serving.PredictResponse", asked)


def values(tensor: Any) -> Any:
    """The array of a TensorProto whose values are in the field of their type."""
    datatype, field = TYPES[tensor.dtype]
    assert not tensor.tensor_content
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    found = list(getattr(tensor, field))
    if datatype == "BYTES":
        return np.array([value.decode() for value in found], np.object_).reshape(shape)
    if datatype in {"FP16", "BF16"}:
        return np.array(found, np.uint16).view(NUMPY_TYPE[datatype]).reshape(shape)
    return np.array(found, NUMPY_TYPE[datatype]).reshape(shape)


@pytest.mark.parametrize("typed", [False, True])
def test_every_datatype_comes_back_as_it_went(plane: Plane, typed: bool) -> None:
    given = {f"x_{name}": proto(v, name, typed=typed) for name, v in packages.EVERY.items()}
    answer = predict(plane, request("every", given))
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("every", 1)
    assert answer.model_spec.signature_name == "serving_default"
    assert set(answer.outputs) == {f"y_{name}" for name in packages.EVERY}
    for name, expected in packages.EVERY.items():
        found = values(answer.outputs[f"y_{name}"])
        assert np.array_equal(found, np.array(expected, NUMPY_TYPE[name])), name


def test_columns_filters_versions_and_labels(plane: Plane) -> None:
    columns = {
        "size": proto([0.5, 0.5]),
        "city": proto(["Turin", "Rome"], "BYTES"),
        "member": proto([True, False], "BOOL"),
        "since": proto(["1970-04-11", ""], "BYTES"),
        '<b>"quoted"\'; 😀': proto(["", ""], "BYTES"),
    }
    answer = predict(plane, request("mixed", columns, output_filter=["prediction", "prediction"]))
    assert list(answer.outputs) == ["prediction"]
    assert values(answer.outputs["prediction"]).tolist() == ["yes", "no"]
    one = {"numeric": proto([[1, 2, 3]])}
    for spec, expected in (
        ({"version": {"value": 1}}, 7.0),
        ({"version": {"value": 2}}, 8.0),
        ({"version_label": "champion"}, 7.0),
        ({"version": {"value": 2}, "signature_name": "serving_default"}, 8.0),
        ({"version": {"value": 2}, "signature_name": "predict"}, 8.0),
    ):
        answer = predict(plane, request("sum-two", one, spec=spec))
        assert values(answer.outputs["prediction"]).tolist() == [expected]


def test_the_last_value_stands_for_all_that_follow(plane: Plane) -> None:
    short = proto([[1, 2, 3]], typed=True)
    del short.float_val[:]
    short.float_val.extend([4, 1])
    answer = predict(plane, request("sum", {"numeric": short}))
    assert values(answer.outputs["prediction"]).tolist() == [7.0]


def test_a_short_message_stands_for_no_more_than_it_may(plane: Plane) -> None:
    """Of a few bytes each, many inputs, or one long text, were more than any machine holds."""
    many = proto([[0.0]], typed=True)
    many.tensor_shape.dim[0].size = MAX_FILLED // 4
    given = {f"x{number}": many for number in range(3)}
    status, said = refused(plane, PREDICT, request("sum", given))
    assert (status, "has 1 values" in said) == ("INVALID_ARGUMENT", True)
    text = proto([["x" * 2000]], "BYTES")
    text.tensor_shape.dim[0].size = 1000
    status, said = refused(plane, PREDICT, request("words", {"x_BYTES": text}))
    assert (status, "has 1 values" in said) == ("INVALID_ARGUMENT", True)
    text.tensor_shape.dim[0].size = 100
    answer = predict(plane, request("words", {"x_BYTES": text}))
    assert values(answer.outputs["y_BYTES"]).tolist() == [["x" * 2000]] * 100


def changed(**fields: Any) -> Any:
    tensor = proto([[1, 2, 3]], typed=True)
    for name, value in fields.items():
        if name == "shape":
            tensor.tensor_shape.CopyFrom(
                message("tensorflow.TensorShapeProto")(dim=[{"size": size} for size in value])
            )
        elif name == "unknown_rank":
            tensor.tensor_shape.unknown_rank = True
        elif name == "dtype":
            tensor.dtype = value
        else:
            tensor.ClearField("float_val")
            tensor.MergeFrom(message("tensorflow.TensorProto")(**{name: value}))
    return request("sum", {"numeric": tensor})


ONE = {"numeric": proto([[1, 2, 3]])}


@pytest.mark.parametrize(
    "asked",
    [
        changed(shape=[1, 2**62]),
        changed(shape=[2**40, 2**40]),
        changed(shape=[30_000_000, 3]),
        changed(shape=[-1, 3]),
        changed(shape=[2]),
        changed(shape=[1] * 9),
        changed(shape=[0, 3]),
        changed(unknown_rank=True),
        changed(dtype="DT_DOUBLE"),
        changed(dtype="DT_COMPLEX64"),
        changed(dtype="DT_INVALID"),
        changed(dtype="DT_STRING"),
        changed(float_val=[]),
        changed(float_val=[1, 2, 3, 4]),
        changed(tensor_content=b"123"),
        changed(tensor_content=bytes(16)),
        changed(int_val=[1, 2, 3]),
        request("sum", {}),
        request("sum", {"other": proto([[1, 2, 3]])}),
        request("sum", {**ONE, "more": proto([1])}),
        request("sum", ONE, output_filter=["other"]),
        request("sum", ONE, spec={"signature_name": "other"}),
        request("sum", ONE, spec={"version_label": ""}),
        request("words", {"x_BYTES": proto([["a"]], "BYTES")}, output_filter=["no"]),
    ],
)
def test_bad_calls_are_invalid(plane: Plane, asked: Any) -> None:
    assert refused(plane, PREDICT, asked)[0] == "INVALID_ARGUMENT"


def test_values_out_of_range_do_not_wrap(plane: Plane) -> None:
    for datatype, value in (("INT8", 300), ("UINT8", -1), ("INT16", 40_000), ("UINT16", -1)):
        given = {f"x_{name}": proto(v, name, typed=True) for name, v in packages.EVERY.items()}
        given[f"x_{datatype}"].int_val[0] = value
        status, said = refused(plane, PREDICT, request("every", given))
        assert (status, f"{datatype} cannot hold" in said) == ("INVALID_ARGUMENT", True)
    given["x_UINT16"].int_val[0] = 0
    given["x_FP16"].half_val[0] = 70_000
    assert refused(plane, PREDICT, request("every", given))[0] == "INVALID_ARGUMENT"
    odd = proto([["a"]], "BYTES")
    odd.string_val[0] = b"\xff"
    assert refused(plane, PREDICT, request("words", {"x_BYTES": odd}))[0] == "INVALID_ARGUMENT"


def test_unknown_models_versions_and_labels_are_not_found(plane: Plane) -> None:
    for spec in (
        {"version": {"value": 9}},
        {"version_label": "none"},
        {"name": "none"},
        {"name": ""},
    ):
        assert refused(plane, PREDICT, request("sum", ONE, spec=spec))[0] == "NOT_FOUND"
    for method, kind in ((METADATA, "GetModelMetadata"), (STATUS, "GetModelStatus")):
        asked = message(f"tensorflow.serving.{kind}Request")(model_spec={"name": "theirs"})
        if method == METADATA:
            asked.metadata_field.append("signature_def")
        assert refused(plane, method, asked)[0] == "NOT_FOUND"


def test_metadata_holds_the_signatures(plane: Plane) -> None:
    asked = message("tensorflow.serving.GetModelMetadataRequest")(
        model_spec={"name": "mixed"}, metadata_field=["signature_def"]
    )
    answer = ask(plane, METADATA, "tensorflow.serving.GetModelMetadataResponse", asked)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("mixed", 3)
    wrapped = answer.metadata["signature_def"]
    assert wrapped.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    found = message("tensorflow.serving.SignatureDefMap").FromString(wrapped.value).signature_def
    default = found["serving_default"]
    assert default.method_name == "tensorflow/serving/predict"
    numeric, text = default.inputs["numeric"], default.inputs["text"]
    assert (TYPES[numeric.dtype][0], TYPES[text.dtype][0]) == ("FP32", "BYTES")
    assert [dimension.size for dimension in numeric.tensor_shape.dim] == [-1, 3]
    assert set(default.outputs) == {"prediction", "probabilities"}
    for field in ([], ["other"], ["signature_def", "other"]):
        del asked.metadata_field[:]
        asked.metadata_field.extend(field)
        assert refused(plane, METADATA, asked)[0] == "INVALID_ARGUMENT"


def test_the_state_of_versions(plane: Plane) -> None:
    kind = message("tensorflow.serving.GetModelStatusRequest")
    for spec, versions in (
        ({}, [1, 2]),
        ({"version": {"value": 2}}, [2]),
        ({"version_label": "champion"}, [1]),
    ):
        asked = kind(model_spec={"name": "sum-two", **spec})
        answer = ask(plane, STATUS, "tensorflow.serving.GetModelStatusResponse", asked)
        states = answer.model_version_status
        assert [state.version for state in states] == versions
        assert {(state.state, state.status.error_code) for state in states} == {(30, 0)}
    asked = kind(model_spec={"name": "sum-two", "version": {"value": 9}})
    assert refused(plane, STATUS, asked)[0] == "NOT_FOUND"
