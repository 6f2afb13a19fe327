"""Hostile requests to the control API: 400s with a reason, and nothing that breaks what follows."""

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tapster.contract.errors import TapsterError
from tapster.datasets import locations
from tests.conftest import Server

_TRAIN = '"dataset": "nothing", "target": "y", "model": "m"'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("training", f'{{{_TRAIN}, "trials": 1{"0" * 400}}}'),
        ("training", f'{{{_TRAIN}, "seed": 1{"0" * 400}}}'),
        ("training", '{"dataset": "\\ud800", "target": "y", "model": "m"}'),
        ("datasets", '{"name": "x", "url": "postgresql://[::1", "query": "SELECT \\ud800"}'),
        ("datasets", '{"name": "x", "url": "sqlite:////a\\u0000b", "table": "t"}'),
        ("datasets", '{"name": "x", "url": "sqlite:///~nobody-x/a", "table": "t"}'),
    ],
)
def test_odd_values_are_refused(server: Server, path: str, body: str) -> None:
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/api/v1/{path}", content=body, headers=headers, timeout=30)
    assert answer.status_code in {400, 404}, answer.text
    assert answer.json()["error"]["message"]
    jobs = httpx.get(f"{server.url}/api/v1/jobs", headers=headers, timeout=30)
    assert jobs.status_code == 200


def test_long_file_names_are_refused(server: Server) -> None:
    headers = {"Authorization": f"Bearer {server.key}"}
    base = f"{server.url}/api/v1/uploads"
    upload = httpx.post(base, headers=headers, timeout=30).json()["id"]
    url = f"{base}/{upload}/files/{'é' * 200}"
    answer = httpx.put(url, content=b"x", headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "filename")


@pytest.mark.parametrize("password", ["p/SECRET", "p#SECRET", "p?SECRET", "p@SECRET", "SECRET"])
def test_no_spelling_of_a_password_is_shown(password: str) -> None:
    shown = locations.masked(f"postgresql://u:{password}@host:1/db")
    assert "SECRET" not in shown
    assert shown.startswith("postgresql://")
    assert locations.masked("postgresql://u:p@host/db?x=1") == "postgresql://u:***@host/db"


def test_a_pipe_is_no_database(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TapsterError, match="no readable file"):
        locations.sqlite_path(f"sqlite:///{tmp_path}/pipe", tmp_path / "home")


def test_without_keys_foreign_pages_are_refused(new_server: Callable[..., Server]) -> None:
    server = new_server(no_auth=True)
    url = f"{server.url}/api/v1/uploads"
    assert httpx.post(url, timeout=30).status_code == 201
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert httpx.post(url, headers=headers, timeout=30).status_code == 403
    local = {"Origin": server.url}
    assert httpx.post(url, headers=local, timeout=30).status_code == 201


def test_a_job_cancelled_in_the_queue_leaves_no_upload(new_server: Callable[..., Server]) -> None:
    server = new_server(job_slots=0)
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=30) as api:
        upload = api.post("/uploads").json()["id"]
        api.put(f"/uploads/{upload}/files/d.csv", content=b"a\n1\n").raise_for_status()
        jobs = [api.post("/datasets", json={"name": "d", "upload": upload}) for _ in range(2)]
        folder = server.home / "uploads" / "default" / upload
        for job, kept in zip(jobs, (True, False), strict=True):
            cancelled = api.post(f"/jobs/{job.json()['id']}/cancel").json()
            assert (cancelled["status"], folder.exists()) == ("cancelled", kept)
