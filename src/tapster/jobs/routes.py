"""Jobs over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from tapster.contract.control import FINISHED, Job, Principal
from tapster.core.parts import Parts
from tapster.jobs import service
from tapster.jobs.logs import JobFolders
from tapster.tenancy.access import need

_reading = need("jobs:read")
_Reader = Annotated[Principal, Depends(_reading)]
_Writer = Annotated[Principal, Depends(need("jobs:write"))]
_POLL = 0.2


def routes(parts: Parts) -> APIRouter:
    """The routes under /jobs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    def look(tenant: str, identifier: str) -> Job:
        with parts.db.read() as tx:
            return service.show(tx, tenant, identifier)

    @router.get("")
    def list_jobs(
        who: _Reader, status: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 50
    ) -> list[Job]:
        """List jobs, newest first."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant, status, limit)

    @router.get("/{job}")
    def show_job(who: _Reader, job: str) -> Job:
        """Show one job."""
        return look(who.tenant, job)

    @router.post("/{job}/cancel")
    def cancel_job(who: _Writer, job: str) -> Job:
        """Ask a job to end; a running one ends within two seconds."""
        with parts.db.write() as tx:
            seen = service.cancel(tx, who.tenant, job)
            needed = service.uploads_in_use(tx)
        upload = str(seen.spec.get("upload") or "")
        if seen.status in FINISHED and upload and upload not in needed:
            parts.uploads.remove(who.tenant, upload)
        return seen

    @router.get("/{job}/logs", response_class=StreamingResponse)
    def job_logs(
        who: _Reader, job: str, request: Request, follow: bool = False
    ) -> StreamingResponse:
        """What the job's process printed; with `follow`, until the job ends."""
        look(who.tenant, job)
        still = partial(_reading.still, request)
        return StreamingResponse(
            _log_lines(parts, who.tenant, job, follow, still),
            media_type="text/plain; charset=utf-8",
        )

    @router.get("/{job}/events", response_class=StreamingResponse)
    def job_events(who: _Reader, job: str, request: Request) -> StreamingResponse:
        """Server-sent events: the job, as JSON, whenever it changes, until it ends."""
        look(who.tenant, job)

        async def events() -> AsyncIterator[str]:
            last = ""
            while True:
                seen = await asyncio.to_thread(look, who.tenant, job)
                text = json.dumps(asdict(seen))
                if text != last:
                    last = text
                    yield f"data: {text}\n\n"
                if seen.status in FINISHED:
                    return
                await asyncio.sleep(_POLL)
                if not await asyncio.to_thread(_reading.still, request):
                    return

        return StreamingResponse(events(), media_type="text/event-stream")

    return router


async def _log_lines(
    parts: Parts, tenant: str, job: str, follow: bool, still: Callable[[], bool]
) -> AsyncIterator[bytes]:
    folders, offset = JobFolders(parts), 0

    def look() -> Job:
        with parts.db.read() as tx:
            return service.show(tx, tenant, job)

    while True:
        ended = (await asyncio.to_thread(look)).status in FINISHED
        for piece in folders.read(tenant, job, offset):
            offset += len(piece)
            yield piece
        if ended or not follow:
            return
        await asyncio.sleep(_POLL)
        if not await asyncio.to_thread(still):
            return
