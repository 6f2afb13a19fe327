"""Jobs of a real server: killed at every level, cancelled, followed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import tapster
from tapster.client import Client
from tapster.contract.control import Job
from tapster.contract.errors import TapsterError
from tests.conftest import Server


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that these tests kill, with a dataset."""
    folder = tmp_path_factory.mktemp("jobs")
    server = Server(folder / "home").start()
    path = folder / "table.csv"
    path.write_text("x,y\n" + "".join(f"{n % 17},{n % 17 * 2 + n % 3}\n" for n in range(300)))
    with tapster.connect(server.url, key=server.key) as client:
        client.data_add("table", path)
    yield server
    assert server.stop() == 0


def _connect(server: Server) -> Client:
    return tapster.connect(server.url, key=server.key)


def _running(server: Server, client: Client, model: str, trials: int = 0) -> Job:
    """A training whose process is there."""
    options = {"trials": trials, "search": "random"} if trials else {}
    job = client.train("table", "y", model, algorithm="ridge", cv=2, **options)
    end = time.monotonic() + 60
    while not server.children("jobs.child") or client.job(job.id).status != "running":
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


def _kill_child(server: Server, part: str) -> None:
    os.kill(server.children(part)[0].pid, signal.SIGKILL)


def _kill_tree(server: Server) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        ("job", lambda server: _kill_child(server, "jobs.child")),
        ("control", lambda server: _kill_child(server, "tapster.app")),
        ("tree", _kill_tree),
    ],
)
def test_a_killed_training_is_tried_again_and_registers_once(
    installation: Server, name: str, kill: Callable[[Server], None]
) -> None:
    model = f"killed-{name}"
    with _connect(installation) as client:
        job = _running(installation, client, model)
        kill(installation)
    with _connect(installation) as client:
        done = client.wait(job)
        assert (done.status, done.attempt) == ("succeeded", 2)
        assert [version.version for version in client.models_versions(model)] == [1]
        assert [one.id for one in client.jobs(status="running")] == []
    assert installation.children("jobs.child") == []


def test_a_running_training_is_cancelled_within_two_seconds(installation: Server) -> None:
    took: list[float] = []
    with _connect(installation) as client:
        while len(took) < 3 and min(took, default=2.0) >= 2:  # the machine may have much to do
            job = _running(installation, client, "cancelled", trials=1000)
            asked = time.monotonic()
            client.cancel(job.id)
            while client.job(job.id).status == "running":
                assert time.monotonic() - asked < 60
                time.sleep(0.01)
            took.append(time.monotonic() - asked)
            assert client.job(job.id).status == "cancelled"
            assert installation.children("jobs.child") == []
        assert min(took) < 2
        assert "cancelled" not in {version.model for version in client.models_list()}


def test_events_and_logs_follow_a_job_to_its_end(installation: Server) -> None:
    headers = {"authorization": f"Bearer {installation.key}"}
    with _connect(installation) as client:
        job = client.train("table", "y", "followed", algorithm="ridge", cv=2)
    seen: list[Job] = []
    url = f"{installation.url}/api/v1/jobs/{job.id}"
    with httpx.stream("GET", f"{url}/events", headers=headers, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(Job(**json.loads(line.removeprefix("data: "))))
    assert seen[-1].status == "succeeded"
    assert [one.progress for one in seen] == sorted(one.progress for one in seen)
    assert len({one.phase for one in seen}) >= 3
    logs = httpx.get(f"{url}/logs?follow=true", headers=headers, timeout=30)
    assert logs.status_code == 200
    assert logs.text == (installation.home / "jobs" / job.id / "log").read_text()
    assert not any(Path(installation.home / "jobs" / job.id).glob("*/task.json"))


@pytest.mark.parametrize("part", ["logs?follow=true", "events"])
def test_a_key_that_is_revoked_follows_no_job_any_longer(installation: Server, part: str) -> None:
    with _connect(installation) as client:
        made = client.keys_create("developer")
        job = _running(installation, client, "unseen", trials=100_000)
        url = f"{installation.url}/api/v1/jobs/{job.id}/{part}"
        headers = {"Authorization": f"Bearer {made.key}"}
        with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200
            client.keys_revoke(made.id)
            for _ in answer.iter_bytes():
                pass
        assert client.job(job.id).status == "running"
        client.cancel(job.id)
        with pytest.raises(TapsterError):
            client.wait(job.id)
