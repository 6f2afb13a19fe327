"""The journey with PostgreSQL instead of SQLite, and what must not be mixed up."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tapster.app import open_parts
from tapster.contract.errors import TapsterError
from tapster.core import settings
from tests.conftest import Server


def _finished(api: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + 120
    while job["status"] in {"queued", "running"} and time.monotonic() < end:
        time.sleep(0.1)
        job = api.get(f"/jobs/{job['id']}").raise_for_status().json()
    assert job["status"] == "succeeded", job["error"]
    return job


def _at_once(api: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """Eight make the same thing at the same moment: one does, and nobody gets a 503."""
    begin = threading.Barrier(8)

    def make(_: int) -> int:
        begin.wait(60)
        return api.post(path, json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(make, range(8))) == [201, *[409] * 7]
    assert [each["name"] for each in api.get(path).json()].count(body["name"]) == 1


def test_import_train_deploy_predict(new_server: Callable[..., Server], postgres_url: str) -> None:
    server = new_server(database_url=postgres_url)
    headers = {"Authorization": f"Bearer {server.key}"}
    rows = "".join(f"{i % 17},{i % 5},{'yes' if i % 17 > 8 else 'no'}\n" for i in range(200))
    with httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=60) as api:
        upload = api.post("/uploads").raise_for_status().json()["id"]
        api.put(f"/uploads/{upload}/files/d.csv", content="a,b,y\n" + rows).raise_for_status()
        _finished(api, api.post("/datasets", json={"name": "d", "upload": upload}).json())
        order = {"dataset": "d", "target": "y", "model": "m", "trials": 1}
        trained = api.post("/training", json={**order, "algorithm": "random-forest"})
        _finished(api, trained.raise_for_status().json())
        api.post("/endpoints/e/deploy", json={"model": "m"}).raise_for_status()
        endpoint = api.get("/endpoints/e", params={"wait": 60}).json()
        assert endpoint["status"] == "live", endpoint["error"]
        answer = httpx.post(
            f"{server.rest_url}/v1/endpoints/e/predict",
            json={"rows": [{"a": 16, "b": 1}, {"a": 0, "b": 2}]},
            headers=headers,
            timeout=60,
        )
        assert [p["prediction"] for p in answer.json()["predictions"]] == ["yes", "no"]
        assert api.get("/jobs/%00").status_code in {400, 404}
        _at_once(api, "/tenants", {"name": "acme"})
        _at_once(api, "/members", {"name": "ann@acme.example", "role": "owner"})
    assert server.stop() == 0
    blobs = list((server.home / "blobs").glob("*/*/*"))
    with pytest.raises(TapsterError, match="PostgreSQL"):  # SQLite would collect every blob
        open_parts(settings.load({}, home=server.home))
    assert list((server.home / "blobs").glob("*/*/*")) == blobs
