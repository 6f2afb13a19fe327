"""Erasures over HTTP, and the work that finishes them."""

import asyncio
import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends

from tapster.contract.control import Erasure, Principal
from tapster.core.db import Watch
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.audit.acts import acting
from tapster.tenancy.erasure import service
from tapster.tenancy.erasure.service import Endings

_Reader = Annotated[Principal, Depends(need("tenants:read"))]
_Writer = Annotated[Principal, Depends(need("tenants:write"))]
_POLL: Final = 0.2
_SWEEP: Final = 5.0


def routes(parts: Parts) -> APIRouter:
    """The routes under /tenants/{tenant} about its end."""
    router = APIRouter(prefix="/tenants/{tenant}", tags=["tenants"])

    @router.post("/erase", status_code=202)
    def erase_tenant(who: _Writer, tenant: str) -> Erasure:
        """Destroy a tenant: its data key and sessions at once, its files and rows soon after."""
        with parts.db.write() as tx:
            return service.begin(tx, tenant, who.key_id)

    @router.get("/erasures")
    def list_erasures(who: _Reader, tenant: str) -> list[Erasure]:
        """Erasures of a tenant of this name, newest first, with their receipts."""
        with parts.db.read() as tx:
            return service.history(tx, tenant)

    return router


async def go_on(parts: Parts, endings: Endings) -> None:
    """Finish what has begun, now and whenever there is more, until cancelled."""
    watch = Watch(parts.db)
    left, swept = 0, 0.0
    while True:
        if left or watch.news():
            with acting("", "tenants.erase"):
                left = await asyncio.to_thread(endings.go_on)
                if time.monotonic() - swept > _SWEEP:
                    swept = time.monotonic()
                    await asyncio.to_thread(endings.sweep)
        await asyncio.sleep(_POLL)
