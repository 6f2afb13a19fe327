"""KServe's clients, REST in both protocols and gRPC, with one case from stdin.

They parse the command line when they are imported, so everything comes through stdin.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import (  # type: ignore[import-not-found]
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)

Case = dict[str, Any]
CASE: Case = json.load(sys.stdin)
BEARER = f"Bearer {CASE['key']}"
HEADERS = {"authorization": BEARER}
METADATA = [("authorization", BEARER)]
STRANGER = "Bearer tap_nobody"
URL = f"http://{CASE['http']}"
ROWS = np.array(CASE["rows"], np.float32)


def request(*, binary: bool, model: str = "") -> Any:
    """All rows as a request of the client's own."""
    tensor = InferInput(CASE["input"], list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return InferRequest(model or CASE["model"], [tensor], request_id="42")


def arrays(response: Any) -> dict[str, Any]:
    """An answer's outputs by name."""
    return {
        output.name: [x.decode() if isinstance(x, bytes) else x for x in output.as_numpy().tolist()]
        for output in response.outputs
    }


async def rest_refusal(call: Awaitable[Any]) -> list[str]:
    """Status and message of what must be refused."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return [str(error.response.status_code), str(error)]
    return ["", "it was not refused"]


async def rpc_refusal(call: Awaitable[Any]) -> list[str]:
    """The same over gRPC."""
    try:
        await call
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["", "it was not refused"]


async def second_protocol() -> dict[str, Any]:
    """REST in protocol v2."""
    model = CASE["model"]
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:

        def infer(data: Any, name: str = model, bearer: str = BEARER) -> Any:
            return client.infer(URL, data, name, {"authorization": bearer})

        return {
            "live": await client.is_server_live(URL),
            "ready": await client.is_server_ready(URL),
            "model ready": await client.is_model_ready(URL, model, HEADERS),
            "scores": {
                "v2, JSON": arrays(await infer(request(binary=False))),
                "v2, binary": arrays(await infer(request(binary=True))),
            },
            "id": (await infer(request(binary=False))).id,
            "refused": {
                "ghost": await rest_refusal(infer(request(binary=False), "ghost")),
                "key": await rest_refusal(infer(request(binary=False), bearer=STRANGER)),
            },
        }


async def first_protocol() -> dict[str, Any]:
    """REST in protocol v1."""
    model = CASE["model"]
    async with InferenceRESTClient(RESTConfig(protocol="v1", retries=0)) as client:
        answer = await client.infer(URL, {"instances": ROWS.tolist()}, model, HEADERS)
        ghost = client.infer(URL, {"instances": ROWS.tolist()}, "ghost", HEADERS)
        return {
            "live": await client.is_server_live(URL),
            "model ready": await client.is_model_ready(URL, model, HEADERS),
            "predictions": answer["predictions"],
            "refused": {"ghost": await rest_refusal(ghost)},
        }


async def rpc() -> dict[str, Any]:
    """gRPC."""
    model = CASE["model"]
    async with InferenceGRPCClient(CASE["grpc"], retries=0) as client:
        stranger = client.infer(request(binary=True), headers=[("authorization", STRANGER)])
        ghost = client.infer(request(binary=True, model="ghost"), headers=METADATA)
        typed = await client.infer(request(binary=False), headers=METADATA)
        raw = await client.infer(request(binary=True), headers=METADATA)
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(model, headers=METADATA),
            "scores": {"gRPC, typed": arrays(typed), "gRPC, raw": arrays(raw)},
            "id": raw.id,
            "refused": {"ghost": await rpc_refusal(ghost), "key": await rpc_refusal(stranger)},
        }


async def main() -> None:
    """Everything, as one document."""
    found = {"v2": await second_protocol(), "v1": await first_protocol(), "gRPC": await rpc()}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
