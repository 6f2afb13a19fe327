"""Datasets over HTTP, against a running installation."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server

HOSTILE = '<img src=x onerror="alert(1)">'


class Api:
    """The control API with the admin's key."""

    def __init__(self, server: Server) -> None:
        self.http = httpx.Client(
            base_url=f"{server.url}/api/v1",
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=60,
        )

    def finished(self, answer: httpx.Response) -> dict[str, Any]:
        """The job that a request started, once it has ended."""
        assert answer.status_code == 202, answer.text
        identifier = answer.json()["id"]
        end = time.monotonic() + 60
        while time.monotonic() < end:
            job: dict[str, Any] = self.http.get(f"/jobs/{identifier}").json()
            if job["status"] in {"succeeded", "failed", "cancelled"}:
                return job
            time.sleep(0.05)
        raise AssertionError(job)

    def add(self, name: str, content: str, **options: Any) -> dict[str, Any]:
        """Send a CSV and import it."""
        upload = self.http.post("/uploads").json()["id"]
        self.http.put(f"/uploads/{upload}/files/a.csv", content=content.encode())
        body = {"name": name, "upload": upload, **options}
        return self.finished(self.http.post("/datasets", json=body))


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Api]:
    opened = Api(server)
    yield opened
    opened.http.close()


def test_the_life_of_a_dataset(api: Api) -> None:
    rows = "".join(f"{i % 7},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    job = api.add("life", f'"{HOSTILE.replace(chr(34), chr(34) * 2)}",y\n{rows}')
    assert job["status"] == "succeeded", job
    assert job["result"]["version"] == 1
    shown = api.http.get("/datasets/life").json()
    assert shown["columns"] == [
        {"name": HOSTILE, "type": "integer"},
        {"name": "y", "type": "text"},
    ]
    assert shown["bytes"] > 0
    assert "life" in [d["name"] for d in api.http.get("/datasets").json()]

    profile = api.http.get("/datasets/life/profile", params={"target": "y"}).json()
    assert profile["target"]["columns"][0]["name"] == HOSTILE
    assert profile["duplicate_rows"]["count"] == 26

    recipe = {"steps": [{"op": "drop_duplicates"}]}
    job = api.finished(api.http.post("/datasets/life/clean", json={"recipe": recipe}))
    assert (job["status"], job["result"]["version"]) == ("succeeded", 2)
    lineage = api.http.get("/datasets/life@2/lineage").json()
    assert lineage["parents"][0]["version"] == 1
    assert [v["version"] for v in api.http.get("/datasets/life/versions").json()] == [2, 1]

    how = {"name": "s", "kind": "stratified", "column": "y", "seed": 3}
    job = api.finished(api.http.post("/datasets/life@1/split", json=how))
    assert job["status"] == "succeeded", job
    (split,) = api.http.get("/datasets/life@1/splits").json()
    assert (split["kind"], sum(split["rows"])) == ("stratified", 40)

    assert api.http.delete("/datasets/life").json()["freed"] > 0
    assert api.http.get("/datasets/life").status_code == 404


def test_a_bad_file_fails_its_job_with_what_to_do(api: Api) -> None:
    job = api.add("bad", "x,y\n1,2\n3\n")
    assert job["status"] == "failed"
    assert job["error"]["code"] == "invalid"
    assert "line 3 of a.csv has 1 field" in job["error"]["message"]
    assert job["error"]["hint"]
    assert api.http.get("/datasets/bad").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"name": "a b", "url": "s3://b/k"}, 400, "name"),
        ({"name": "a"}, 400, "url"),
        ({"name": "a", "upload": "up_0000000000000000"}, 404, ""),
        ({"name": "a", "url": "http://x/y"}, 400, "url"),
        ({"name": "a", "url": "sqlite:////nope.db", "table": "t"}, 404, "url"),
        ({"name": "a", "url": "s3://b/k", "schema": {"x": "int"}}, 400, "schema.x"),
    ],
)
def test_requests_that_cannot_work_start_no_job(
    body: dict[str, Any], status: int, field: str, api: Api
) -> None:
    before = len(api.http.get("/jobs").json())
    answer = api.http.post("/datasets", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert len(api.http.get("/jobs").json()) == before


def test_bad_references_recipes_and_splits(api: Api) -> None:
    api.add("refs", "x\n1\n2\n3\n")
    for path in ("nope", "refs@9", "nope/profile", "nope/lineage", "nope/splits"):
        assert api.http.get(f"/datasets/{path}").status_code == 404
    assert api.http.get("/datasets/refs@x").status_code == 400
    answer = api.http.get("/datasets/refs/profile", params={"target": "z"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "target")
    bad = {"recipe": {"steps": [{"op": "scale", "columns": ["z"]}]}}
    assert api.http.post("/datasets/refs/clean", json=bad).status_code == 400
    assert api.http.post("/datasets/refs/split", json={"kind": "group"}).status_code == 400
    assert api.http.delete("/datasets/nope").status_code == 404
