"""A TensorFlow Serving client of others, and its stubs, with one case from stdin."""

import json
import sys
from typing import Any

import grpc
import numpy as np
from min_tfs_client.requests import TensorServingClient  # type: ignore[import-not-found]
from min_tfs_client.tensors import tensor_proto_to_ndarray  # type: ignore[import-not-found]
from tensorflow_serving.apis import (  # type: ignore[import-not-found]
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

Case = dict[str, Any]
CASE: Case = json.load(sys.stdin)
METADATA = (("authorization", f"Bearer {CASE['key']}"),)
ROWS = np.array(CASE["rows"], np.float32)
STATES = get_model_status_pb2.ModelVersionStatus.State


class WithKey(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """The client has no place for a key; a channel may add it."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with the key."""
        keyed = details._replace(metadata=[*(details.metadata or ()), *METADATA])
        return continuation(keyed, request)


def arrays(response: Any) -> dict[str, Any]:
    """An answer's outputs by name."""
    return {
        name: [x.decode() if isinstance(x, bytes) else x for x in flat]
        if (flat := tensor_proto_to_ndarray(proto).tolist()) and isinstance(flat[0], bytes)
        else flat
        for name, proto in response.outputs.items()
    }


def refusal(ask: Any) -> list[str]:
    """Status and message of what must be refused."""
    try:
        ask()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["", "it was not refused"]


def status(channel: Any, name: str) -> list[dict[str, Any]]:
    """The versions of a model, from the service for models."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    return [
        {"version": one.version, "state": STATES.Name(one.state), "error": one.status.error_code}
        for one in response.model_version_status
    ]


def signature(channel: Any) -> dict[str, Any]:
    """Inputs and outputs by name, from the metadata."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = CASE["model"]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.GetModelMetadata(request)
    described = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(described)
    return {
        name: {
            "method": one.method_name,
            "inputs": {key: [d.size for d in x.tensor_shape.dim] for key, x in one.inputs.items()},
            "outputs": sorted(one.outputs),
        }
        for name, one in described.signature_def.items()
    }


def main() -> None:
    """Everything, as one document."""
    host, port = CASE["grpc"].split(":")
    bare = TensorServingClient(host, int(port))
    keyless = refusal(lambda: bare.predict_request(CASE["model"], {CASE["input"]: ROWS}))
    client = TensorServingClient(host, int(port))
    channel = client._channel = grpc.intercept_channel(client._channel, WithKey())
    model, rows = CASE["model"], {CASE["input"]: ROWS}
    found = {
        "scores": {
            "Predict": arrays(client.predict_request(model, rows)),
            "Predict, version": arrays(client.predict_request(model, rows, model_version=1)),
        },
        "status": status(channel, model),
        "signature": signature(channel),
        "refused": {
            "key": keyless,
            "ghost": refusal(lambda: client.predict_request("ghost", rows)),
            "version": refusal(lambda: client.predict_request(model, rows, model_version=99)),
            "shape": refusal(lambda: client.predict_request(model, {CASE["input"]: ROWS[:, :2]})),
            "status": refusal(lambda: status(channel, "ghost")),
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
