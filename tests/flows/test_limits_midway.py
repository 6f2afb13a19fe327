"""A limit that is set while somebody calls holds on connections that are open, on both wires."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import httpx
import pytest

import tapster
from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import deploy
from tests.serving.rpc import calling

BODY = {
    "inputs": [{"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]
}
LIMIT = 20.0


@pytest.fixture
def callers(server: Server) -> Iterator[dict[str, Callable[[], int]]]:
    """Calls with the key `midway`'s secret over one connection of each wire: 1 if answered."""
    deploy(server, "sum", models.total(0.0))
    with tapster.connect(server.url, key=server.key) as client:
        client.tenants_add("midway")
        client.endpoint_share("sum", ["midway"])
        key = client.keys_create(role="consumer", tenant="midway").key
    headers = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=server.rest_url, headers=headers) as http,
        closing(grpc.insecure_channel(server.grpc_url)) as channel,
    ):
        ask = channel.unary_unary(
            f"/{calling.INFER}", request_serializer=lambda message: message.SerializeToString()
        )

        def rest() -> int:
            return http.post("/v2/models/sum/infer", json=BODY).status_code

        def rpc() -> int:
            try:
                ask(calling.sum_request(1, 2, 3), metadata=calling.metadata(key), timeout=10)
            except grpc.RpcError as error:
                return {grpc.StatusCode.RESOURCE_EXHAUSTED: 429}.get(error.code(), 500)
            return 200

        yield {"rest": rest, "rpc": rpc}


def test_a_limit_holds_on_connections_that_are_open(
    server: Server, callers: dict[str, Callable[[], int]]
) -> None:
    """What was used before it was set counts, to the unit."""
    used = 0
    for call in callers.values():
        until = time.monotonic() + LIMIT
        while call() != 200:
            assert time.monotonic() < until
        assert [call() for _ in range(30)] == [200] * 30
        used += 31
    with tapster.connect(server.url, key=server.key) as client:
        client.limits_set(f"requests={used + 6}/day", tenant="midway")
        for call in callers.values():
            assert [call() for _ in range(3)] == [200] * 3
        for call in callers.values():
            assert [call() for _ in range(10)] == [429] * 10
        client.limits_set("requests=none", tenant="midway")
        for call in callers.values():
            until = time.monotonic() + LIMIT
            while call() != 200:
                assert time.monotonic() < until
            assert [call() for _ in range(10)] == [200] * 10
