"""What holders of the right `metrics:read` see of the workers.

The metrics page, the slowest requests of late (of all workers), and what the threads of the worker
that answers do. None of it holds the event loop up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tapster.contract.errors import TapsterError
from tapster.serving import exposition, sampling, slowest
from tapster.serving.metrics import Metrics
from tapster.serving.rest.bodies import encode
from tapster.serving.rest.calls import STATUS
from tapster.serving.rest.open_answers import refuse
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service

log = logging.getLogger(__name__)

Answered = tuple[int, bytes, bytes | list[bytes]]
JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"
SHOWN: Final = 32
PROFILED_SECONDS: Final = 3.0


class Watching:
    """The routes of those who watch."""

    def __init__(self, service: Service) -> None:
        self._folder = service.settings.home / "run"
        self._metrics = Metrics(service.slots, service.engine, service.region, self._folder)
        self._kinds: dict[str, Callable[[dict[str, Any]], Awaitable[Answered]]] = {
            "metrics": self._page,
            "debug.slow": self._slow,
            "debug.profile": self._profile,
        }

    async def answer(self, route: Route, scope: dict[str, Any]) -> Answered:
        """Status, content type and body."""
        try:
            return await self._kinds[route.kind](scope)
        except TapsterError as error:
            return STATUS[error.code], JSON, refuse(error)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            failure = TapsterError("internal", "the server failed on this request")
            return 500, JSON, refuse(failure)

    async def _page(self, scope: dict[str, Any]) -> Answered:
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        page = await self._metrics.page(exposition.wanted(accept))
        return 200, page.kind, page.pieces

    async def _slow(self, scope: dict[str, Any]) -> Answered:
        limit = int(_number(scope, "limit", SHOWN))
        requests = await asyncio.to_thread(slowest.merged, self._folder, limit)
        return 200, JSON, encode({"requests": requests})

    async def _profile(self, scope: dict[str, Any]) -> Answered:
        seconds = _number(scope, "seconds", PROFILED_SECONDS)
        return 200, TEXT, (await asyncio.to_thread(sampling.sample, seconds)).encode()


def _number(scope: dict[str, Any], name: str, default: float) -> float:
    """A number of the query. Raises TapsterError(invalid)."""
    query = parse_qs(urlsplit(scope["raw_path"].decode("ascii", "replace")).query)
    given = query.get(name)
    if not given:
        return default
    if not given[-1].isascii() or not given[-1].replace(".", "", 1).isdigit():
        raise TapsterError("invalid", f"{name} must be a number", field=name)
    return float(given[-1][:9])
