"""The registry over HTTP, with the real application around it."""

import asyncio
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import Connection

from tapster import api
from tapster.contract.control import ModelVersion
from tapster.core.crypto import Signer
from tapster.registry import packages, routes
from tapster.tenancy import service as tenancy
from tapster.tenancy.audit.heads import Heads
from tapster.tenancy.audit.record import Record
from tests.registry.conftest import Installation
from tests.runtimes.graphs import classifier, sealed

SERVED: set[str] = set()


def in_use(tx: Connection, tenant: str, version: ModelVersion) -> list[str]:
    return ["shop"] if version.digest in SERVED else []


class Http:
    """A synchronous client of an application in this process."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **options))


def lent(tx: Connection, tenant: str, version: ModelVersion) -> bool:
    return False


@pytest.fixture
def client(here: Installation) -> Iterator[Http]:
    SERVED.clear()
    admin = tenancy.ensure_key_file(here.home / "admin.key")
    with here.parts.db.write() as tx:
        tenancy.ensure_admin(tx, admin)
    heads = Heads(Signer.of(here.home / "audit.key"), [here.home / "audit"])
    record = here.parts.db.witness = Record(here.parts.db, heads)
    app = api.build(here.parts, routes.routes(here.parts, in_use, lent), [], record)
    made = httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://t/api/v1",
        headers={"Authorization": f"Bearer {admin}"},
    )
    with asyncio.Runner() as runner:
        yield Http(runner, made)
        runner.run(made.aclose())


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"code", "message", "hint", "field"}
    return found


def test_reading(here: Installation, client: Http) -> None:
    here.add("a")
    here.add("a")
    here.add("b")
    assert [(m["model"], m["version"]) for m in client("GET", "/models").json()] == [
        ("a", 2),
        ("b", 1),
    ]
    assert client("GET", "/models/a@1").json()["version"] == 1
    assert [m["version"] for m in client("GET", "/models/a/versions").json()] == [2, 1]
    assert client("GET", "/models/a/lineage").json()["children"] == []
    assert client("GET", "/models?dataset=none").json() == []
    assert error(client("GET", "/models/c"), 404)["message"] == "there is no model 'c'"
    assert error(client("GET", "/models/a@9"), 404)["hint"] == "its versions are: 2, 1"
    assert error(client("GET", "/models/a@x"), 400)["code"] == "invalid"


def test_the_evaluation_comes_out_of_the_package(here: Installation, client: Http) -> None:
    folder = here.fresh()
    folder.mkdir()
    (folder / "evaluation.json").write_bytes(msgspec.json.encode({"confusion": [[1, 2]]}))
    sealed(folder)
    digest = packages.publish(here.parts, "default", folder)["digest"]
    made = here.add("m", created=1.0)
    assert made.digest != digest
    assert client("GET", "/models/m/evaluation").json() == {}
    here_folder = here.parts.blobs.get(packages.key_of("default", digest))
    assert packages.evaluation(here_folder, digest) == {"confusion": [[1, 2]]}


def test_naming(here: Installation, client: Http) -> None:
    here.add("m")
    here.add("m")
    assert client("PUT", "/models/m@1/aliases/champion").json()["aliases"] == ["champion"]
    assert client("GET", "/models/m:champion").json()["version"] == 1
    body = {"description": "d", "tags": {"a": "b"}}
    described = client("PATCH", "/models/m:champion", json=body).json()
    assert (described["description"], described["tags"], described["version"]) == (
        "d",
        {"a": "b"},
        1,
    )
    assert client("DELETE", "/models/m/aliases/champion").json() == {"deleted": "champion"}
    error(client("DELETE", "/models/m/aliases/champion"), 404)
    error(client("PUT", "/models/m/aliases/9"), 400)
    error(client("PATCH", "/models/m", json={"version": 7}), 400)
    error(client("PATCH", "/models/m", json={"tags": {"a": 1}}), 400)


def test_exporting_streams_one_file(here: Installation, client: Http, tmp_path: Path) -> None:
    made = here.add("m")
    answer = client("GET", "/models/m/export")
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-disposition"] == 'attachment; filename="m-1.tapster"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.content == here.export(made).read_bytes()
    (tmp_path / "m.tapster").write_bytes(answer.content)
    with tarfile.open(tmp_path / "m.tapster") as tar:
        assert tar.getnames() == [
            "manifest.json",
            "manifest.sig",
            "model.onnx",
            "parity.msgpack",
            "sketches/0.bin",
        ]
        model = tar.extractfile("model.onnx")
        assert model is not None
        assert model.read() == classifier()


def test_importing_submits_a_job(here: Installation, client: Http) -> None:
    upload = client("POST", "/uploads").json()["id"]
    client("PUT", f"/uploads/{upload}/files/m.onnx", content=classifier()).raise_for_status()
    answer = client("POST", "/models/m/import", json={"upload": upload})
    assert answer.status_code == 202
    assert (answer.json()["kind"], answer.json()["status"]) == ("model.import", "queued")
    error(client("POST", "/models/m/import", json={"upload": "up_0000000000000000"}), 404)
    error(client("POST", "/models/a b/import", json={"upload": upload}), 400)
    error(client("POST", "/models/m/import", json={}), 400)


def test_deleting_says_what_became_free(here: Installation, client: Http) -> None:
    one, two = here.add("m"), here.add("m")
    SERVED.add(one.digest)
    assert "endpoint shop" in error(client("DELETE", "/models/m@1"), 409)["message"]
    error(client("DELETE", "/models/m"), 409)
    assert client("DELETE", "/models/m@2").json() == {"freed": two.bytes}
    SERVED.clear()
    assert client("DELETE", "/models/m").json() == {"freed": one.bytes}
    assert list(here.parts.blobs.keys()) == []
    error(client("DELETE", "/models/m"), 404)
    error(client("GET", "/models/m"), 404)


def test_trusting(here: Installation, client: Http) -> None:
    (own,) = client("GET", "/trust").json()
    assert (own["public_key"], own["own"]) == (here.parts.signer.public, True)
    body = {"name": "berlin", "public_key": "ab" * 32}
    assert client("POST", "/trust", json=body).status_code == 201
    assert [key["name"] for key in client("GET", "/trust").json()] == [
        "(this installation)",
        "berlin",
    ]
    error(client("POST", "/trust", json={**body, "public_key": "cd" * 32}), 409)
    error(client("POST", "/trust", json={**body, "public_key": "no key"}), 400)
    assert client("DELETE", "/trust/berlin").json() == {"deleted": "berlin"}
    error(client("DELETE", "/trust/berlin"), 404)


@pytest.mark.parametrize("path", ["/models", "/models/m/export", "/trust", "/models/m/evaluation"])
def test_nothing_without_a_key(client: Http, path: str) -> None:
    error(client("GET", path, headers={"Authorization": ""}), 401)
