"""The control API seen from outside: request ids, metrics, and lines about failures and slowness.

Routes are told by their templates and tenants by their names, so nothing that a caller sends is
logged or becomes a label; an `x-request-id` is taken over if it is short, printable ASCII.
"""

import random
import secrets
import time
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapster.api import PREFIX
from tapster.core.settings import Settings
from tapster.core.telemetry import logger

log = logger(__name__)

MAX_IDENTITY: Final = 128
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Callers there wait for news, on purpose.
_WAITING: Final = "/internal/"


class Observed:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        from prometheus_client import Counter, Histogram

        self._app = app
        self._slow = settings.slow_request
        self._share = settings.access_log
        self._requests = Counter(
            "tapster_control_requests",
            "Requests to the control API, by class of status.",
            ("method", "route", "code"),
        )
        self._seconds = Histogram(
            "tapster_control_request_duration_seconds",
            "From the request's headers to the beginning of its answer.",
            ("method", "route"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _identity(scope)
        began = time.perf_counter()
        answered: dict[str, Any] = {"status": 500, "seconds": 0.0}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered["status"] = message["status"]
                answered["seconds"] = time.perf_counter() - began
                headers = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
                message = {**message, "headers": headers}
            await send(message)

        failure: Exception | None = None
        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if not answered["seconds"]:
                raise
            failure = error
        self._tell(scope, identity, answered["status"], answered["seconds"], failure)

    def _tell(
        self, scope: Scope, identity: str, status: int, seconds: float, failure: Exception | None
    ) -> None:
        """Count a request, and log it if there is a reason to."""
        route = _template(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, f"{status // 100}xx").inc()
        if not route.startswith(_WAITING):
            self._seconds.labels(method, route).observe(seconds)
        found: dict[str, object] = {
            "request_id": identity,
            "tenant": scope.get("state", {}).get("tenant", ""),
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
        }
        if failure is not None or status >= 500:
            log.failure("a request failed", failure, **found)
        elif 0 < self._slow <= seconds and not route.startswith(_WAITING):
            log.warning("slow request", **found)
        elif self._share and random.random() < self._share:
            log.info("request", **found)


def _template(scope: Scope) -> str:
    """The path of the route that answered, with the names of its parameters; `none` for none."""
    found = getattr(scope.get("route"), "path", None)
    if found is None:
        return "none"
    return f"{PREFIX}{found}" if scope["path"].startswith(f"{PREFIX}/") else str(found)


def _identity(scope: Scope) -> str:
    """The request's identifier: the caller's own if it may stand in a log, else one of ours."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    if 0 < len(given) <= MAX_IDENTITY and given.isascii() and given.decode().isprintable():
        return str(given.decode())
    return secrets.token_hex(8)
