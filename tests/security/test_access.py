"""Deny by default: every route and method, for every kind of caller, as the table of rights says.

What the threat list numbers is numbered here too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI

from tapster.app import build
from tapster.contract.control import INSTALLATION
from tapster.core.settings import load
from tapster.serving.rest.routes import KINDS, TEMPLATES, Routes
from tapster.serving.rpc.services import all_methods
from tapster.tenancy.rights import RIGHTS
from tests.conftest import Server
from tests.security.rights_table import ROLES, section
from tests.security.walkers import Callers, callers

OPEN = {"none", "any"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The application, for its list of routes."""
    return build(load({}, home=tmp_path_factory.mktemp("app")))


@pytest.fixture(scope="module")
def everybody(server: Server) -> Callers:
    """One caller of every kind."""
    return callers(server)


def _path(template: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", template)


def _control() -> Iterator[tuple[str, str, str, frozenset[str]]]:
    for route, (right, let_in) in section("Control API").items():
        method, _, template = route.partition(" ")
        yield method, template, right, let_in


def _let_in(tenant: str, role: str, right: str, let_in: frozenset[str]) -> bool:
    return role in let_in and (tenant == "default" or right not in INSTALLATION)


# -- the table is whole


def test_every_control_route_is_in_the_table_with_the_one_right_it_needs(app: FastAPI) -> None:
    table = section("Control API")
    named = {f"{m} {path}": rights for (m, path), rights in app.state.rights.items()}
    named["GET /api/openapi.json"] = ["none"]
    assert {route: [right] for route, (right, _) in table.items()} == named
    mounted = {
        f"{method} {route.path}"  # type: ignore[attr-defined]
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
    }
    assert {route for route in mounted if not route.startswith("HEAD ")} <= set(table)
    known = {"none", "any", "agent", *RIGHTS}
    assert [route for route, (right, _) in table.items() if right not in known] == []
    assert len(table) > 80


def test_every_inference_route_is_in_the_table() -> None:
    routes = Routes()
    found = {template: routes.find(_path(template).encode()) for template in TEMPLATES}
    assert {route.kind for route in found.values()} == KINDS
    spelled = {f"{route.method.decode()} {path}": route for path, route in found.items()}
    table = section("REST")
    assert {name: right for name, (right, _) in table.items()} == {
        name: "none" if route.public else route.right for name, route in spelled.items()
    }


def test_every_method_is_in_the_table() -> None:
    methods = {path.decode(): method for path, method in all_methods().items()}
    assert {name: right for name, (right, _) in section("gRPC").items()} == {
        name: "none" if method.public else method.right for name, method in methods.items()
    }


# -- and it is so


@pytest.mark.parametrize("tenant", ["default", "walkers"])
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_on_control_what_the_table_says(
    everybody: Callers, tenant: str, role: str
) -> None:
    wrong = []
    with everybody.api(getattr(everybody, tenant)[role]) as api:
        for method, template, right, let_in in _control():
            if right == "none":
                continue
            answer = api.request(method, _path(template), json={})
            refused = answer.status_code == 403 and "hold the right" in answer.text
            outcome = "in" if not refused and answer.status_code != 401 else answer.status_code
            expected: Any = "in" if _let_in(tenant, role, right, let_in) else 403
            if right == "agent":
                expected = 401
            if outcome != expected or answer.status_code >= 500:
                wrong.append((method, template, right, answer.status_code, answer.text[:100]))
    assert wrong == []


def test_35_36_whoever_is_not_valid_gets_one_answer(everybody: Callers) -> None:
    bodies = set()
    for kind, key in everybody.barred.items():
        with everybody.api(key) as api:
            for method, template, right, _ in _control():
                if right == "none":
                    continue
                answer = api.request(method, _path(template), json={})
                assert answer.status_code == 401, (kind, method, template, answer.text)
                if right != "agent":
                    bodies.add(answer.text)
    assert len(bodies) == 1


def test_a_suspended_tenants_key_is_told_so(everybody: Callers) -> None:
    with everybody.api(everybody.suspended) as api:
        for method, template, right, _ in _control():
            if right in {"none", "agent"}:
                continue
            answer = api.request(method, _path(template), json={})
            told = "the tenant suspended is suspended" in answer.text
            assert (answer.status_code, told) == (403, True), (method, template, answer.text)


@pytest.mark.parametrize("value", ["", "Bearer", "Basic {}", "{}", "Bearer: {}", "Bearer {} {}"])
def test_35_a_key_is_a_bearers(server: Server, value: str) -> None:
    headers = {"Authorization": value.replace("{}", server.key)}
    answer = httpx.get(f"{server.url}/api/v1/jobs", headers=headers, timeout=30)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "key", [b"tap_" + "é".encode() * 20, b"tap_\xff\xfe", b"tap_" + b"x" * 60_000, b"tap_a\tb"]
)
def test_36_odd_bytes_are_no_key(server: Server, key: bytes) -> None:
    answer = httpx.get(
        f"{server.url}/api/v1/jobs", headers={b"authorization": b"Bearer " + key}, timeout=30
    )
    assert answer.status_code in {400, 401, 431}


def test_the_public_routes_let_everybody_in(everybody: Callers) -> None:
    public = [(m, t) for m, t, right, _ in _control() if right == "none"]
    assert len(public) == 5
    with everybody.api() as api:
        for method, template in public:
            answer = api.request(method, template, json={})
            assert answer.status_code == (200 if method == "GET" else 400), (template, answer.text)


@pytest.mark.parametrize("tenant", ["default", "walkers"])
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_over_rest_what_the_table_says(
    everybody: Callers, tenant: str, role: str
) -> None:
    key = getattr(everybody, tenant)[role]
    wrong = []
    with httpx.Client(base_url=everybody.server.rest_url, timeout=30) as api:
        for route, (right, let_in) in section("REST").items():
            method, _, template = route.partition(" ")
            params = {"seconds": "0.05"} if template == "/debug/profile" else None
            headers = {"Authorization": f"Bearer {key}"}
            answer = api.request(method, _path(template), headers=headers, params=params)
            expected = right == "none" or _let_in(tenant, role, right, let_in)
            if (answer.status_code in {401, 403}) is expected or answer.status_code >= 500:
                wrong.append((route, answer.status_code))
    assert wrong == []


def test_whoever_is_not_valid_is_nobody_over_rest(everybody: Callers) -> None:
    with httpx.Client(base_url=everybody.server.rest_url, timeout=30) as api:
        for kind, key in everybody.barred.items():
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            for route, (right, _) in section("REST").items():
                method, _, template = route.partition(" ")
                answer = api.request(method, _path(template), headers=headers)
                assert (answer.status_code == 401) is (right != "none"), (kind, route)


def test_a_suspended_tenants_key_is_told_so_over_rest(everybody: Callers) -> None:
    with httpx.Client(base_url=everybody.server.rest_url, timeout=30) as api:
        headers = {"Authorization": f"Bearer {everybody.suspended}"}
        for route, (right, _) in section("REST").items():
            method, _, template = route.partition(" ")
            answer = api.request(method, _path(template), headers=headers)
            told = "the tenant suspended is suspended" in answer.text
            assert (answer.status_code == 403, told) == (right != "none",) * 2, route


def _status(channel: grpc.Channel, path: str, key: str) -> str:
    """The status of a call with one empty message; OK when something comes back."""
    call = channel.stream_stream(path)(
        iter([b""]), metadata=[("authorization", f"Bearer {key}")] if key else [], timeout=20
    )
    try:
        for _ in call:
            call.cancel()
            return "OK"
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("tenant", ["default", "walkers"])
def test_a_role_may_do_over_grpc_what_the_table_says(everybody: Callers, tenant: str) -> None:
    wrong = []
    with grpc.insecure_channel(everybody.server.grpc_url) as channel:
        for role in ROLES:
            key = getattr(everybody, tenant)[role]
            for path, (right, let_in) in section("gRPC").items():
                expected = right == "none" or _let_in(tenant, role, right, let_in)
                status = _status(channel, path, key)
                if (status in {"UNAUTHENTICATED", "PERMISSION_DENIED"}) is expected:
                    wrong.append((role, path, status))
        for kind, key in everybody.barred.items():
            if kind == "long":
                continue
            for path, (right, _) in section("gRPC").items():
                status = _status(channel, path, key)
                if (status == "UNAUTHENTICATED") is (right == "none"):
                    wrong.append((kind, path, status))
        for path, (right, _) in section("gRPC").items():
            status = _status(channel, path, everybody.suspended)
            if (status == "PERMISSION_DENIED") is (right == "none"):
                wrong.append(("suspended", path, status))
    assert wrong == []


# -- what else may not happen


def test_32_another_method_never_acts(everybody: Callers, app: FastAPI) -> None:
    mine: dict[str, set[str]] = {}
    for method, path in app.state.rights:
        mine.setdefault(path, set()).add(method)
    for key in (everybody.server.key, ""):
        with everybody.api(key) as api:
            for path, methods in mine.items():
                for method in set(METHODS) - methods:
                    if any(_meets(_path(path), other, method, mine) for other in mine):
                        continue
                    answer = api.request(method, _path(path))
                    assert answer.status_code == 405, (method, path, answer.text)
                    assert "access-control-allow-origin" not in answer.headers


def _meets(path: str, other: str, method: str, mine: dict[str, set[str]]) -> bool:
    """Whether another route takes the method at this path: `/sessions/current` is a `{session}`."""
    pattern = re.sub(r"\{[^}]+\}", "[^/]+", other)
    return method in mine[other] and re.fullmatch(pattern, path) is not None


def test_41_a_page_of_elsewhere_gets_nothing_that_a_key_does_not_give(everybody: Callers) -> None:
    foreign = {"Origin": "http://evil.example", "Host": "evil.example"}
    with everybody.api() as api:
        for method, path in (("POST", "/api/v1/keys"), ("DELETE", "/api/v1/models/x")):
            answer = api.request(method, path, json={}, headers=foreign)
            assert answer.status_code == 401
            assert not {"set-cookie", "access-control-allow-origin"} & set(answer.headers)
            asked = {**foreign, "Access-Control-Request-Method": method}
            assert api.options(path, headers=asked).status_code == 405
        cookies = {"Cookie": f"session={everybody.server.key}; authorization=Bearer x"}
        assert api.get("/api/v1/keys", headers=cookies).status_code == 401
        assert api.get(f"/api/v1/keys?key={everybody.server.key}").status_code == 401


def test_42_bodies_hold_what_the_route_knows_and_nothing_else(
    everybody: Callers, app: FastAPI
) -> None:
    document = app.openapi()
    named, loose = set(), []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            for schema in (part.get("schema", {}) for part in content.values()):
                named.add(f"{method.upper()} {path}")
                refs = [schema, *schema.get("anyOf", ())]
                for ref in (each["$ref"] for each in refs if "$ref" in each):
                    found = document["components"]["schemas"][ref.rpartition("/")[2]]
                    if found.get("additionalProperties") is not False:
                        loose.append(f"{method.upper()} {path}")
    assert loose == []
    assert len(named) > 15
    alien = {"tenant_id": "default", "status": "active", "path": "/etc/passwd", "id": "x"}
    with everybody.api(everybody.server.key) as api:
        for route in sorted(named):
            method, _, template = route.partition(" ")
            answer = api.request(method, _path(template), json=alien)
            assert answer.status_code == 400, (route, answer.text)
        made = {"name": "sneaky", "role": "consumer", "tenant": "walkers", "status": "active"}
        assert api.post("/api/v1/keys", json=made).status_code == 400
        assert "sneaky" not in api.get("/api/v1/keys").text


def test_the_admin_key_is_not_the_agents_and_the_agents_is_nobodys(server: Server) -> None:
    agent = (server.home / "agent.key").read_text().strip()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        admin = {"authorization": f"Bearer {server.key}"}
        assert client.get("/internal/plan", headers=admin).status_code == 401
        assert client.get("/internal/plan", headers={}).status_code == 401
        as_agent = {"authorization": f"Bearer {agent}"}
        assert client.get("/api/v1/models", headers=as_agent).status_code == 401


def test_secrets_in_the_home_are_readable_by_their_owner_only(server: Server) -> None:
    secrets = [server.home / f"{name}.key" for name in ("admin", "agent", "signing", "audit")]
    plans = list((server.home / "run").glob("plan.*"))
    assert plans
    for path in (*secrets, *plans):
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_40_no_secret_reaches_logs_metrics_or_the_record(everybody: Callers) -> None:
    server = everybody.server
    password = "a password nobody may read"
    with everybody.api(server.key) as api:
        made = everybody.key("walkers", role="consumer", name="whose secret is sought")
        member = {"name": "secretive", "role": "consumer", "password": password}
        as_walkers = {"X-Tapster-Tenant": "walkers"}
        assert api.post("/api/v1/members", json=member, headers=as_walkers).status_code == 201
        entry = {"tenant": "walkers", "member": "secretive", "password": password}
        session = api.post("/api/v1/sessions", json=entry).json()
        api.post("/api/v1/sessions", json={**entry, "password": f"{password}!"})
        api.get(f"/api/v1/jobs?api_key={server.key}", headers={"X-Api-Key": made["key"]})
        httpx.get(f"{server.rest_url}/v2?key={session['token']}", timeout=30)
        seen = [
            api.get(path, headers=headers).text
            for headers in ({}, as_walkers)
            for path in ("/metrics", "/api/v1/audit?limit=200", "/api/v1/keys", "/api/v1/sessions")
        ]
    seen += [server.log()]
    seen += [" ".join(child.cmdline()) for child in server.children()]
    written = [path for path in (server.home / "run").rglob("*") if path.is_file()]
    contents = [text.encode() for text in seen] + [path.read_bytes() for path in written]
    for secret in (server.key, made["key"], session["token"], password):
        assert [text[:200] for text in contents if secret.encode() in text] == []
    assert Path(server.home / "admin.key").read_text().strip() == server.key
