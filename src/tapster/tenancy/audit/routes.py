"""The record over HTTP. Looking at it is recorded too."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from tapster.contract.audit import AuditLine, Head, micros
from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.audit import service
from tapster.tenancy.audit.heads import Heads
from tapster.tenancy.audit.store import Selection

_Auditor = Annotated[Principal, Depends(need("audit:read"))]
_JSON_LINES = "application/x-ndjson"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {_JSON_LINES: {}}, "description": "JSON objects, one a line"}
}


def _selection(
    tenant: Annotated[str, Query(max_length=64)] = "",
    since: Annotated[float | None, Query(ge=0, le=1e11, description="seconds since 1970")] = None,
    until: Annotated[float | None, Query(ge=0, le=1e11, description="and before this")] = None,
    action: Annotated[str, Query(max_length=200, description="part of the action")] = "",
    who: Annotated[str, Query(max_length=64, description="id of a key or a member")] = "",
) -> Selection:
    if any(not text.isprintable() for text in (tenant, action, who)):
        raise TapsterError("invalid", "a filter holds characters that no line has", field="action")
    return Selection(
        tenant=tenant,
        since=None if since is None else micros(since),
        until=None if until is None else micros(until),
        action=action,
        who=who,
    )


_Wanted = Annotated[Selection, Depends(_selection)]


def routes(parts: Parts, heads: Heads) -> APIRouter:
    """The routes under /audit."""
    router = APIRouter(prefix="/audit", tags=["audit"])

    @router.get("")
    def list_lines(
        who: _Auditor,
        wanted: _Wanted,
        before: Annotated[int, Query(ge=0, le=1 << 53, description="below this number")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> list[AuditLine]:
        """List lines, newest first: the tenant's own, or in the installation's tenant all."""
        return service.listing(parts.db, service.view_of(who), wanted, before, limit)

    @router.get("/head")
    def show_head(who: _Auditor) -> Head:
        """The newest line's number and hash, signed: keep it, and a cut is found later."""
        return service.head(parts.db, heads, service.view_of(who))

    @router.get("/verify", response_class=StreamingResponse, responses=_STREAM)
    def verify_lines(who: _Auditor) -> StreamingResponse:
        """Check every line: progress as `{"checked", "last"}`, at the end the verdict."""
        return StreamingResponse(
            _verdict(parts, heads, service.view_of(who)), media_type=_JSON_LINES
        )

    @router.get("/export", response_class=StreamingResponse, responses=_STREAM)
    def export_lines(who: _Auditor, wanted: _Wanted) -> StreamingResponse:
        """Send lines as JSON, oldest first, and a signed seal as the last one."""
        found = service.export(parts.db, heads, service.view_of(who), wanted)
        return StreamingResponse(found, media_type=_JSON_LINES)

    return router


def _verdict(parts: Parts, heads: Heads, view: str) -> Iterator[bytes]:
    for found in service.check(parts.db, heads, view):
        yield msgspec.json.encode(found if isinstance(found, dict) else asdict(found)) + b"\n"
