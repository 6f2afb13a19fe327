"""Changes of tenants' data keys over HTTP, and the work that brings them to their end."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends

from tapster.contract.control import Principal
from tapster.contract.encryption import Rekeying
from tapster.core.db import Watch
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.datakeys import service
from tapster.tenancy.datakeys.service import Resealing
from tapster.tenancy.in_force import InForce

_Reader = Annotated[Principal, Depends(need("tenants:read"))]
_Writer = Annotated[Principal, Depends(need("tenants:write"))]
_POLL: Final = 0.2


def routes(parts: Parts) -> APIRouter:
    """The routes under /tenants/{tenant} about its data key."""
    router = APIRouter(prefix="/tenants/{tenant}", tags=["tenants"], route_class=InForce)

    @router.post("/rekey", status_code=202)
    def rekey_tenant(who: _Writer, tenant: str) -> Rekeying:
        """Give a tenant another data key; what lies sealed is sealed anew, the former destroyed."""
        with parts.db.write() as tx:
            return service.begin(tx, parts.keys, tenant, who.key_id)

    @router.get("/rekeyings")
    def list_rekeyings(who: _Reader, tenant: str) -> list[Rekeying]:
        """How a tenant was given other data keys, newest first."""
        with parts.db.read() as tx:
            return service.listing(tx, tenant)

    return router


async def go_on(parts: Parts, resealing: Resealing) -> None:
    """Go on with what has begun, now and whenever there is more, until cancelled."""
    watch, left = Watch(parts.db), 0
    while parts.keys is not None:
        if left or watch.news():
            left = await asyncio.to_thread(resealing.go_on)
        await asyncio.sleep(_POLL)
