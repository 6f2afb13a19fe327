"""Storage: what would make a tenant hold more bytes than it may does not come in.

Bytes are measured where they lie. Those that have been let in, and do not lie there yet, are
`parts.landing`, so that two that come at once cannot both take the last of the room.
"""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from tapster.core.parts import Parts
from tapster.tenancy.limits import quotas, store
from tapster.tenancy.limits.store import Row

# How long (seconds) whoever finds no room waits for what is landing, looking so often.
PATIENCE: Final = 2.0
_LOOK: Final = 0.01


def check(tx: Connection, parts: Parts, tenant: str) -> None:
    """Raise TapsterError(exhausted) if a tenant has no room at all."""
    limits, used = _measured(tx, parts, tenant)
    _hold_to(limits, used, 1)


@contextmanager
def landing(parts: Parts, tenant: str, more: int, leaving: int = 0) -> Iterator[None]:
    """Let `more` bytes of a tenant in; `leaving` bytes of what it has will go when they are there.

    Raises TapsterError(exhausted), naming the limit, when they do not fit.
    """
    _let_in(parts, tenant, more, leaving)
    try:
        yield
    finally:
        parts.landing.end(tenant, more)


async def receive(
    parts: Parts, tenant: str, upload: str, name: str, body: AsyncIterator[bytes]
) -> tuple[str, int]:
    """`Uploads.write`, within the tenant's limits: what is too large is stopped on its way.

    Raises TapsterError(exhausted), after which nothing of the file is left.
    """
    limits, used = await run_in_threadpool(_now, parts, tenant)
    if not limits:
        return await parts.uploads.write(tenant, upload, name, body)
    size = landed = 0

    async def held() -> AsyncIterator[bytes]:
        nonlocal size, landed
        async for chunk in body:
            size += len(chunk)
            _hold_to(limits, used, size)
            yield chunk
        await run_in_threadpool(_let_in, parts, tenant, size)
        landed = size

    try:
        return await parts.uploads.write(tenant, upload, name, held())
    finally:
        parts.landing.end(tenant, landed)


def _let_in(parts: Parts, tenant: str, more: int, leaving: int = 0) -> None:
    """Count `more` bytes as landing, if they fit beside those that lie there and those that land.

    What has just landed may be seen in both places, so that whoever finds no room waits a little
    for what is landing before it is refused.
    """
    until = time.monotonic() + PATIENCE
    while True:
        ends = parts.landing.ends(tenant)
        limits, used = _now(parts, tenant)
        with parts.landing.lock:
            same, others = ends == parts.landing.ends(tenant), parts.landing.of(tenant)
            full = [limit for limit in limits if used - leaving + others + more > limit.amount]
            if same and not full:
                parts.landing.add(tenant, more)
                return
        if full and (not others or time.monotonic() > until):
            raise quotas.refusal(full[0], used + others, more)
        time.sleep(_LOOK)


def _now(parts: Parts, tenant: str) -> tuple[list[Row], int]:
    with parts.db.read() as tx:
        return _measured(tx, parts, tenant)


def _measured(tx: Connection, parts: Parts, tenant: str) -> tuple[list[Row], int]:
    """A tenant's limits of storage, and what it has; that is not asked if there are none."""
    measure = parts.measures.get("storage")
    limits = store.of_metric(tx, tenant, "storage", lock=False) if measure else []
    return limits, measure(tx, tenant) if measure and limits else 0


def _hold_to(limits: list[Row], used: int, more: int) -> None:
    for limit in limits:
        if used + more > limit.amount:
            raise quotas.refusal(limit, used, more)
