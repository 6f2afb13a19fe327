"""The claim loop with real processes: results, failures, retries, limits, cancellation, loss."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text, update

from tapster.contract.control import Job
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.jobs import claims, service, store

from .conftest import HANDLERS, Loop


def test_a_job_runs_and_its_result_log_and_progress_are_kept(loop: Loop) -> None:
    job = loop.finished(loop.submit("work", spec={"word": "hello"}))
    assert job.status == "succeeded"
    assert job.result == {
        "word": "HELLO",
        "published": ["thing"],
        "locked": True,  # no deletion can come between storing a blob and naming it in a row
        "applied": True,
    }
    assert (job.progress, job.phase, job.data) == (1.0, "done", {"board": [1, 2]})
    folder = loop.parts.settings.home / "jobs" / job.id
    assert (folder / "log").read_text() == "working on hello\n"
    loop.stop()
    assert [path.name for path in folder.iterdir()] == ["log"]


def test_a_refusal_is_final_and_says_why(loop: Loop) -> None:
    job = loop.finished(loop.submit("refuse"))
    assert (job.status, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert job.error["message"] == "the target is constant"
    assert job.error["hint"] == "choose another"


def test_a_crash_is_retried_then_failed_without_leaking_its_text(loop: Loop) -> None:
    job = loop.finished(loop.submit("crash", max_attempts=2))
    assert (job.status, job.attempt) == ("failed", 2)
    assert job.error is not None
    assert job.error["code"] == "internal"
    assert "/secret" not in str(job.error)


def test_a_killed_process_is_tried_again(loop: Loop, tmp_path: Path) -> None:
    marks = str(tmp_path / "marks")
    job = loop.finished(loop.submit("die", spec={"marks": marks, "until": 3}))
    assert (job.status, job.attempt) == ("succeeded", 3)
    assert job.result is not None
    assert job.result["attempts"] == 3


def test_a_process_that_always_dies_fails_the_job(loop: Loop, tmp_path: Path) -> None:
    marks = str(tmp_path / "marks")
    job = loop.finished(loop.submit("die", spec={"marks": marks, "until": 99}))
    assert (job.status, job.attempt) == ("failed", 3)
    assert job.error is not None
    assert "attempt 3 of 3" in job.error["message"]


def test_cancel_ends_the_process_within_two_seconds(loop: Loop, tmp_path: Path) -> None:
    took: list[float] = []
    while len(took) < 5 and min(took, default=2.0) >= 2:  # the machine may have much else to do
        pid_file = tmp_path / f"pid{len(took)}"
        job = loop.submit("hang", spec={"pid_file": str(pid_file)})
        loop.until(job, lambda seen: seen.phase == "hanging")
        pid = int(pid_file.read_text())
        asked = time.monotonic()
        with loop.parts.db.write() as tx:
            service.cancel(tx, "default", job.id)
        assert loop.finished(job).status == "cancelled"
        took.append(time.monotonic() - asked)
        assert not psutil.pid_exists(pid)
    assert min(took) < 2
    with loop.parts.db.write() as tx, pytest.raises(TapsterError, match="ended already: cancelled"):
        service.cancel(tx, "default", job.id)


def test_a_queued_job_is_cancelled_at_once(parts: Parts) -> None:
    with parts.db.write() as tx:
        job = service.submit(tx, "default", kind="work", spec={})
        assert service.cancel(tx, "default", job.id).status == "cancelled"


def test_time_and_memory_limits_end_a_job_for_good(loop: Loop, tmp_path: Path) -> None:
    slow = loop.submit("hang", spec={"pid_file": str(tmp_path / "pid")}, time_limit=0.5)
    greedy = loop.submit("eat", memory_limit=150 << 20)
    late, fat = loop.finished(slow), loop.finished(greedy)
    assert (late.status, late.error and late.error["code"]) == ("failed", "deadline")
    assert fat.status == "failed"
    assert fat.error is not None
    assert "its limit is 150 MiB" in fat.error["message"]


def test_a_stopped_loop_gives_its_jobs_back_untried(parts: Parts, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    loop = Loop(parts)
    job = loop.submit("hang", spec={"pid_file": str(pid_file)})
    loop.until(job, lambda seen: seen.phase == "hanging")
    loop.stop()
    seen = loop.show(job)
    assert (seen.status, seen.attempt) == ("queued", 0)
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_lost_lease_writes_nothing(parts: Parts) -> None:
    with parts.db.write() as tx:
        service.submit(tx, "default", kind="work", spec={})
        claimed = store.claim(tx, "first", 30)
        assert claimed is not None
        job, token = claimed
        service.recover(tx, sole_owner=True)
    with parts.db.write() as tx:
        assert not service.succeed(tx, job, token, {"late": True})
        seen = service.show(tx, "default", job.id)
    assert (seen.status, seen.result) == ("queued", None)


def test_a_lease_is_held_while_files_are_laid_out_and_stored(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones take longer than a lease; another attempt would take as long again."""
    monkeypatch.setattr(claims, "LEASE", 1.0)
    monkeypatch.setattr(claims, "_RENEW", 0.2)
    handler, inputs = HANDLERS["work"], claims.ClaimLoop._inputs

    def slowly(self: claims.ClaimLoop, *given: Any) -> dict[str, Path]:
        time.sleep(3)
        return inputs(self, *given)

    def publish(*given: Any) -> dict[str, Any]:
        time.sleep(3)
        return handler.publish(*given)

    monkeypatch.setattr(claims.ClaimLoop, "_inputs", slowly)
    monkeypatch.setitem(HANDLERS, "work", dataclasses.replace(handler, publish=publish))
    loop = Loop(parts)
    job = loop.finished(loop.submit("work", spec={"word": "large"}))
    loop.stop()
    assert (job.status, job.attempt) == ("succeeded", 1)


def test_a_stopped_loop_takes_no_folder_away_that_is_being_stored(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would be stored under the digest of all of it."""
    handler, storing = HANDLERS["work"], threading.Event()

    def publish(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
        storing.set()
        time.sleep(1)
        parts.blobs.put("default/datasets/whole", out / "thing")
        return result

    monkeypatch.setitem(HANDLERS, "work", dataclasses.replace(handler, publish=publish))
    loop = Loop(parts)
    job = loop.submit("work", spec={"word": "hello"})
    assert storing.wait(60)
    loop.stop()
    assert (parts.blobs.get("default/datasets/whole") / "word").read_text() == "hello"
    assert loop.show(job).status == "succeeded"


def test_a_cancelled_job_that_a_kill_ended_is_not_billed_for_the_time_until_the_next_start(
    parts: Parts,
) -> None:
    now = time.time()
    with parts.db.write() as tx:
        job = service.submit(tx, "default", kind="work", spec={})
        assert store.claim(tx, "gone", 30)
        service.cancel(tx, "default", job.id)
        ago = {"started": now - 7200, "lease_expires": now - 7170}
        tx.execute(update(store.jobs).values(**ago))
        service.recover(tx, sole_owner=True)
        assert service.show(tx, "default", job.id).status == "cancelled"
        (line,) = tx.execute(text("select training from usage_lines")).all()
    assert line.training == pytest.approx(30e9, rel=1e-3)


def test_priority_then_age_decides(parts: Parts) -> None:
    with parts.db.write() as tx:
        old = service.submit(tx, "default", kind="work", spec={})
        new = service.submit(tx, "default", kind="work", spec={})
        urgent = service.submit(tx, "default", kind="work", spec={}, priority=5)
        order = [claimed[0].id for _ in range(3) if (claimed := store.claim(tx, "me", 30))]
        assert store.claim(tx, "me", 30) is None
    assert order == [urgent.id, old.id, new.id]


def test_jobs_of_another_tenant_do_not_exist(parts: Parts) -> None:
    with parts.db.write() as tx:
        job = service.submit(tx, "other", kind="work", spec={})
        with pytest.raises(TapsterError, match="there is no job"):
            service.show(tx, "default", job.id)
        assert service.listing(tx, "default") == []


def test_a_job_process_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The watcher is killed with SIGKILL; its job process must follow."""
    import subprocess
    import sys

    code = f"""
import sys, time, json, os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tapster.jobs.executors.local import LocalExecutor
folder = Path({str(tmp_path)!r}) / "job" / "1"
(folder / "out").mkdir(parents=True)
task = {{"run": "job_runners:hang", "task": {{"pid_file": {str(tmp_path / "pid")!r}}},
        "inputs": {{}}, "deadline": None}}
(folder / "task.json").write_text(json.dumps(task))
LocalExecutor().start(folder)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as watcher:
        pid_file = tmp_path / "pid"
        end = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
        job = psutil.Process(int(pid_file.read_text()))
        os.kill(watcher.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs([job], timeout=30)
    assert (len(gone), alive) == (1, [])


def test_what_a_killed_attempt_left_is_removed_at_the_next_start(parts: Parts) -> None:
    left = parts.settings.home / "jobs" / "job_0123456789abcdef"
    (left / "1" / "scratch").mkdir(parents=True)
    (left / "1" / "task.json").write_text("{}")
    (left / "log").write_text("kept")
    loop = Loop(parts)
    loop.finished(loop.submit("work", spec={"word": "hello"}))
    loop.stop()
    assert [path.name for path in left.iterdir()] == ["log"]


@contextmanager
def without_jobs(loop: Loop, monkeypatch: pytest.MonkeyPatch, asked: str) -> Iterator[None]:
    """The table of jobs is away until `asked` of the store has failed for that."""
    ask, failures = getattr(store, asked), list[Exception]()

    def listen(*given: Any) -> Any:
        try:
            return ask(*given)
        except Exception as error:
            failures.append(error)
            raise

    monkeypatch.setattr(store, asked, listen)
    with loop.parts.db.write() as tx:
        tx.execute(text("alter table jobs rename to away"))
    yield
    end = time.monotonic() + 20
    while not failures and time.monotonic() < end:
        time.sleep(0.02)
    with loop.parts.db.write() as tx:
        tx.execute(text("alter table away rename to jobs"))
    assert failures


def test_the_loop_outlives_a_database_that_is_away(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.finished(loop.submit("work", spec={"word": "before"}))
    with without_jobs(loop, monkeypatch, "any_claimable"):
        pass
    assert loop.finished(loop.submit("work", spec={"word": "back"})).status == "succeeded"


def test_a_running_job_outlives_a_database_that_is_away(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = loop.submit("wait", spec={"until": str(tmp_path / "go")})
    loop.until(job, lambda seen: seen.phase == "waiting")
    with without_jobs(loop, monkeypatch, "cancelling"):
        (tmp_path / "go").touch()  # it ends while nobody can be told
    ended = loop.finished(job)
    assert (ended.status, ended.attempt, ended.data) == ("succeeded", 1, {"over": True})


def test_a_clock_that_is_put_forward_loses_no_running_job(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a suspend, or when a database that was away for long is back."""
    monkeypatch.setattr(claims, "LEASE", 1.0)
    recover, looks = service.recover, list[int]()

    def count(*given: Any, **named: Any) -> int:
        looks.append(recover(*given, **named))
        return looks[-1]

    monkeypatch.setattr(service, "recover", count)
    loop = Loop(parts)
    job = loop.submit("wait", spec={"until": str(tmp_path / "go")})
    loop.until(job, lambda seen: seen.phase == "waiting")
    with parts.db.write() as tx:
        tx.execute(update(store.jobs).values(lease_expires=time.time() - 3600))
    before, end = len(looks), time.monotonic() + 20
    while len(looks) == before and time.monotonic() < end:
        time.sleep(0.02)
    (tmp_path / "go").touch()
    ended = loop.finished(job)
    loop.stop()
    assert (ended.status, ended.attempt) == ("succeeded", 1)
