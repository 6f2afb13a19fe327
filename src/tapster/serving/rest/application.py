"""Everything on the inference port that is not inference: a plain ASGI application.

The protocol class has already decided who calls and which route it is; it hands both over in the
scope's `state`. Every answer is made at once, in memory.
"""

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.serving.gate import Pass
from tapster.serving.rest import open_models, tf_serving
from tapster.serving.rest.bodies import encode, invalid
from tapster.serving.rest.calls import STATUS
from tapster.serving.rest.routes import WATCHING, Route
from tapster.serving.rest.service import Service, wire_of
from tapster.serving.rest.watching import Watching

log = logging.getLogger(__name__)

Message = dict[str, Any]
Answered = tuple[int, bytes, bytes]
JSON: Final = b"application/json"


class Application:
    """Health, metadata, state of versions, and metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._watching = Watching(service)
        self._version = version("tapster")
        self._kinds: dict[str, Callable[[Route, Pass], Any]] = {
            "v2.server": self._server,
            "v2.model": self._model,
            "v2.model_ready": self._model_ready,
            "v1.models": self._models,
            "v1.status": self._status,
            "v1.metadata": self._metadata,
            "v1.other": self._other,
        }

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """See the ASGI specification."""
        route, holder = scope["state"]["route"], scope["state"]["pass"]
        if route.kind in WATCHING and holder is not None:
            status, kind, body = await self._watching.answer(route, scope)
        else:
            status, kind, body = self._answer(route, holder)
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _answer(self, route: Route, holder: Pass | None) -> Answered:
        service = self._service
        try:
            if route.kind == "v2.live":
                return 200, JSON, b'{"live":true}'
            if route.kind == "v2.ready":
                ready = service.ready
                return (200, JSON, b'{"ready":true}') if ready else (503, JSON, b'{"ready":false}')
            if holder is None:
                raise TapsterError("unauthenticated", "a key is needed")
            return 200, JSON, encode(self._kinds[route.kind](route, holder))
        except TapsterError as error:
            return STATUS[error.code], JSON, wire_of(route).refuse(error)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            failure = TapsterError("internal", "the server failed on this request")
            return 500, JSON, wire_of(route).refuse(failure)

    def _server(self, route: Route, holder: Pass) -> Message:
        return {
            "name": "tapster",
            "version": self._version,
            "extensions": open_models.EXTENSIONS,
        }

    def _model(self, route: Route, holder: Pass) -> Message:
        endpoint = self._service.endpoint(holder, route)
        return open_models.describe(self._service.target(endpoint, route))

    def _model_ready(self, route: Route, holder: Pass) -> Message:
        endpoint = self._service.endpoint(holder, route)
        self._service.target(endpoint, route)
        return {"name": endpoint.plan.name, "ready": True}

    def _models(self, route: Route, holder: Pass) -> Message:
        endpoints = self._service.engine.visible(holder.tenant)
        return {
            "object": "list",
            "data": [
                {"id": e.plan.name, "object": "model", "created": 0, "owned_by": e.plan.tenant}
                for e in endpoints
            ],
            "models": [endpoint.plan.name for endpoint in endpoints],
        }

    def _status(self, route: Route, holder: Pass) -> Message:
        endpoint = self._service.endpoint(holder, route)
        target = self._service.target(endpoint, route)
        named = route.version or route.label
        return tf_serving.status(endpoint, [target] if named else endpoint.targets)

    def _metadata(self, route: Route, holder: Pass) -> Message:
        endpoint = self._service.endpoint(holder, route)
        return tf_serving.describe(self._service.target(endpoint, route))

    def _other(self, route: Route, holder: Pass) -> Message:
        raise invalid("only :predict is answered here", hint="send `instances` or `inputs` to it")
