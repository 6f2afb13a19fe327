"""Changes that are answered once every worker follows them: what was said is then so."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from sqlalchemy.exc import DBAPIError

from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.core.telemetry import logger
from tapster.tenancy.revisions import revision

log = logger(__name__)

# How long at most: a worker may be away, or busy, and what was changed is so all the same.
PATIENT: Final = 1.0
_LOOK: Final = 0.01
_READING: Final = frozenset({"GET", "HEAD"})

# The numbers of the plans that living workers follow.
Followed = Callable[[], list[int]]


class InForce(APIRoute):
    """Routes (`route_class` of a router) that write what the data plane must hear of."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route, and the waiting."""
        handle = super().get_route_handler()
        if _READING.issuperset(self.methods or ()):
            return handle

        async def answer(request: Request) -> Response:
            response = await handle(request)
            state = request.app.state
            await until(state.parts.db, state.followed)
            return response

        return answer


async def until(db: Database, followed: Followed) -> None:
    """Wait, a moment at most, for every worker to follow the newest plan."""
    if not followed():
        return
    try:
        number = await asyncio.to_thread(_newest, db)
    except (DBAPIError, TapsterError) as error:  # what was changed is so, and is answered
        log.warning("nobody knows whether a change is in force", reason=str(error)[:200])
        return
    ends = time.monotonic() + PATIENT
    while any(plan < number for plan in followed()) and time.monotonic() < ends:
        await asyncio.sleep(_LOOK)


def _newest(db: Database) -> int:
    with db.read() as tx:
        return revision(tx)
