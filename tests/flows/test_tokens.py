"""An encoder from its ONNX file to the bill: what was sent is what is paid for, to the token."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import pytest

import tapster
from tapster.cli import main
from tapster.client import Client
from tests.conftest import Server
from tests.serving import texts
from tests.serving.rpc import calling

SECONDS = 60
NAME = "encoder"
INFER = f"/v2/models/{NAME}/infer"
PRICE = Decimal("0.000020")
BUDGET = 1000


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    """The installation's own client; an encoder is deployed, and shared with `readers`."""
    onnx.save(texts.graph(), tmp_path / "encoder.onnx")
    with tapster.connect(server.url, key=server.key) as made:
        made.models_import(NAME, tmp_path / "encoder.onnx")
        made.deploy(NAME)
        made.tenants_add("readers")
        made.endpoint_share(NAME, ["readers"])
        yield made


def _draw(draw: random.Random, most: int) -> tuple[list[list[int]], list[list[int]], int]:
    """Ids, a mask with padding, and the tokens that they are."""
    lengths = [draw.randint(1, most) for _ in range(draw.randint(1, 3))]
    wide = max(lengths)
    ids = [[draw.randrange(texts.WORDS)] * wide for _ in lengths]
    return ids, [[1] * n + [0] * (wide - n) for n in lengths], sum(lengths)


def test_from_tokens_to_an_invoice(
    server: Server,
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.prices_set(NAME, {"token": str(PRICE)}, tenant="readers")
    [limit] = client.limits_set(f"tokens={BUDGET}/day", tenant="readers")
    assert (limit.metric, limit.amount, limit.period) == ("tokens", BUDGET, "day")
    key = client.keys_create(role="owner", tenant="readers").key
    sent = _spend(server, key)
    with tapster.connect(server.url, key=key) as reader:
        found = _counted(reader, sent)
        [row] = found["rows"]
        assert (row["owner"], row["endpoint"], row["tokens"]) == ("default", NAME, sent)
        assert Decimal(found["total"]["amount"]) == sent * PRICE
        [invoice] = reader.invoices()
        bill = reader.invoice(invoice["month"])
        assert Decimal(bill["total"]) == sent * PRICE
        assert sum(line["tokens"] for line in bill["lines"]) == sent
        [shown] = reader.limits_show()
        assert (shown.used, shown.left) == (sent, 0)
    assert client.usage_check()["ok"]
    monkeypatch.setenv("TAPSTER_URL", server.url)
    monkeypatch.setenv("TAPSTER_KEY", key)
    monkeypatch.setenv("TAPSTER_HOME", str(server.home))
    capsys.readouterr()
    assert main(["usage", "--by", "endpoint", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["tokens"] == sent
    assert main(["usage", "--by", "endpoint"]) == 0
    assert "TOKENS" in capsys.readouterr().out
    assert main(["invoices", "show"]) == 0
    assert f"token {PRICE.normalize():f}" in capsys.readouterr().out


def _spend(server: Server, key: str) -> int:
    """Send texts over both wires until not one token is left; how many went well."""
    draw, sent, turn = random.Random(1), 0, 0
    headers = {"Authorization": f"Bearer {key}"}
    until = time.monotonic() + SECONDS
    with (
        httpx.Client(base_url=server.rest_url, headers=headers, timeout=30) as http,
        closing(grpc.insecure_channel(server.grpc_url)) as channel,
    ):
        while http.get(f"/v2/models/{NAME}").status_code != 200:
            assert time.monotonic() < until, "the share is not heard of"
            time.sleep(0.05)
        most = 40
        while most:
            ids, mask, tokens = _draw(draw, most)
            turn += 1
            if turn % 2:
                answer = http.post(INFER, content=texts.open_json(ids, mask))
                good, said = answer.status_code == 200, answer.text
            else:
                good, said = _call(channel, key, ids, mask)
            sent += tokens * good
            if not good:
                assert "tokens of the day (1000)" in said, said
                most = min(most, BUDGET - sent) if sent < BUDGET else 0
    assert sent == BUDGET
    return sent


def _call(channel: grpc.Channel, key: str, ids: Any, mask: Any) -> tuple[bool, str]:
    given = [("input_ids", "INT64", np.array(ids)), ("attention_mask", "INT64", np.array(mask))]
    ask = channel.unary_unary(f"/{calling.INFER}")
    request = calling.infer_request(NAME, *given).SerializeToString()
    try:
        ask(request, metadata=calling.metadata(key), timeout=30)
    except grpc.RpcError as error:
        return False, f"{error.code().name}: {error.details()}"
    return True, "OK"


def _counted(client: Client, tokens: int) -> Any:
    """Usage once it has come to so many tokens; agents report every second."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = client.usage("endpoint")
        if found["total"]["tokens"] >= tokens:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not {tokens} tokens: {found}")
