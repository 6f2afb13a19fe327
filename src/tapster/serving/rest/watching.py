"""What holders of the right `metrics:read` see of the workers: the metrics page.

It asks for no more than a turn of the event loop at a time, so requests go on meanwhile.
"""

import logging
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.serving import exposition
from tapster.serving.metrics import Metrics
from tapster.serving.rest.calls import STATUS
from tapster.serving.rest.open_answers import refuse
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service

log = logging.getLogger(__name__)

Answered = tuple[int, bytes, bytes]
JSON: Final = b"application/json"
KINDS: Final = frozenset({"metrics"})


class Watching:
    """The routes of those who watch."""

    def __init__(self, service: Service) -> None:
        folder = service.settings.home / "run"
        self._metrics = Metrics(service.slots, service.engine, service.region, folder)

    async def answer(self, route: Route, scope: dict[str, Any]) -> Answered:
        """Status, content type and body."""
        try:
            return await self._page(scope)
        except TapsterError as error:
            return STATUS[error.code], JSON, refuse(error)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            failure = TapsterError("internal", "the server failed on this request")
            return 500, JSON, refuse(failure)

    async def _page(self, scope: dict[str, Any]) -> Answered:
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        page = await self._metrics.page(exposition.wanted(accept))
        return 200, page.kind, page.text()
