"""Triton's gRPC client, in both its forms, with one case from stdin; prints what came back."""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as sync_grpc  # type: ignore[import-not-found]
import tritonclient.grpc.aio as async_grpc  # type: ignore[import-not-found]
from tritonclient.utils import (  # type: ignore[import-not-found]
    InferenceServerException,
    triton_to_np_dtype,
)

Case = dict[str, Any]
CASE: Case = json.load(sys.stdin)
HEADERS = {"authorization": f"Bearer {CASE['key']}"}
ROWS = np.array(CASE["rows"], np.float32)
LIMIT = 30.0
STREAMED = 50


def tensor(name: str, datatype: str, array: Any) -> Any:
    """An input as the client's documents make it."""
    made = sync_grpc.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def rows() -> list[Any]:
    """All rows of the case."""
    return [tensor(CASE["input"], "FP32", ROWS)]


def plain(array: Any) -> Any:
    """An answer's array as JSON holds it."""
    if array.dtype == np.object_:
        flat = [x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel()]
        return np.array(flat, np.object_).reshape(array.shape).tolist()
    return array.tolist()


def arrays(result: Any) -> dict[str, Any]:
    """An answer's outputs by name."""
    names = [output.name for output in result.get_response().outputs]
    return {name: plain(result.as_numpy(name)) for name in names}


def refusal(ask: Any) -> list[str]:
    """Status and message of what must be refused."""
    try:
        ask()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", "it was not refused"]


def infer(client: Any, **more: Any) -> dict[str, Any]:
    """The answer to all rows."""
    return arrays(client.infer(CASE["model"], rows(), headers=HEADERS, **more))


def described(client: Any) -> dict[str, Any]:
    """What the server says of itself and of the model."""
    model = CASE["model"]
    known = {"headers": HEADERS, "as_json": True}
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model, headers=HEADERS),
        "version ready": client.is_model_ready(model, "1", headers=HEADERS),
        "server": client.get_server_metadata(**known),
        "model": client.get_model_metadata(model, **known),
        "config": client.get_model_config(model, **known),
        "statistics": client.get_inference_statistics(model, **known),
        "index": client.get_model_repository_index(**known),
    }


def scored(client: Any) -> dict[str, Any]:
    """The same rows asked in every way there is."""
    called: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        CASE["model"], rows(), lambda result, error: called.put(error or result), headers=HEADERS
    )
    return {
        "call": infer(client),
        "gzip": infer(client, compression_algorithm="gzip"),
        "deflate": infer(client, compression_algorithm="deflate"),
        "version": infer(client, model_version="1"),
        "deadline": infer(client, client_timeout=LIMIT),
        "timeout": infer(client, timeout=20_000_000),
        "callback": arrays(called.get(timeout=LIMIT)),
    }


def streamed() -> list[dict[str, Any]]:
    """Many requests over one stream; the last is wrong and must not end it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with sync_grpc.InferenceServerClient(CASE["grpc"]) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=HEADERS)
        for number in range(STREAMED):
            client.async_stream_infer(CASE["model"], rows(), request_id=str(number))
        client.async_stream_infer("ghost", rows(), request_id="ghost")
        client.async_stream_infer(CASE["model"], rows(), request_id="after")
        found = [answers.get(timeout=LIMIT) for _ in range(STREAMED + 2)]
        client.stop_stream()
    return [
        {"error": error.message()}
        if error is not None
        else {"id": result.get_response().id, "scores": arrays(result)}
        for result, error in found
    ]


def selected(client: Any) -> dict[str, Any]:
    """Chosen outputs and an id of the caller's own."""
    outputs = [sync_grpc.InferRequestedOutput("probabilities")]
    response = client.infer(
        CASE["model"], rows(), outputs=outputs, request_id="42", headers=HEADERS
    ).get_response()
    names = [output.name for output in response.outputs]
    return {"id": response.id, "outputs": names, "model": response.model_name}


def refused(client: Any) -> dict[str, list[str]]:
    """What must be refused, and how it was."""
    model = CASE["model"]
    bad = [tensor(CASE["input"], "FP32", ROWS[:, :2])]
    stranger = {"authorization": "Bearer tap_nobody"}
    ghost = [sync_grpc.InferRequestedOutput("ghost")]
    return {
        "ghost": refusal(lambda: client.infer("ghost", rows(), headers=HEADERS)),
        "shape": refusal(lambda: client.infer(model, bad, headers=HEADERS)),
        "key": refusal(lambda: client.infer(model, rows(), headers=stranger)),
        "version": refusal(lambda: client.infer(model, rows(), "99", headers=HEADERS)),
        "output": refusal(lambda: client.infer(model, rows(), outputs=ghost, headers=HEADERS)),
    }


def typed(client: Any) -> dict[str, Any]:
    """Every datatype there and back."""
    given = [
        tensor(datatype.lower(), datatype, np.array(values, triton_to_np_dtype(datatype)))
        for datatype, values in CASE["values"].items()
    ]
    return arrays(client.infer(CASE["typed"], given, headers=HEADERS))


async def asynchronous() -> dict[str, Any]:
    """The asyncio form: calls at once, and a stream."""
    model = CASE["model"]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(STREAMED):
            yield {"model_name": model, "inputs": rows(), "request_id": str(number)}

    async with async_grpc.InferenceServerClient(CASE["grpc"]) as client:
        ready = await client.is_model_ready(model, headers=HEADERS)
        many = [client.infer(model, rows(), headers=HEADERS) for _ in range(40)]
        scores = {
            f"asyncio {number}": arrays(result)
            for number, result in enumerate(await asyncio.gather(*many))
        }
        stream = client.stream_infer(requests(), headers=HEADERS)
        async for result, error in stream:
            name = f"asyncio, stream {len(scores)}"
            scores[name] = {"error": error.message()} if error else arrays(result)
    return {"ready": ready, "scores": scores}


def main() -> None:
    """Everything, as one document."""
    with sync_grpc.InferenceServerClient(CASE["grpc"]) as client:
        found: dict[str, Any] = {
            "described": described(client),
            "scores": scored(client),
            "selected": selected(client),
            "refused": refused(client),
            "typed": typed(client),
        }
    found["stream"] = streamed()
    found["asyncio"] = asyncio.run(asynchronous())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
