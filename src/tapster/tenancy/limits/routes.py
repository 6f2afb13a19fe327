"""Limits over HTTP, and the route on which the data plane's agent asks for grants."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.contract.limits import Limit
from tapster.contract.usage import GrantRequest
from tapster.core.parts import Parts
from tapster.tenancy.access import agent_only, need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.limits import grants, service
from tapster.tenancy.limits.service import Resolve, Wanted

_Reader = Annotated[Principal, Depends(need("limits:read"))]
_Writer = Annotated[Principal, Depends(need("limits:write"))]


@dataclass
class Amount:
    """A limit: `metric`, `amount` (null removes it), `period` (day or month), `burst` of a rate."""

    metric: str
    amount: float | None
    period: str = ""
    burst: float | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Limits:
    """Limits to set of a tenant, "" for one's own; of what is asked of `endpoint`, with `key`."""

    limits: list[Amount] = field(default_factory=list)
    tenant: str = ""
    endpoint: str = ""
    key: str = ""
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts, resolve: Resolve) -> APIRouter:
    """The routes under /limits."""
    router = APIRouter(prefix="/limits", tags=["limits"], route_class=InForce)

    @router.get("")
    def show_limits(who: _Reader, tenant: str = "") -> list[Limit]:
        """A tenant's limits, and what is used of each; one's own unless `tenant` is given."""
        with parts.db.read() as tx:
            return service.listing(tx, who, tenant, parts.measures)

    @router.post("")
    def set_limits(who: _Writer, body: Limits) -> list[Limit]:
        """Set limits; each takes the place of the one with its metric, period and scope."""
        wanted = [Wanted(one.metric, one.amount, one.period, one.burst) for one in body.limits]
        with parts.db.write() as tx:
            return service.put(
                tx, who, body.tenant, wanted, resolve, endpoint=body.endpoint, key=body.key
            )

    @router.delete("/{limit}")
    def delete_limit(who: _Writer, limit: str) -> Limit:
        """Remove a limit."""
        with parts.db.write() as tx:
            return service.remove(tx, who, limit)

    return router


def agent_routes(parts: Parts, agent_key: str) -> APIRouter:
    """The route under /internal. Not part of the public description."""
    router = APIRouter(
        prefix="/internal",
        include_in_schema=False,
        dependencies=[Depends(agent_only(agent_key))],
    )
    decoder = msgspec.json.Decoder(GrantRequest)

    def answer(asked: GrantRequest) -> bytes:
        with parts.db.write() as tx:
            return msgspec.json.encode(grants.answer(tx, asked))

    @router.post("/grants")
    async def ask_grants(request: Request) -> Response:
        """What the machine may spend of its tenants' limits."""
        try:
            asked = decoder.decode(await request.body())
        except msgspec.MsgspecError as error:
            raise TapsterError("invalid", f"not a request for grants: {error}") from None
        return Response(await run_in_threadpool(answer, asked), media_type="application/json")

    return router
