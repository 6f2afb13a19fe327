"""What control has answered is so on the data plane: keys, limits and shares, on every worker."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tapster
from tapster.client import Client
from tests.conftest import Server

ROWS = {"rows": [{"x": 1.0}]}
# New connections fall to any worker.
TIMES = 6


@pytest.fixture(scope="module")
def owner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with tapster.connect(server.url, key=server.key) as client:
        path: Path = tmp_path_factory.mktemp("data") / "prompt.csv"
        path.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(40)))
        data = client.data_add("prompt", path)
        job = client.train(f"prompt@{data.version}", "y", "prompt", algorithm="naive", seed=1)
        client.wait(job)
        client.deploy("prompt", "prompt")
        client.tenants_add("prompt-acme")
        yield client


def asked(server: Server, key: str) -> set[int]:
    """The statuses of some calls, each on a connection of its own."""
    url = f"{server.rest_url}/v1/endpoints/prompt/predict"
    headers = {"authorization": f"Bearer {key}"}
    return {
        httpx.post(url, json=ROWS, headers=headers, timeout=30).status_code for _ in range(TIMES)
    }


def test_keys_are_good_and_revoked_at_once(server: Server, owner: Client) -> None:
    for _ in range(5):
        made = owner.keys_create("operator")
        assert asked(server, made.key) == {200}
        rotated = owner.keys_rotate(made.id)
        assert asked(server, made.key) == {401}
        assert asked(server, rotated.key) == {200}
        owner.keys_revoke(made.id)
        assert asked(server, rotated.key) == {401}


def test_shares_and_limits_hold_at_once(server: Server, owner: Client) -> None:
    key = owner.keys_create("consumer", tenant="prompt-acme").key
    assert asked(server, key) == {404}
    owner.endpoint_share("prompt", ["prompt-acme"])
    assert asked(server, key) == {200}
    [limit] = owner.limits_set("requests=0/day", tenant="prompt-acme")
    assert asked(server, key) == {429}
    owner.limits_delete(limit.id)
    assert asked(server, key) == {200}
    owner.endpoint_withdraw("prompt", ["prompt-acme"])
    assert asked(server, key) == {404}
