"""Endpoints over HTTP: what may be asked together, and how refusals look."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """The control API with the admin's key."""
    headers = {"authorization": f"Bearer {server.key}"}
    url = f"{server.url}/api/v1/endpoints"
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield client


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of a refusal."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "name a model version, or the members of an ensemble"),
        ({"model": "m", "ensemble": {"a": 0.5, "b": 0.5}}, "name a model version"),
        ({"model": "m", "weight": 5, "shadow": True}, "weight and shadow exclude each other"),
        ({"model": "m", "shadow": True, "canary": {}}, "shadow and canary exclude each other"),
        ({"model": "m", "canary": {"speed": 1}}, "canary.speed"),
        ({"model": "m", "weight": "much"}, "weight"),
        ({"model": "m", "color": "red"}, "color"),
        ({"ensemble": {}}, "no version is named"),
        ({"ensemble": {"a@1": "half"}}, "ensemble"),
    ],
)
def test_what_does_not_go_together_is_refused(
    http: httpx.Client, body: dict[str, Any], words: str
) -> None:
    status, code, message = refusal(http.post("/routes/deploy", json=body))
    assert (status, code) == (400, "invalid")
    assert words in message


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"weights": {"a@1": 100}, "shadows": []}, 400, "one after the other"),
        ({"options": {"deadline": 1}}, 404, "there is no endpoint 'routes'"),
        ({"weights": {"a@1": 100}}, 404, "there is no endpoint 'routes'"),
        ({"speed": 1}, 400, "speed"),
        ({"options": 5}, 400, "options"),
    ],
)
def test_changes_that_make_no_sense_are_refused(
    http: httpx.Client, body: dict[str, Any], status: int, words: str
) -> None:
    found, _, message = refusal(http.patch("/routes", json=body))
    assert found == status
    assert words in message


def test_a_refused_deployment_leaves_no_endpoint_behind(http: httpx.Client) -> None:
    assert http.post("/routes/deploy", json={"model": "nothing@1"}).status_code == 404
    assert http.get("/routes").status_code == 404
