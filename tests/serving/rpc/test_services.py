"""Every other method: health, metadata, statistics, the repository, reflection; who may call."""

import json
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from tapster.serving.rpc.messages import message, pool
from tapster.serving.rpc.services import all_methods
from tests.serving import packages
from tests.serving.conftest import KEY, LIMIT, Plane, endpoint, grant, wait_for
from tests.serving.rpc.calling import (
    INFER,
    OPEN,
    ask,
    call,
    channel,
    infer,
    metadata,
    refused,
    sum_request,
)

HEALTH = "grpc.health.v1.Health"
PUBLIC = {f"{OPEN}/ServerLive", f"{OPEN}/ServerReady", f"{HEALTH}/Check", f"{HEALTH}/Watch"}
MANAGING = {f"{OPEN}/RepositoryModelLoad", f"{OPEN}/RepositoryModelUnload"}
METHODS = sorted(path.decode()[1:] for path in all_methods())


def test_the_methods_are_those_of_the_services() -> None:
    served = {method.rpartition("/")[0] for method in METHODS}
    declared = {
        f"{name}/{method}"
        for name in served
        for method in pool().FindServiceByName(name).methods_by_name
    }
    assert set(METHODS) == declared
    assert len(METHODS) == 19


@pytest.mark.parametrize("method", [*METHODS, f"{OPEN}/Other", "other.Service/Method"])
def test_every_method_asks_for_a_key_but_those_that_say_whether_the_server_is_there(
    plane: Plane, method: str
) -> None:
    bad = [None, "", "nothing", "expired", "' OR 1=1--", "x" * 20_000, "TAP_TEST-KEY"]
    answers = {refusal(plane, method, key) for key in bad}
    if method in PUBLIC:
        assert "UNAUTHENTICATED" not in {code for code, _ in answers}
        return
    assert {code for code, _ in answers} == {"UNAUTHENTICATED"}
    assert len(answers) == 1
    if method.endswith(("Other", "Method")):
        assert refusal(plane, method, "watcher")[0] == "UNIMPLEMENTED"
        return
    for key in ("reader", "watcher"):
        assert refusal(plane, method, key)[0] == "PERMISSION_DENIED"
    allowed = "PERMISSION_DENIED" if method in MANAGING else ""
    assert (refusal(plane, method, "caller")[0] == "PERMISSION_DENIED") == bool(allowed)


def refusal(plane: Plane, method: str, key: str | None) -> tuple[str, str]:
    """Status and message of a call with an empty message, that may have many answers."""
    with channel(plane) as made:
        asking = made.stream_stream(f"/{method}")
        answers = asking(iter([b""]), metadata=metadata(key), timeout=LIMIT)
        try:
            next(answers, None)
            answers.cancel()
        except grpc.RpcError:
            return answers.code().name, answers.details()
        return "OK", ""


def test_two_keys_are_none(plane: Plane) -> None:
    with channel(plane) as made:
        asking = made.unary_unary(f"/{INFER}")
        with pytest.raises(grpc.RpcError) as caught:
            asking(b"", metadata=[*metadata(KEY), *metadata("nothing")], timeout=LIMIT)
        assert caught.value.code() is not grpc.StatusCode.OK


def test_a_tenant_sees_only_its_own(plane: Plane) -> None:
    index = message("inference.RepositoryIndexResponse")
    found = index.FromString(call(plane, f"{OPEN}/RepositoryIndex", key="theirs").answer)
    assert [model.name for model in found.models] == ["theirs"]
    assert infer(plane, sum_request(name="theirs"), key="theirs") == {"prediction": [8.0]}
    for name in ("sum", "mixed"):
        ours = refused(plane, INFER, sum_request(name=name), key="theirs")
        none = refused(plane, INFER, sum_request(name="none"), key="theirs")
        assert ours == (none[0], none[1].replace("none", name))
    ready = message("inference.ModelReadyRequest")(name="sum")
    answer = call(plane, f"{OPEN}/ModelReady", ready, key="theirs").answer
    assert not message("inference.ModelReadyResponse").FromString(answer).ready


def test_the_server_says_what_it_is(plane: Plane) -> None:
    live = ask(plane, f"{OPEN}/ServerLive", "inference.ServerLiveResponse", key=None)
    ready = ask(plane, f"{OPEN}/ServerReady", "inference.ServerReadyResponse", key=None)
    assert (live.live, ready.ready) == (True, True)
    said = ask(plane, f"{OPEN}/ServerMetadata", "inference.ServerMetadataResponse")
    assert said.name == "tapster"
    assert set(said.extensions) > {"binary_tensor_data", "statistics", "model_configuration"}


def test_models_are_described(plane: Plane) -> None:
    asked = message("inference.ModelMetadataRequest")(name="mixed")
    said = ask(plane, f"{OPEN}/ModelMetadata", "inference.ModelMetadataResponse", asked)
    assert (said.name, list(said.versions), said.platform) == ("mixed", ["3"], "onnx_onnxv1")
    assert [(one.name, one.datatype, list(one.shape)) for one in said.inputs] == [
        ("numeric", "FP32", [-1, 3]),
        ("text", "BYTES", [-1, 2]),
    ]
    columns = json.loads(said.parameters["columns"].string_param)
    assert [column["name"] for column in columns][:2] == ["size", "city"]
    assert json.loads(said.parameters["classes"].string_param) == ["no", "yes"]
    asked = message("inference.ModelConfigRequest")(name="mixed")
    config = ask(plane, f"{OPEN}/ModelConfig", "inference.ModelConfigResponse", asked).config
    assert (config.name, config.backend, config.max_batch_size) == ("mixed", "onnx", 1024)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("numeric", 11, [3]),
        ("text", 13, [2]),
    ]
    for method, kind in (("ModelMetadata", "ModelMetadata"), ("ModelConfig", "ModelConfig")):
        for wrong in ({"name": "none"}, {"name": "mixed", "version": "9"}):
            asked = message(f"inference.{kind}Request")(**wrong)
            assert refused(plane, f"{OPEN}/{method}", asked)[0] == "NOT_FOUND"


def test_a_model_that_is_not_there_is_not_ready(plane: Plane) -> None:
    for name, version, ready in (
        ("sum", "", True),
        ("sum", "1", True),
        ("sum", "2", False),
        ("none", "", False),
    ):
        asked = message("inference.ModelReadyRequest")(name=name, version=version)
        said = ask(plane, f"{OPEN}/ModelReady", "inference.ModelReadyResponse", asked)
        assert said.ready is ready


def test_calls_are_counted_as_those_over_http(plane: Plane) -> None:
    def counted() -> tuple[int, int, int]:
        asked = message("inference.ModelStatisticsRequest")(name="sum-two", version="2")
        said = ask(plane, f"{OPEN}/ModelStatistics", "inference.ModelStatisticsResponse", asked)
        (stats,) = said.model_stats
        assert (stats.name, stats.version) == ("sum-two", "2")
        over_http = plane.call("GET", "/v2/models/sum-two/versions/2/stats").json()
        assert over_http["model_stats"][0]["inference_count"] == stats.inference_count
        inference = stats.inference_stats
        assert inference.queue.count == inference.compute_infer.count == inference.success.count
        return stats.inference_count, inference.success.count, inference.fail.count

    rows, good, bad = counted()
    request = sum_request(name="sum-two", model_version="2")
    for _ in range(3):
        infer(plane, request)
    body = {"inputs": [{"name": "numeric", "shape": [2, 3], "datatype": "FP32", "data": [1] * 6}]}
    assert plane.call("POST", "/v2/models/sum-two/versions/2/infer", body).status == 200
    request.inputs[0].name = "wrong"
    assert refused(plane, INFER, request)[0] == "INVALID_ARGUMENT"
    assert counted() == (rows + 5, good + 4, bad + 1)
    asked = message("inference.ModelStatisticsRequest")()
    said = ask(plane, f"{OPEN}/ModelStatistics", "inference.ModelStatisticsResponse", asked)
    assert {"sum", "mixed", "sum-two"} <= {stats.name for stats in said.model_stats}
    assert "theirs" not in {stats.name for stats in said.model_stats}


def test_the_repository_lists_loads_and_unloads(plane: Plane) -> None:
    said = ask(plane, f"{OPEN}/RepositoryIndex", "inference.RepositoryIndexResponse")
    listed = {(model.name, model.version, model.state) for model in said.models}
    assert {("sum", "1", "READY"), ("sum-two", "1", "READY"), ("sum-two", "2", "READY")} <= listed
    for verb in ("Unload", "Load", "Unload"):
        request = message(f"inference.RepositoryModel{verb}Request")
        answer = f"inference.RepositoryModel{verb}Response"
        for named in ({"model_name": "sum"}, {"repository_name": "sum"}):
            said = ask(plane, f"{OPEN}/RepositoryModel{verb}", answer, request(**named))
            assert said.model_name == "sum"
        assert infer(plane, sum_request()) == {"prediction": [7.0]}
        method = f"{OPEN}/RepositoryModel{verb}"
        assert refused(plane, method, request(model_name="none"))[0] == "NOT_FOUND"
        changed = request(model_name="sum", parameters={"config": {"string_param": "{}"}})
        assert refused(plane, method, changed)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("service", ["", OPEN, HEALTH, "tensorflow.serving.PredictionService"])
def test_health_is_told(plane: Plane, service: str) -> None:
    asked = message("grpc.health.v1.HealthCheckRequest")(service=service)
    said = ask(plane, f"{HEALTH}/Check", "grpc.health.v1.HealthCheckResponse", asked, key=None)
    assert said.status == 1


def test_messages_without_tensors_are_short(plane: Plane) -> None:
    long = b"\x7a\x00" * 20_000  # a field that nobody knows
    code, message = refused(plane, f"{HEALTH}/Check", long, key=None)
    assert (code, "larger than 32768 bytes" in message) == ("RESOURCE_EXHAUSTED", True)
    code, _ = refused(plane, f"{OPEN}/ModelMetadata", long)
    assert code == "RESOURCE_EXHAUSTED"


def test_health_is_watched(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    plane.start()
    status = message("grpc.health.v1.HealthCheckResponse")
    check = f"{HEALTH}/Check"
    assert status.FromString(call(plane, check, key=None).answer).status == 2
    with channel(plane) as made:
        watching = made.unary_stream(f"/{HEALTH}/Watch")
        watched = watching(b"", timeout=LIMIT)
        asked = message("grpc.health.v1.HealthCheckRequest")(service="other")
        other = watching(asked.SerializeToString(), timeout=LIMIT)
        assert status.FromString(next(watched)).status == 2
        assert status.FromString(next(other)).status == 3
        one = packages.regressor(plane.home, 1.0)
        plane.plan(endpoint("sum", one), packages=(one,), keys=(grant(KEY),))
        assert status.FromString(next(watched)).status == 1
        assert status.FromString(call(plane, check, key=None).answer).status == 1
        plane.workers[0].terminate()
        assert status.FromString(next(watched)).status == 2
        with pytest.raises(grpc.RpcError):
            next(watched)
        assert watched.code() is grpc.StatusCode.UNAVAILABLE
    wait_for(lambda: plane.workers[0].poll() is not None, "the worker to end")
    assert plane.workers[0].returncode == 0


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_what_there_is_can_be_found_out(plane: Plane, version: str) -> None:
    name = f"grpc.reflection.{version}.ServerReflection"
    request = message(f"grpc.reflection.{version}.ServerReflectionRequest")
    response = message(f"grpc.reflection.{version}.ServerReflectionResponse")
    asked = [
        request(host="h", list_services="*"),
        request(file_containing_symbol=OPEN),
        request(file_containing_symbol="tensorflow.serving.PredictRequest"),
        request(file_by_filename="health.proto"),
        request(file_by_filename="none.proto"),
        request(file_containing_symbol="none"),
        request(file_containing_extension={"containing_type": "x", "extension_number": 1}),
        request(all_extension_numbers_of_type=OPEN),
        request(),
    ]
    with channel(plane) as made:
        asking = made.stream_stream(f"/{name}/ServerReflectionInfo")
        messages = iter([one.SerializeToString() for one in asked])
        answers = [
            response.FromString(answer)
            for answer in asking(messages, metadata=metadata(KEY), timeout=LIMIT)
        ]
    assert [answer.original_request for answer in answers] == asked
    listed = {service.name for service in answers[0].list_services_response.service}
    assert listed == {method.rpartition("/")[0] for method in METHODS}
    assert [answer.error_response.error_code for answer in answers[4:7]] == [5, 5, 5]
    known = DescriptorPool()
    for answer in answers[1:4]:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            known.Add(FileDescriptorProto.FromString(data))
    infer_method = known.FindServiceByName(OPEN).methods_by_name["ModelInfer"]
    assert infer_method.input_type.fields_by_name["raw_input_contents"].number == 7
    assert known.FindMessageTypeByName("tensorflow.serving.PredictRequest")


def test_metrics_count_grpc_connections_and_refusals(plane: Plane) -> None:
    def sample(name: str) -> float:
        page = plane.call("GET", "/metrics").body.decode()
        return float(next(row for row in page.splitlines() if row.startswith(name)).split()[1])

    before = sample("tapster_refused_requests_total")
    for _ in range(3):
        assert refused(plane, INFER, sum_request(), key="nothing")[0] == "UNAUTHENTICATED"
    assert sample("tapster_refused_requests_total") == before + 3
    with channel(plane) as made:
        assert infer(plane, sum_request(), made=made) == {"prediction": [7.0]}
        wait_for(lambda: sample("tapster_connections{") >= 1, "the connection to be counted")
