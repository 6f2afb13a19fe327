"""Endpoints over HTTP, and the two routes that only the data plane's agent may call."""

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from tapster.contract.control import Endpoint, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import UsageBatch, WorkerState
from tapster.core.db import Watch
from tapster.core.parts import Parts
from tapster.deployments import service
from tapster.tenancy import service as tenancy
from tapster.tenancy.access import agent_only, need

_Reader = Annotated[Principal, Depends(need("endpoints:read"))]
_Writer = Annotated[Principal, Depends(need("endpoints:write"))]
_POLL = 0.05
_FRESH = 5.0


@dataclass
class Deploy:
    """What to serve: NAME, NAME@VERSION or NAME:ALIAS."""

    model: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


class Reports:
    """The newest report of each machine's agent, and when it came (monotonic seconds)."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, UsageBatch]] = {}
        self.count = 0

    def put(self, batch: UsageBatch) -> None:
        """Take a report in."""
        self._latest[batch.agent] = (time.monotonic(), batch)
        self.count += 1

    def workers(self) -> list[WorkerState]:
        """Workers that somebody has heard of within the last seconds."""
        horizon = time.monotonic() - _FRESH
        return [
            worker
            for at, batch in self._latest.values()
            if at >= horizon
            for worker in batch.workers
        ]


def routes(parts: Parts) -> APIRouter:
    """The routes under /endpoints."""
    router = APIRouter(prefix="/endpoints", tags=["endpoints"])

    def look(tenant: str, name: str) -> Endpoint:
        with parts.db.read() as tx:
            return service.show(tx, tenant, name)

    @router.get("")
    def list_endpoints(who: _Reader) -> list[Endpoint]:
        """List endpoints."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.get("/{endpoint}")
    async def show_endpoint(
        who: _Reader,
        endpoint: str,
        request: Request,
        wait: Annotated[float, Query(ge=0, le=60)] = 0,
    ) -> Endpoint:
        """Show an endpoint; with `wait`, answer once no deployment is under way."""
        until = time.monotonic() + wait
        while True:
            seen = await asyncio.to_thread(look, who.tenant, endpoint)
            if seen.status != "loading" or time.monotonic() >= until:
                return seen
            if await request.is_disconnected():
                return seen
            await asyncio.sleep(_POLL)

    @router.post("/{endpoint}/deploy", status_code=202)
    def deploy(who: _Writer, endpoint: str, body: Deploy) -> Endpoint:
        """Begin to serve a model version; traffic moves once every worker has loaded it."""
        with parts.db.write() as tx:
            return service.deploy(tx, who.tenant, endpoint, body.model)

    @router.post("/{endpoint}/rollback", status_code=202)
    def rollback(who: _Writer, endpoint: str) -> Endpoint:
        """Begin to serve what was served before."""
        with parts.db.write() as tx:
            return service.rollback(tx, who.tenant, endpoint)

    @router.delete("/{endpoint}")
    def delete(who: _Writer, endpoint: str) -> dict[str, str]:
        """Stop serving and forget the endpoint."""
        with parts.db.write() as tx:
            service.delete(tx, who.tenant, endpoint)
        return {"deleted": endpoint}

    return router


def agent_routes(parts: Parts, agent_key: str, reports: Reports) -> APIRouter:
    """The routes under /internal: plan down, usage up. Not part of the public description."""
    router = APIRouter(
        prefix="/internal",
        include_in_schema=False,
        dependencies=[Depends(agent_only(agent_key))],
    )

    def revision() -> int:
        with parts.db.read() as tx:
            return tenancy.revision(tx)

    def plan() -> bytes:
        with parts.db.read() as tx:
            return msgspec.json.encode(service.plan(tx, parts.signer.public))

    @router.get("/plan")
    async def get_plan(
        request: Request, after: int = -1, wait: Annotated[float, Query(ge=0, le=60)] = 0
    ) -> Response:
        """The plan once its number exceeds `after`; 204 when it has not within `wait` seconds."""
        until, watch = time.monotonic() + wait, Watch(parts.db)
        while not watch.news() or await asyncio.to_thread(revision) <= after:
            if time.monotonic() >= until or await request.is_disconnected():
                return Response(status_code=204)
            await asyncio.sleep(_POLL)
        return Response(await asyncio.to_thread(plan), media_type="application/json")

    @router.post("/report")
    async def report(request: Request) -> dict[str, str]:
        """What became of the plan, and how much was used."""
        try:
            batch = msgspec.json.decode(await request.body(), type=UsageBatch)
        except msgspec.MsgspecError as error:
            raise TapsterError("invalid", f"not a usage batch: {error}") from None
        reports.put(batch)
        return {"status": "ok"}

    return router
