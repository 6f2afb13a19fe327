"""Hostile input 40: secrets sent in every place are nowhere to be found afterwards."""

import base64
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

import tapster
from tapster.contract.errors import TapsterError
from tests.conftest import Server

SECRET = "hunter2-Tr0ub4dor-77191"
# Of an import, which needs it: it is kept with the job until another import is asked for.
PASSWORD = "0pen-Sesame-90125"
MASTER = "c0ffee" * 10 + "beef"
LIMIT = 30.0


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A collector of traces: its URL, and what it was sent."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


@pytest.fixture
def talkative(
    new_server: Callable[..., Server], collector: tuple[str, list[bytes]], tmp_path: Path
) -> Server:
    """An installation that logs, traces and counts all it can, with an endpoint `churn`."""
    running = new_server(
        log_level="debug",
        access_log=1.0,
        slow_request=0.000001,
        otel_endpoint=collector[0],
        otel_sample=1.0,
        master_key=MASTER,
    )
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n" + "".join(f"{row},{row * 0.5 + row % 3}\n" for row in range(80)))
    with tapster.connect(running.url, key=running.key) as client:
        client.data_add("rows", path)
        client.wait(client.train("rows", "y", "churn", algorithm="ridge", seed=1))
        client.deploy("churn", "churn")
    return running


def _http(server: Server) -> list[httpx.Response]:
    """The secret in queries, headers and bodies, with a good key and with none."""
    answers = []
    places = [
        (server.rest_url, "/v2/models/churn/infer"),
        (server.rest_url, "/v1/models/churn:predict"),
        (server.rest_url, "/v1/endpoints/churn/predict"),
        (server.rest_url, "/metrics"),
        (server.url, "/api/v1/datasets"),
        (server.url, "/api/v1/jobs"),
        (server.url, "/api/v1/no/such/route"),
        (server.url, "/internal/plan"),
    ]
    keys = (server.key, f"tap_{SECRET}", f"tas_{SECRET}", SECRET)
    odd = {"X-Api-Key": SECRET, "Cookie": f"session={SECRET}", "User-Agent": SECRET,
           "Referer": f"http://x/?key={SECRET}"}  # fmt: skip
    bodies = [
        json.dumps({"password": SECRET, SECRET: 1}),
        f'{{"inputs": "{SECRET}',
        json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32",
                                "data": [SECRET]}]}),
        json.dumps({"rows": [{"x": SECRET}]}),
        f"x\n{SECRET}\n",
    ]  # fmt: skip
    with httpx.Client(timeout=LIMIT) as client:
        for base, path in places:
            url = f"{base}{path}?token={SECRET}&key={urllib.parse.quote(SECRET)}"
            for key in keys:
                headers = {**odd, "Authorization": f"Bearer {key}"}
                answers.append(client.get(url, headers=headers))
            basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
            answers.append(client.get(url, headers={"Authorization": f"Basic {basic}"}))
            for body in bodies:
                headers = {**odd, "Authorization": f"Bearer {server.key}"}
                headers["Content-Type"] = "application/json"
                answers.append(client.post(url, content=body, headers=headers))
    return answers


def _rpc(server: Server) -> list[str]:
    told = []
    with closing(grpc.insecure_channel(server.grpc_url)) as channel:
        for key in (f"tap_{SECRET}", server.key):
            for method in ("inference.GRPCInferenceService/ModelInfer", "no.Such/Method"):
                ask = channel.unary_unary(f"/{method}")
                metadata = (("authorization", f"Bearer {key}"), ("x-token", SECRET))
                with pytest.raises(grpc.RpcError) as refusal:
                    ask(SECRET.encode(), timeout=LIMIT, metadata=metadata)
                told.append(f"{refusal.value.code()} {refusal.value.details()}")
    return told


def _spelled() -> list[bytes]:
    """The secret in every spelling that a log might have."""
    plain = SECRET.encode()
    return [plain, urllib.parse.quote(SECRET).encode(), plain.hex().encode(),
            base64.b64encode(plain)[:-4], base64.b64encode(b"user:" + plain)[4:-4]]  # fmt: skip


def test_secrets_are_in_no_log_metric_trace_error_list_of_processes_or_file(
    talkative: Server, collector: tuple[str, list[bytes]]
) -> None:
    server = talkative
    answers = _http(server)
    assert {answer.status_code for answer in answers} >= {200, 400, 401, 404}
    refusals = [answer.text for answer in answers if answer.status_code in {401, 403, 404, 405}]
    told = [*refusals, *_rpc(server)]
    with tapster.connect(server.url, key=server.key) as client:
        with pytest.raises(TapsterError) as refusal:
            client.data_add("theirs", f"postgresql://user:{PASSWORD}@127.0.0.1:1/x", table="t")
        told += [str(refusal.value), refusal.value.hint]
        for job in client.jobs():
            told += [str(job), "".join(client.logs(job.id))]
    key = {"Authorization": f"Bearer {server.key}"}
    for url in (server.url, server.rest_url):
        metrics = httpx.get(f"{url}/metrics", headers=key, timeout=LIMIT)
        assert metrics.status_code == 200
        told.append(metrics.text)
    assert server.process is not None
    for process in (psutil.Process(server.process.pid), *server.children()):
        told.append(" ".join(process.cmdline()))
    assert server.stop() == 0
    told.append(server.log())
    assert "/v2/models" in server.log() or "churn" in server.log(), "requests were logged"
    assert collector[1], "requests were traced"
    everything = "\n".join(told).encode() + b"\n".join(collector[1])
    for secret in (*_spelled(), server.key.encode(), MASTER.encode(), PASSWORD.encode()):
        at = everything.find(secret)
        assert at < 0, everything[max(0, at - 300) : at + 100]
    _check_disk(server)


def _check_disk(server: Server) -> None:
    held = []
    for path in server.home.rglob("*"):
        if path.is_file() and path.name not in {"admin.key", "agent.key"}:
            data = path.read_bytes()
            secrets = (*_spelled(), server.key.encode(), MASTER.encode())
            held += [str(path) for secret in secrets if secret in data]
    assert held == []
