"""The control API's description is true: generated requests, real server, checked answers."""

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_every_answer_is_as_described(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    headers = {"authorization": f"Bearer {server.key}"}
    tried = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def answers_as_described(case: Case[Any]) -> None:
            case.call_and_validate(base_url=server.url, headers=headers, timeout=60, checks=CHECKS)

        answers_as_described()
        tried.append(operation.label)
    assert len(tried) > 40


def test_refusals_have_the_described_shape(server: Server) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        description = client.get("/api/openapi.json").json()
        assert not any(
            "422" in operation["responses"]
            for path in description["paths"].values()
            for operation in path.values()
        )
        for method, path, body, status in (
            ("GET", "/api/v1/nothing", None, 404),
            ("GET", "/api/v1/jobs?limit=0", None, 400),
            ("GET", "/api/v1/jobs?status=odd", None, 400),
            ("POST", "/api/v1/datasets", {"nonsense": 1}, 400),
            ("POST", "/api/v1/trust", {"name": "x", "public_key": "zz"}, 400),
            ("PATCH", "/api/v1/models/ghost", {"tags": 5}, 400),
        ):
            answer = client.request(method, path, json=body)
            assert answer.status_code == status, answer.text
            error = answer.json()["error"]
            assert set(error) == {"code", "message", "hint", "field"}
            assert error["message"]
