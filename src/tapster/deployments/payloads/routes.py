"""Payloads over HTTP, and the route on which the data plane's agent hands them in."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tapster.contract.control import Endpoint, Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.core.telemetry import logger
from tapster.deployments import service as deployments
from tapster.deployments.payloads import keeping, service
from tapster.deployments.payloads.service import DEFAULT, WEEK, Wanted
from tapster.tenancy.access import agent_only, need
from tapster.tenancy.in_force import InForce

log = logger(__name__)

_Reader = Annotated[Principal, Depends(need("payloads:read"))]
_Writer = Annotated[Principal, Depends(need("payloads:write"))]
_Since = Annotated[float, Query(ge=0, le=1e11, description="seconds since 1970")]
# Bytes of a segment: of a megabyte, and what one payload may add.
_LARGEST: Final = 8 << 20
_JSON_LINES: Final = "application/x-ndjson"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {_JSON_LINES: {}}, "description": "JSON objects, one a line"}
}


@dataclass
class Logging:
    """Which payloads are written down: a share of the requests, `sample`.

    `patterns` name what is taken out of texts (secrets always are), `expressions` are RE2 of one's
    own. Of columns, or tensors, those in `drop` are left out, in `mask` replaced by a word, in
    `hash` by a keyed hash. A payload has at most `size` bytes and is kept for `keep` seconds.
    """

    sample: float = 1.0
    patterns: list[str] = field(default_factory=lambda: list(DEFAULT))
    expressions: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    mask: list[str] = field(default_factory=list)
    hash: list[str] = field(default_factory=list)
    size: int = 16384
    keep: float = WEEK
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts) -> list[APIRouter]:
    """The routes under /payloads, and those of /endpoints that are about logging."""
    return [_switching(parts), _reading(parts), _agreeing(parts)]


def _switching(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/endpoints", tags=["payloads"], route_class=InForce)

    @router.put("/{endpoint}/logging")
    def log_payloads(who: _Writer, endpoint: str, body: Logging) -> Endpoint:
        """Write down what an endpoint is asked and answers, redacted, from now on."""
        wanted = msgspec.convert(asdict(body), Wanted)
        if parts.keys is not None:
            parts.keys.current(who.tenant)  # there must be one to seal with
        with parts.db.write() as tx:
            service.switch_on(tx, who.tenant, endpoint, wanted)
            return deployments.show(tx, who.tenant, endpoint)

    @router.delete("/{endpoint}/logging")
    def log_nothing(who: _Writer, endpoint: str) -> Endpoint:
        """Write down nothing more; what there is stays until its time is up, or it is deleted."""
        with parts.db.write() as tx:
            service.switch_off(tx, who.tenant, endpoint)
            return deployments.show(tx, who.tenant, endpoint)

    return router


def _reading(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/payloads", tags=["payloads"])

    @router.get("/{endpoint}")
    def list_payloads(
        who: _Reader,
        endpoint: str,
        since: _Since = 0.0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    ) -> list[dict[str, Any]]:
        """List what was written down of an endpoint, newest first. That it is read is recorded."""
        return keeping.latest(parts, who.tenant, endpoint, since, limit)

    @router.get("/{endpoint}/export", response_class=StreamingResponse, responses=_STREAM)
    def export_payloads(who: _Reader, endpoint: str, since: _Since = 0.0) -> StreamingResponse:
        """Send what was written down of an endpoint as JSON, oldest first."""
        with parts.db.read() as tx:
            service.check(tx, who.tenant, endpoint)
        found: Iterator[bytes] = keeping.read(parts, who.tenant, endpoint, since)
        return StreamingResponse(found, media_type=_JSON_LINES)

    @router.delete("/{endpoint}")
    def delete_payloads(who: _Writer, endpoint: str) -> dict[str, Any]:
        """Delete what was written down of an endpoint so far."""
        with parts.db.write() as tx:
            count = service.delete(tx, who.tenant, endpoint)
        keeping.sweep(parts, time.time(), parts.settings.payload_bytes)
        return {"endpoint": endpoint, "deleted": count}

    return router


def _agreeing(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/payloads", tags=["payloads"], route_class=InForce)

    @router.put("/{endpoint}/agreement")
    def agree(who: _Writer, endpoint: str) -> dict[str, Any]:
        """Let the owner of a shared endpoint write down what one's own tenant asks of it."""
        with parts.db.write() as tx:
            return service.agree(tx, who.tenant, endpoint, agrees=True)

    @router.delete("/{endpoint}/agreement")
    def disagree(who: _Writer, endpoint: str) -> dict[str, Any]:
        """Let the owner of a shared endpoint write nothing of one's own down any more."""
        with parts.db.write() as tx:
            return service.agree(tx, who.tenant, endpoint, agrees=False)

    return router


def agent_routes(parts: Parts, agent_key: str) -> APIRouter:
    """The route under /internal that takes payloads in."""
    router = APIRouter(
        prefix="/internal", include_in_schema=False, dependencies=[Depends(agent_only(agent_key))]
    )

    @router.post("/payloads", max_body_size=_LARGEST)
    async def take(
        request: Request,
        tenant: Annotated[str, Query(max_length=64)],
        endpoint: Annotated[str, Query(max_length=32)],
        segment: Annotated[str, Query(max_length=32)],
    ) -> dict[str, bool]:
        """A segment of payloads; it is taken in, or nobody wants it, and may go either way."""
        data = await request.body()
        try:
            taken = await run_in_threadpool(keeping.take, parts, tenant, endpoint, segment, data)
        except TapsterError as error:
            if error.code not in {"unprocessable", "not_found"}:
                raise
            log.error("payloads cannot be taken in", segment=segment, reason=str(error))
            taken = False
        return {"taken": taken}

    return router
