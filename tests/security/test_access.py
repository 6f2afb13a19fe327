"""Deny by default: every control route, for every kind of caller."""

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tapster.app import build
from tapster.core.settings import load
from tests.conftest import Server

PUBLIC = {("GET", "/health")}
AGENT = {("GET", "/internal/plan"), ("POST", "/internal/report")}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The application, for its list of routes."""
    return build(load({}, home=tmp_path_factory.mktemp("app")))


def test_every_route_names_the_one_right_it_needs(app: FastAPI) -> None:
    named: dict[tuple[str, str], list[str]] = app.state.rights
    described = {
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
    assert described <= set(named)
    assert len(named) > 40
    for where, rights in named.items():
        if where in PUBLIC:
            assert rights == []
        elif where in AGENT:
            assert rights == ["agent"]
        else:
            assert len(rights) == 1, where
            assert re.fullmatch(r"[a-z]+:(read|write)", rights[0]), where


@pytest.mark.parametrize(
    "key",
    ["", "wrong", "tap_" + "x" * 43, "' OR 1=1--", "tap_" + "é" * 20, "tap_" + "x" * 5000],
)
def test_no_route_answers_without_a_valid_key(app: FastAPI, server: Server, key: str) -> None:
    headers = {b"authorization": b"Bearer " + key.encode()} if key else {}
    bodies = set()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for method, template in app.state.rights:
            if (method, template) in PUBLIC:
                continue
            path = re.sub(r"\{[^}]+\}", "x", template)
            answer = client.request(method, path, headers=headers, json={})
            assert answer.status_code == 401, (method, path, answer.text)
            if (method, template) not in AGENT:
                bodies.add(answer.text)
    assert len(bodies) == 1


def test_the_admin_key_is_not_the_agents_and_the_agents_is_nobodys(server: Server) -> None:
    agent = (server.home / "agent.key").read_text().strip()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        admin = {"authorization": f"Bearer {server.key}"}
        assert client.get("/internal/plan", headers=admin).status_code == 401
        assert client.get("/internal/plan", headers={}).status_code == 401
        as_agent = {"authorization": f"Bearer {agent}"}
        assert client.get("/api/v1/models", headers=as_agent).status_code == 401


def test_secrets_in_the_home_are_readable_by_their_owner_only(server: Server) -> None:
    for name in ("admin.key", "agent.key", "signing.key", "run/plan.sealed"):
        assert (server.home / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "DELETE", "PATCH"])
def test_an_unexpected_method_does_nothing(server: Server, method: str) -> None:
    answer = httpx.request(
        method, f"{server.url}/api/v1/jobs", headers={"authorization": f"Bearer {server.key}"}
    )
    assert answer.status_code in {404, 405}
    assert set(answer.json()["error"]) == {"code", "message", "hint", "field"}


def test_no_secret_reaches_the_logs(server: Server) -> None:
    httpx.get(f"{server.url}/api/v1/jobs", headers={"authorization": f"Bearer {server.key}"})
    httpx.get(f"{server.rest_url}/v2", headers={"authorization": f"Bearer {server.key}"})
    assert server.key not in server.log()
    assert Path(server.home / "admin.key").read_text().strip() == server.key
