"""The claim loop: take a job, run it in a process, apply what it left.

load (in a transaction), run (outside any), publish (outside any), apply (in a transaction that
the lease's token guards). Whatever is killed in between, the row is recovered by its lease.
"""

import asyncio
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
from sqlalchemy.exc import DBAPIError

from tapster.contract.control import Job
from tapster.contract.errors import TapsterError
from tapster.core.blobs import folder_size, storage_error
from tapster.core.db import Watch
from tapster.core.parts import Parts
from tapster.core.telemetry import logger
from tapster.core.vault import link, short
from tapster.jobs import confidential, service, store
from tapster.jobs.executors import Executor
from tapster.jobs.logs import JobFolders
from tapster.jobs.service import Handler
from tapster.tenancy.audit.acts import acting
from tapster.tenancy.limits.storage import landing

LEASE: Final = 30.0
_RENEW: Final = 5.0
_POLL: Final = 0.1
_FORGOTTEN: Final = 24 * 3600.0

log = logger(__name__)


class LostLeaseError(Exception):
    """Somebody else has the job now; nothing of ours may be written."""


class ClaimLoop:
    """Runs up to `settings.job_slots` jobs at once, until `stop`."""

    def __init__(self, parts: Parts, handlers: Mapping[str, Handler], executor: Executor) -> None:
        self._parts = parts
        self._handlers = handlers
        self._executor = executor
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._running: set[asyncio.Task[None]] = set()
        self._held: dict[tuple[str, int], Job] = {}
        self._folders = JobFolders(parts)
        self._root = self._folders.root
        self._memory = parts.settings.job_memory or int(psutil.virtual_memory().total * 0.8)

    async def run(self) -> None:
        """Recover what a former process left, then claim until cancelled."""
        await asyncio.to_thread(self._recover, True)
        next_recovery = time.monotonic() + LEASE
        watch = Watch(self._parts.db)
        try:
            while True:
                claimed = None
                try:
                    if time.monotonic() >= next_recovery:
                        next_recovery = time.monotonic() + LEASE
                        await asyncio.to_thread(self._recover, False)
                    if len(self._running) < self._parts.settings.job_slots and watch.news():
                        claimed = await asyncio.to_thread(self._claim)
                except Exception:  # a database that is away for a moment ends no running job
                    log.exception("no job could be claimed; trying again")
                    await asyncio.sleep(1)
                if claimed is None:
                    await asyncio.sleep(_POLL)
                    continue
                task = asyncio.create_task(self._process(*claimed))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            for task in list(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _recover(self, starting: bool) -> None:
        sole_owner = starting and self._parts.db.sqlite
        if sole_owner:
            for left in self._root.glob("*/[0-9]*"):  # of attempts that a kill ended
                shutil.rmtree(left, ignore_errors=True)
        with acting("", "jobs.recover"), self._parts.db.write() as tx:
            for (_, token), job in self._held.copy().items():  # not lost, whatever the clock says
                store.write(tx, job, token, lease_expires=time.time() + LEASE)
            lost = service.recover(tx, sole_owner=sole_owner)
            uploads = service.uploads_in_use(tx)
            owners = service.owners(tx, self._folders.left()) if sole_owner else {}
        for name, tenant in owners.items():
            self._folders.end(tenant, name)
        if self._parts.vault is not None:
            self._parts.vault.tidy()
        self._parts.uploads.sweep(uploads, _FORGOTTEN)
        if lost:
            log.warning("jobs recovered", count=lost)

    def _claim(self) -> tuple[Job, int] | None:
        with self._parts.db.read() as tx:  # an idle loop takes no write lock
            if not store.any_claimable(tx):
                return None
        with self._parts.db.write() as tx:
            return store.claim(tx, self._owner, LEASE)

    async def _process(self, job: Job, token: int) -> None:
        folder = self._root / job.id / str(token)
        self._held[job.id, token] = job
        try:
            await self._attempt(job, token, folder)
        except LostLeaseError:
            log.warning("lease lost", job=job.id)
        except TapsterError as error:
            shutil.rmtree(folder, ignore_errors=True)  # first: on a full disk no row can be written
            await asyncio.to_thread(self._fail, job, token, error)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._release, job, token)
            raise
        except Exception as error:
            log.exception("job handler failed", job=job.id)
            crash = TapsterError("internal", f"the job's handler failed: {type(error).__name__}")
            await asyncio.to_thread(self._fail, job, token, crash)
        finally:
            del self._held[job.id, token]
            shutil.rmtree(folder, ignore_errors=True)
            await asyncio.to_thread(self._folders.end, job.tenant, job.id)
            await asyncio.to_thread(self._drop_upload, job)

    async def _attempt(self, job: Job, token: int, folder: Path) -> None:
        handler = self._handlers.get(job.kind)
        if handler is None:
            raise TapsterError("unsupported", f"nothing here runs jobs of kind {job.kind!r}")
        started = time.monotonic()
        try:
            await self._holding(job, token, self._lay_out, handler, job, folder)
        except OSError as error:
            raise self._refused(error) from error
        process = self._executor.start(folder)  # on this thread: see die_with_parent
        try:
            await self._watch(job, token, folder, process, started)
        except BaseException:
            self._executor.cancel(process)
            raise
        result = self._result(folder, job)
        await self._holding(job, token, self._finish, handler, job, token, result, folder / "out")

    async def _holding(
        self, job: Job, token: int, work: Callable[..., None], *arguments: Any
    ) -> None:
        """Do what may take longer than a lease, which is renewed meanwhile.

        Its thread is waited for even if this is cancelled: the folder it works in goes after that.
        """
        working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        try:
            while not (await asyncio.wait({working}, timeout=_RENEW))[0]:
                try:
                    await asyncio.to_thread(self._renew, job, token)
                except (DBAPIError, TapsterError):
                    log.exception("a lease was not renewed; trying again", job=job.id)
        finally:
            await asyncio.wait({working})
        working.result()

    def _renew(self, job: Job, token: int) -> None:
        with self._parts.db.write() as tx:
            store.write(tx, job, token, lease_expires=time.time() + LEASE)

    def _refused(self, error: OSError) -> TapsterError:
        """What to say when a job's folder takes no more; it is in memory if there is a vault."""
        return storage_error(error) if self._parts.vault is None else short(error)

    def _result(self, folder: Path, job: Job) -> dict[str, Any]:
        try:
            return _read_result(folder, job)
        except TapsterError as error:
            if error.code != "storage_full":
                raise
            raise self._refused(OSError(errno.ENOSPC, "")) from None

    def _lay_out(self, handler: Handler, job: Job, folder: Path) -> None:
        with self._parts.db.read() as tx:
            order = handler.load(tx, job)
            kept = store.secrets(tx, job.tenant, job.id)
        self._folders.begin(job.tenant, job.id)
        inputs = self._inputs(job, order, folder / "inputs")
        limit = job.time_limit or self._parts.settings.job_time_limit
        task = {
            "run": handler.run,
            "task": order["task"] | confidential.opened(self._parts.keys, kept),
            "inputs": {label: str(path) for label, path in inputs.items()},
            "deadline": time.time() + limit,
        }
        (folder / "out").mkdir(parents=True)
        (folder / "task.json").write_text(json.dumps(task))

    def _inputs(self, job: Job, order: dict[str, Any], folder: Path) -> dict[str, Path]:
        """Folders with what a job reads; what had to be decrypted is in the job's own."""
        inputs = {label: self._parts.blobs.get(key) for label, key in order["blobs"].items()}
        if self._parts.vault is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            inputs = {label: link(path, folder / label) for label, path in inputs.items()}
        for label, upload in order.get("uploads", {}).items():
            inputs[label] = self._parts.uploads.open(job.tenant, upload, folder / label)
        return inputs

    async def _watch(
        self, job: Job, token: int, folder: Path, process: Any, started: float
    ) -> None:
        """Until the process ends: renew the lease, pass progress on, hold it to its limits."""
        time_limit = job.time_limit or self._parts.settings.job_time_limit
        memory_limit = job.memory_limit or self._memory
        report, renewed, news = _Report(folder / "report"), time.monotonic(), dict[str, Any]()
        while True:
            status = self._executor.poll(process)
            news |= report.read()
            if status.code is not None and status.code < 0:
                raise service.died(job)
            if status.memory > memory_limit:
                raise _over_memory(status.memory, memory_limit)
            now = time.monotonic()
            if status.code is None and now - started > time_limit:
                raise TapsterError(
                    "deadline",
                    f"the job ran longer than its limit of {time_limit:g} s",
                    hint="give it a larger time limit",
                )
            if now - renewed > _RENEW:
                news["lease_expires"] = time.time() + LEASE
            told = await self._told(job, token, news)
            if told:
                renewed, news = now if "lease_expires" in news else renewed, {}
            if told and status.code is not None:
                return
            await asyncio.sleep(_POLL if told else 1)

    async def _told(self, job: Job, token: int, news: dict[str, Any]) -> bool:
        """Whether the row has the news. A database that is away for a moment ends no job."""
        try:
            await asyncio.to_thread(self._beat, job, token, news)
        except (DBAPIError, TapsterError) as error:
            if isinstance(error, TapsterError) and error.code != "unavailable":
                raise
            log.exception("a job's row cannot be reached; trying again", job=job.id)
            return False
        return True

    def _beat(self, job: Job, token: int, news: dict[str, Any]) -> None:
        with self._parts.db.read() as tx:
            cancelling = store.cancelling(tx, job, token)
        if cancelling is None:
            raise LostLeaseError
        if cancelling:
            raise service.cancelled()
        if news:
            with self._parts.db.write() as tx:
                if not store.write(tx, job, token, **news):
                    raise LostLeaseError

    def _finish(
        self, handler: Handler, job: Job, token: int, result: dict[str, Any], out: Path
    ) -> None:
        self._beat(job, token, {})
        with self._room(job, out), self._parts.storage:
            result = handler.publish(self._parts, job, result, out)
            with self._ending(job), self._parts.db.write() as tx:
                if not service.succeed(tx, job, token, handler.apply(tx, job, result)):
                    raise LostLeaseError

    def _room(self, job: Job, out: Path) -> AbstractContextManager[None]:
        """Room for what a job made, in place of the upload it was made from."""
        upload = str(job.spec.get("upload") or "")
        leaving = self._parts.uploads.size(job.tenant, upload) if upload else 0
        return landing(self._parts, job.tenant, folder_size(out), leaving)

    def _fail(self, job: Job, token: int, error: TapsterError) -> None:
        with self._ending(job), self._parts.db.write() as tx:
            service.fail(tx, job, token, error)

    def _ending(self, job: Job) -> AbstractContextManager[object]:
        """What ends a job is recorded: nobody asks for it at that moment."""
        return acting(job.tenant, f"jobs.end {job.kind}", f"job={job.id}")

    def _release(self, job: Job, token: int) -> None:
        with self._parts.db.write() as tx:
            service.release(tx, job, token)

    def _drop_upload(self, job: Job) -> None:
        """Remove the upload of a job that has ended for good."""
        upload = job.spec.get("upload")
        if not upload:
            return
        with self._parts.db.read() as tx:
            needed = str(upload) in service.uploads_in_use(tx)
        if not needed:
            self._parts.uploads.remove(job.tenant, str(upload))


class _Report:
    """The progress lines a job has appended since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> dict[str, Any]:
        """The newest line as columns of the job's row; empty when there is none."""
        with suppress(FileNotFoundError, ValueError):
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offset += len(whole)
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                last = lines[-1]
                news = {
                    "progress": min(1.0, max(0.0, float(last["progress"]))),
                    "phase": str(last["phase"])[:100],
                    "message": str(last["message"])[:1000],
                }
                data = [line["data"] for line in lines if line["data"]]
                return {**news, "data": data[-1]} if data else news
        return {}


def _read_result(folder: Path, job: Job) -> dict[str, Any]:
    try:
        answer = json.loads((folder / "result.json").read_text())
    except (FileNotFoundError, ValueError):
        raise service.died(job) from None
    if "error" in answer:
        raise TapsterError.from_dict(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


def _over_memory(used: int, limit: int) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"the job used {used >> 20} MiB of memory; its limit is {limit >> 20} MiB",
        hint="use less data, a smaller search, or raise the job's memory limit",
    )
