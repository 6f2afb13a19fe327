"""A claim loop over a real database, with real job processes."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from tapster.contract.control import FINISHED, Job
from tapster.core.blobs import LocalBlobs
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.core.uploads import Uploads
from tapster.jobs import service
from tapster.jobs.claims import ClaimLoop
from tapster.jobs.executors.local import LocalExecutor
from tapster.jobs.service import Handler

HERE = Path(__file__).parent


def _load(tx: Connection, job: Job) -> dict[str, Any]:
    return {"task": job.spec, "blobs": {}}


def _publish(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    published = sorted(path.name for path in out.iterdir())
    return {**result, "published": published, "locked": parts.storage.locked()}


def _apply(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "applied": True}


HANDLERS = {
    kind: Handler(f"job_runners:{kind}", _load, _publish, _apply)
    for kind in ("work", "refuse", "crash", "die", "hang", "wait", "eat")
}


class Loop:
    """A claim loop in a thread of its own."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(ClaimLoop(self.parts, HANDLERS, LocalExecutor()).run())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def stop(self) -> None:
        """Stop it as a control process that got SIGTERM would."""
        if self._thread.is_alive() and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def submit(self, kind: str, **options: Any) -> Job:
        """Queue a job."""
        with self.parts.db.write() as tx:
            return service.submit(tx, "default", kind=kind, spec=options.pop("spec", {}), **options)

    def show(self, job: Job) -> Job:
        """The job as it is now."""
        with self.parts.db.read() as tx:
            return service.show(tx, "default", job.id)

    def until(self, job: Job, condition: Callable[[Job], bool], seconds: float = 60) -> Job:
        """Wait for a state of the job."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen = self.show(job)
            if condition(seen):
                return seen
            time.sleep(0.02)
        raise AssertionError(f"still {self.show(job)}")

    def finished(self, job: Job) -> Job:
        """Wait for the job's end."""
        return self.until(job, lambda seen: seen.status in FINISHED)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    """A new installation's parts."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    settings = load({}, home=tmp_path)
    db = Database(f"sqlite:///{tmp_path / 'tapster.db'}")
    db.migrate()
    yield Parts(
        settings=settings,
        db=db,
        blobs=LocalBlobs(tmp_path / "blobs"),
        signer=Signer.of(tmp_path / "signing.key"),
        uploads=Uploads(tmp_path / "uploads"),
    )
    db.close()


@pytest.fixture
def loop(parts: Parts) -> Iterator[Loop]:
    """A running claim loop."""
    running = Loop(parts)
    yield running
    running.stop()
