"""No route changes anything, and turns nobody away, without a line in the record."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from tapster.app import ERASERS, build
from tapster.contract.audit import AuditLine
from tapster.core.db import Database
from tapster.core.settings import load
from tapster.datasets import store as datasets
from tapster.deployments import store as endpoints
from tapster.deployments.sharing import service as sharing
from tapster.tenancy.audit import service
from tapster.tenancy.audit.acts import acting
from tapster.tenancy.audit.record import Record
from tapster.tenancy.audit.store import Selection
from tapster.tenancy.erasure.service import Endings
from tests.conftest import Server
from tests.deployments.conftest import NUMBERS, DataPlane, register, regression

WRITING = {"POST", "PUT", "PATCH", "DELETE"}
PREFIX = "/api/v1"
LIMIT = 30.0
PASSWORD = "correct horse battery staple"
OTHER = "another horse, another staple"


class Installation:
    """A control application in this process: asked without a network, its record at hand."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.app: FastAPI = build(load({}, home=home, **settings))
        self.db: Database = self.app.state.parts.db
        assert isinstance(self.db.witness, Record)
        self.record = self.db.witness
        self.key = (home / "admin.key").read_text().strip()

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """An answer; with the admin key unless another one is given."""
        key = self.key if key is None else key
        headers = {"authorization": f"Bearer {key}"} if key else {}

        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=("192.0.2.9", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                kind = {"content": body} if isinstance(body, bytes) else {"json": body}
                return await client.request(method, PREFIX + path, headers=headers, **kind)

        return _run(asking())

    def lines(self, after: int = 0) -> list[AuditLine]:
        """Lines after a number, oldest first."""
        found = service.listing(self.db, "*", Selection(), 0, 1000)
        return [line for line in reversed(found) if line.number > after]

    def last(self) -> int:
        """The newest line's number."""
        found = self.lines()
        return found[-1].number if found else 0

    def writing(self) -> set[tuple[str, str]]:
        """Every route that may change something, but those between the planes."""
        return {
            (method, path.removeprefix(PREFIX))
            for method, path in self.app.state.rights
            if method in WRITING and path.startswith(PREFIX)
        }


def _run(work: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    return asyncio.run(work)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("audited") / "home")
    yield made
    made.db.close()


@pytest.mark.parametrize("key", ["", "tap_" + "x" * 43])
def test_every_writing_route_that_refuses_leaves_a_line(
    installation: Installation, key: str
) -> None:
    routes = sorted(installation.writing())
    assert len(routes) >= 40
    before = installation.last()
    expected = {}
    for method, template in routes:
        answer = installation.ask(method, re.sub(r"\{[^}]+\}", "x", template), {}, key)
        assert answer.status_code >= 400, (method, template)
        expected[f"{method} {template}"] = answer.status_code
    installation.record.beat()
    found = {line.action: line for line in installation.lines(before)}
    assert {action: line.status for action, line in found.items()} == expected
    assert {(line.who, line.tenant, line.client) for line in found.values()} == {
        ("anonymous", "", "192.0.2.9")
    }


def test_every_writing_route_leaves_a_line_whatever_it_answers(installation: Installation) -> None:
    before = installation.last()
    expected = {}
    for method, template in sorted(installation.writing()):
        answer = installation.ask(method, re.sub(r"\{[^}]+\}", "x", template), {})
        expected[f"{method} {template}"] = answer.status_code
    installation.record.beat()
    found = {line.action: line for line in installation.lines(before)}
    assert {action: line.status for action, line in found.items()} == expected
    known = {action for action in found if not action.endswith(("/sessions", "/oidc", "/finish"))}
    assert {found[action].who for action in known} == {"key_admin"}
    assert all(line.code for line in found.values() if line.status >= 400)


def test_reads_leave_no_line_but_refused_ones_and_those_of_the_record(
    installation: Installation,
) -> None:
    before = installation.last()
    reads = [path for method, path in installation.app.state.rights if method == "GET"]
    for path in reads:
        if not re.search(r"/internal|/metrics|/verify|/health", path):
            installation.ask("GET", re.sub(r"\{[^}]+\}", "x", path.removeprefix(PREFIX)))
    assert installation.ask("GET", "/models", key="").status_code == 401
    installation.record.beat()
    found = {(line.action, line.status) for line in installation.lines(before)}
    assert found == {
        ("GET /models", 401),
        ("GET /audit", 200),
        ("GET /audit/head", 200),
        ("GET /audit/export", 200),
    }


class Journey:
    """Successful calls, one after another; each must leave its line before it answers."""

    def __init__(self, installation: Installation) -> None:
        self._at = installation
        self.walked: set[tuple[str, str]] = set()
        self.lines: list[AuditLine] = []

    def __call__(
        self, method: str, template: str, body: Any = None, token: str | None = None, **named: str
    ) -> Any:
        path = re.sub(r"\{(\w+)\}", lambda found: named[found[1]], template)
        before = self._at.last()
        answer = self._at.ask(method, path, body, token)
        assert answer.is_success, (method, template, answer.text)
        deferred = template.startswith("/uploads")  # files of the home, no rows
        if deferred:
            self._at.record.beat()
        mine = [line for line in self._at.lines(before) if line.action == f"{method} {template}"]
        assert len(mine) >= 1, (method, template)
        for line in mine:
            assert line.status in {answer.status_code, 200}
            assert deferred or line.before or line.after, (method, template)
        self.walked.add((method, template))
        self.lines += mine
        return answer.json()


def test_every_change_leaves_its_line_in_the_same_transaction(
    tmp_path: Path,
) -> None:
    at = Installation(tmp_path / "home", master_key="5eed" * 16)
    go = Journey(at)
    secrets = _people(go)
    _models(at, go)
    _data(at, go)
    _money(go)
    _rekey(at, go)
    _end(at, go)
    at.record.close()
    missing = {path for _, path in at.writing() - go.walked}
    assert missing <= {"/sessions/oidc", "/sessions/oidc/finish"}, "a route that is not walked"
    told = "".join(str(line) for line in at.lines()) + _details(at)
    for secret in (*secrets, PASSWORD, PASSWORD.replace(" ", ""), OTHER):
        assert secret not in told
    *_, verdict = service.check(at.db, at.record.heads, "*")
    at.app.state.parts.vault.clear()
    assert not isinstance(verdict, dict)
    assert verdict.faults == []
    at.db.close()


def _details(at: Installation) -> str:
    with at.db.read() as tx:
        return "".join(tx.execute(text("select body from audit_details")).scalars())


def _people(go: Journey) -> list[str]:
    """Tenants, roles, members, sessions, keys; the secrets that were shown."""
    go("POST", "/tenants", {"name": "berlin"})
    go("POST", "/tenants/{tenant}/suspend", tenant="berlin")
    go("POST", "/tenants/{tenant}/resume", tenant="berlin")
    go("POST", "/tenants/{tenant}/weight", {"weight": 2.0}, tenant="berlin")
    go("PUT", "/roles/{role}", {"rights": ["models:read"]}, role="reader")
    go("POST", "/members", {"name": "ada", "role": "reader", "password": PASSWORD})
    go("PATCH", "/members/{member}", {"role": "admin"}, member="ada")
    go("PUT", "/members/{member}/password", {"password": OTHER}, member="ada")
    go("POST", "/members/{member}/suspend", member="ada")
    go("POST", "/members/{member}/resume", member="ada")
    one = go("POST", "/sessions", {"member": "ada", "password": OTHER}, token="")
    assert go.lines[-1].who.startswith("mem_"), "who signed in is known by then"
    two = go("POST", "/sessions", {"member": "ada", "password": OTHER}, token="")
    body = {"password": PASSWORD, "former": OTHER}
    go("PUT", "/sessions/current/password", body, two["token"])
    three = go("POST", "/sessions", {"member": "ada", "password": PASSWORD}, token="")
    go("DELETE", "/sessions/{session}", session=three["id"])
    go("DELETE", "/sessions/current", token=two["token"])
    key = go("POST", "/keys", {"role": "reader"})
    rotated = go("POST", "/keys/{key}/rotate", {"overlap": 60}, key=key["id"])
    go("DELETE", "/keys/{key}", key=key["id"])
    go("DELETE", "/members/{member}", member="ada")
    go("DELETE", "/roles/{role}", role="reader")
    return [one["token"], two["token"], three["token"], key["key"], rotated["key"]]


def _models(at: Installation, go: Journey) -> None:
    """Trust, models and endpoints, without a data plane: what it would report is made up."""
    with at.db.write() as tx:
        for number in (1, 2):
            register(tx, f"m@{number}", regression(*NUMBERS))
    go("POST", "/trust", {"name": "berlin", "public_key": "ab" * 32})
    go("DELETE", "/trust/{name}", name="berlin")
    go("PATCH", "/models/{ref}", {"description": "the first"}, ref="m@1")
    go("PUT", "/models/{ref}/aliases/{alias}", ref="m@1", alias="stable")
    go("DELETE", "/models/{model}/aliases/{alias}", model="m", alias="stable")
    go("POST", "/models/{model}/share", {"tenants": ["berlin"]}, model="m")
    assert go.lines[-1].object == "model=m"
    assert "berlin" in str(go.lines[-1].after)
    go("POST", "/models/{model}/withdraw", {"tenants": ["berlin"]}, model="m")
    assert "berlin" in str(go.lines[-1].before)
    for version in (1, 2):
        go("POST", "/endpoints/{endpoint}/deploy", {"model": f"m@{version}"}, endpoint="e")
        _settle(at)
    go("PATCH", "/endpoints/{endpoint}", {"options": {"deadline": 2.0}}, endpoint="e")
    changed = go.lines[-1]
    assert changed.object == "endpoint=e"
    assert changed.before is not None
    assert changed.after is not None
    assert changed.after["endpoints"][0]["options"] == {"deadline": 2.0}
    assert changed.before["endpoints"][0].get("options") in ({}, None)
    go("POST", "/endpoints/{endpoint}/share", {"tenants": ["berlin"]}, endpoint="e")
    go("POST", "/endpoints/{endpoint}/withdraw", {"tenants": ["berlin"]}, endpoint="e")
    go("PUT", "/endpoints/{endpoint}/logging", {"hash": [NUMBERS[0]]}, endpoint="e")
    logged = go.lines[-1].after
    assert logged is not None
    assert logged["payload_rules"][0]["rules"]["hash"] == [NUMBERS[0]]
    assert logged["payload_rules"][0]["salt"] == "(hidden)"
    go("DELETE", "/payloads/{endpoint}", endpoint="e")
    go("DELETE", "/endpoints/{endpoint}/logging", endpoint="e")
    _agree(at, go)
    go("POST", "/endpoints/{endpoint}/rollback", endpoint="e")
    _settle(at)
    go("DELETE", "/endpoints/{endpoint}", endpoint="e")
    go("DELETE", "/models/{ref}", ref="m@2")
    found = {line.action for line in at.lines() if line.who == "system"}
    assert {"keys.admin", "deployments.settle"} <= found


def _agree(at: Installation, go: Journey) -> None:
    """Another tenant's endpoint, whose owner may log what one asks."""
    with at.db.write() as tx:
        endpoints.add(tx, "berlin", "b")
        sharing.share(tx, "berlin", "b", ["default"])
    go("PUT", "/payloads/{endpoint}/agreement", endpoint="berlin--b")
    go("DELETE", "/payloads/{endpoint}/agreement", endpoint="berlin--b")


def _settle(at: Installation) -> None:
    """A deployment is prepared, and switches."""
    for _ in range(2):
        with acting("default", "deployments.settle"), at.db.write() as tx:
            assert DataPlane(tx).settle()


def _data(at: Installation, go: Journey) -> None:
    """Uploads, datasets and jobs, which nobody runs."""
    upload = go("POST", "/uploads")["id"]
    file = {"upload": upload, "filename": "rows.csv"}
    go("PUT", "/uploads/{upload}/files/{filename}", b"a,b\n1,2\n", **file)
    job = go("POST", "/datasets", {"name": "rows", "upload": upload})
    secret = {"name": "r", "url": f"postgresql://u:{PASSWORD.replace(' ', '')}@h/d", "table": "t"}
    other = go("POST", "/datasets", secret)
    go("POST", "/jobs/{job}/cancel", job=other["id"])
    go("POST", "/jobs/{job}/cancel", job=job["id"])
    columns = [{"name": name, "type": "float"} for name in ("a", "b")]
    with at.db.write() as tx:
        datasets.add_version(
            tx, "default", "d", digest="0" * 64, rows=9, bytes=9, columns=columns, source={},
            parents=[], job="",
        )  # fmt: skip
    go(
        "POST",
        "/datasets/{ref}/clean",
        {"recipe": {"steps": [{"op": "drop_columns", "columns": ["b"]}]}},
        ref="d@1",
    )
    go("POST", "/datasets/{ref}/split", {}, ref="d@1")
    go("POST", "/training", {"dataset": "d", "target": "a", "model": "n"})
    go("DELETE", "/datasets/{ref}", ref="d@1")
    again = go("POST", "/uploads")["id"]
    file = {"upload": again, "filename": "model.onnx"}
    go("PUT", "/uploads/{upload}/files/{filename}", b"onnx", **file)
    go("POST", "/models/{model}/import", {"upload": again}, model="n")


def _money(go: Journey) -> None:
    """Prices and limits."""
    price = go("POST", "/prices", {"rates": {"training": "0.01"}})
    go("DELETE", "/prices/{price}", price=price["id"])
    limits = {"limits": [{"metric": "requests", "amount": 5, "period": "day"}]}
    made = go("POST", "/limits", {**limits, "tenant": "berlin"})
    go("DELETE", "/limits/{limit}", limit=made[0]["id"])


def _rekey(at: Installation, go: Journey) -> None:
    """A tenant is given another data key."""
    parts = at.app.state.parts
    former = parts.keys.current("berlin")
    made = go("POST", "/tenants/{tenant}/rekey", tenant="berlin")
    (line,) = [line for line in at.lines() if line.action.endswith("/rekey")]
    assert line.after is not None
    assert line.after["key_id"] == made["key"] != former.id


def _end(at: Installation, go: Journey) -> None:
    """A tenant is erased: what its lines told is gone, and that it happened is not."""
    before = [line for line in at.lines() if line.tenant == "berlin"]
    assert any(line.before or line.after for line in before)
    go("POST", "/tenants/{tenant}/erase", tenant="berlin")
    endings = Endings(at.app.state.parts, ERASERS)
    until = time.monotonic() + 60
    while endings.go_on():
        assert time.monotonic() < until
        time.sleep(0.2)
    lines = [line for line in at.lines() if line.tenant == "berlin"]
    assert [line.hash for line in lines[: len(before)]] == [line.hash for line in before]
    last = next(line for line in lines if line.action == "audit.erase")
    assert last.who == "system"
    for line in lines[: lines.index(last)]:
        assert (line.client, line.object, line.before, line.after) == ("", "", None, None)


# -- a running server


def test_no_client_says_for_itself_where_it_is(server: Server) -> None:
    """Of no proxy that nobody named the word is taken (X-Forwarded-For, Forwarded)."""
    forged = {"x-forwarded-for": "203.0.113.66", "forwarded": "for=203.0.113.66"}
    headers = {"authorization": f"Bearer {server.key}", **forged}
    with httpx.Client(base_url=f"{server.url}{PREFIX}", headers=headers) as client:
        body = {"name": "forwarded", "public_key": "cd" * 32}
        assert client.post("/trust", json=body).is_success
        found = client.get("/audit", params={"action": "POST /trust", "limit": 1}).json()
        assert found[0]["after"]["trusted_keys"][0]["name"] == "forwarded"
        assert found[0]["client"] == "127.0.0.1"
        assert client.delete("/trust/forwarded").is_success
        everything = client.get("/audit/export").text
    assert "203.0.113.66" not in everything
    assert server.key not in everything


def test_odd_paths_and_keys_are_recorded_without_harm(
    new_server: Callable[..., Server],
) -> None:
    """On a server of its own: of one that is refused much, alike or not, only so many are told."""
    server = new_server()
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"{server.url}{PREFIX}", headers=headers) as client:
        for odd in ("%00", "%ed%a0%80", "%1b%5b31m", "x" * 3000, server.key, "%f0%9f%98%80"):
            assert client.delete(f"/trust/{odd}").status_code in {400, 404}
            assert client.request("BREW", f"/trust/{odd}").status_code in {400, 404, 405}
        text, until = "", time.monotonic() + LIMIT
        while "\U0001f600" not in text:  # refusals are written once a second
            assert time.monotonic() < until, text
            text = client.get("/audit", params={"limit": 200}).text
        assert server.key not in text
        assert "\\u0000" not in text
        verdict = client.get("/audit/verify").text.splitlines()[-1]
    assert '"ok":true' in verdict
