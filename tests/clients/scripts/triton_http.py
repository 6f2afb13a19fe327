"""Triton's HTTP client, in both its forms, with one case from stdin; prints what came back."""

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as sync_http  # type: ignore[import-not-found]
import tritonclient.http.aio as async_http  # type: ignore[import-not-found]
from tritonclient.utils import (  # type: ignore[import-not-found]
    InferenceServerException,
    triton_to_np_dtype,
)

Case = dict[str, Any]
CASE: Case = json.load(sys.stdin)
ROWS = np.array(CASE["rows"], np.float32)


def key() -> dict[str, str]:
    """The headers of one call: the client writes its own into what it is given."""
    return {"Authorization": f"Bearer {CASE['key']}"}


def tensor(name: str, datatype: str, array: Any, *, binary: bool) -> Any:
    """An input as the client's documents make it."""
    made = sync_http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def rows(*, binary: bool = True) -> list[Any]:
    """All rows of the case."""
    return [tensor(CASE["input"], "FP32", ROWS, binary=binary)]


def wanted(*names: str, binary: bool = True) -> list[Any]:
    """Outputs to ask for."""
    return [sync_http.InferRequestedOutput(name, binary_data=binary) for name in names]


def plain(array: Any) -> Any:
    """An answer's array as JSON holds it."""
    if array.dtype == np.object_:
        flat = [x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel()]
        return np.array(flat, np.object_).reshape(array.shape).tolist()
    return array.tolist()


def arrays(result: Any) -> dict[str, Any]:
    """An answer's outputs by name."""
    names = [output["name"] for output in result.get_response()["outputs"]]
    return {name: plain(result.as_numpy(name)) for name in names}


def typed(*, binary: bool) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of the model that gives every datatype back."""
    given = []
    for datatype, values in CASE["values"].items():
        array = np.array(values, triton_to_np_dtype(datatype))
        given.append(tensor(datatype.lower(), datatype, array, binary=binary))
    return given, wanted(*(f"{one.name()}_out" for one in given), binary=binary)


def refusal(ask: Any) -> list[str]:
    """Status and message of what must be refused."""
    try:
        ask()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", "it was not refused"]


def infer(client: Any, **more: Any) -> dict[str, Any]:
    """The answer to all rows."""
    return arrays(client.infer(CASE["model"], more.pop("inputs", rows()), headers=key(), **more))


def described(client: Any) -> dict[str, Any]:
    """What the server says of itself and of the model."""
    model = CASE["model"]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model, headers=key()),
        "version ready": client.is_model_ready(model, "1", headers=key()),
        "ghost ready": client.is_model_ready("ghost", headers=key()),
        "server": client.get_server_metadata(headers=key()),
        "model": client.get_model_metadata(model, headers=key()),
        "index": client.get_model_repository_index(headers=key()),
    }


def scored(client: Any) -> dict[str, Any]:
    """The same rows asked in every way there is."""
    json_only = wanted("prediction", "probabilities", binary=False)
    later = client.async_infer(CASE["model"], rows(), headers=key())
    return {
        "binary": infer(client),
        "JSON": infer(client, inputs=rows(binary=False), outputs=json_only),
        "binary in, JSON out": infer(client, outputs=json_only),
        "JSON in, binary out": infer(client, inputs=rows(binary=False)),
        "gzip": infer(client, request_compression_algorithm="gzip"),
        "deflate": infer(client, request_compression_algorithm="deflate"),
        "gzip back": infer(client, response_compression_algorithm="gzip"),
        "deflate back": infer(client, response_compression_algorithm="deflate"),
        "version": infer(client, model_version="1"),
        "timeout": infer(client, timeout=20_000_000),
        "greenlet": arrays(later.get_result()),
    }


def selected(client: Any) -> dict[str, Any]:
    """Chosen outputs and an id of the caller's own."""
    result = client.infer(
        CASE["model"], rows(), outputs=wanted("probabilities"), request_id="42", headers=key()
    )
    response = result.get_response()
    names = [output["name"] for output in response["outputs"]]
    return {"id": response["id"], "outputs": names, "model": response["model_name"]}


def refused(client: Any) -> dict[str, list[str]]:
    """What must be refused, and how it was."""
    bad = [tensor(CASE["input"], "FP32", ROWS[:, :2], binary=True)]
    model = CASE["model"]
    return {
        "ghost": refusal(lambda: client.infer("ghost", rows(), headers=key())),
        "shape": refusal(lambda: client.infer(model, bad, headers=key())),
        "key": refusal(
            lambda: client.infer(model, rows(), headers={"Authorization": "Bearer tap_nobody"})
        ),
        "version": refusal(lambda: client.infer(model, rows(), "99", headers=key())),
        "output": refusal(
            lambda: client.infer(model, rows(), outputs=wanted("ghost"), headers=key())
        ),
    }


async def asynchronous() -> dict[str, Any]:
    """The asyncio form: one after another, and many at once."""
    model = CASE["model"]
    async with async_http.InferenceServerClient(CASE["http"]) as client:
        ready = await client.is_model_ready(model, headers=key())
        outputs = wanted("prediction", "probabilities", binary=False)
        asked = {
            "asyncio, binary": client.infer(model, rows(), headers=key()),
            "asyncio, JSON": client.infer(
                model, rows(binary=False), outputs=outputs, headers=key()
            ),
            "asyncio, gzip": client.infer(
                model, rows(), request_compression_algorithm="gzip", headers=key()
            ),
            "asyncio, gzip back": client.infer(
                model, rows(), response_compression_algorithm="gzip", headers=key()
            ),
        }
        scores = {name: arrays(await call) for name, call in asked.items()}
        many = [client.infer(model, rows(), headers=key()) for _ in range(40)]
        scores |= {
            f"asyncio, at once {number}": arrays(result)
            for number, result in enumerate(await asyncio.gather(*many))
        }
    return {"ready": ready, "scores": scores}


def main() -> None:
    """Everything, as one document."""
    with sync_http.InferenceServerClient(CASE["http"], concurrency=2) as client:
        found = {"described": described(client), "scores": scored(client)}
        found |= {"selected": selected(client), "refused": refused(client), "typed": {}}
        for binary in (True, False):
            given, outputs = typed(binary=binary)
            back = infer_typed(client, given, outputs)
            found["typed"]["binary" if binary else "JSON"] = back
    found["asyncio"] = asyncio.run(asynchronous())
    print(json.dumps(found))


def infer_typed(client: Any, given: list[Any], outputs: list[Any]) -> dict[str, Any]:
    """Every datatype there and back."""
    return arrays(client.infer(CASE["typed"], given, outputs=outputs, headers=key()))


if __name__ == "__main__":
    main()
