"""Prometheus's own promtool finds nothing to complain of in what both ports say of themselves."""

import subprocess

import httpx
import pytest

from tests.clients.conftest import INPUT, SECONDS, Served
from tests.clients.debian import command


@pytest.mark.system
@pytest.mark.parametrize("port", ["control", "inference"])
def test_metrics_are_as_prometheus_wants_them(served: Served, port: str) -> None:
    server = served.server
    headers = {"authorization": f"Bearer {server.key}"}
    tensor = {"name": INPUT, "shape": [1, 30], "datatype": "FP32", "data": served.rows[0]}
    with httpx.Client(headers=headers, timeout=30) as http:
        for model in ("cancer", "ghost"):
            http.post(f"{server.rest_url}/v2/models/{model}/infer", json={"inputs": [tensor]})
        http.get(f"{server.url}/api/v1/models")
        url = server.url if port == "control" else server.rest_url
        text = http.get(f"{url}/metrics").raise_for_status().text
    assert text.count("# TYPE tapster_") > 3
    done = subprocess.run(
        [command("promtool", "prometheus"), "check", "metrics"],
        input=text,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
