"""Everything on the inference port that is not inference: a plain ASGI application.

The protocol class has already decided who calls and which route it is; it hands both over in the
scope's `state`.
"""

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final

import msgspec
from msgspec import Struct

from tapster.contract.errors import TapsterError
from tapster.serving.engine import Endpoint
from tapster.serving.gate import Pass
from tapster.serving.model import FAILED
from tapster.serving.rest import open_models, tf_models
from tapster.serving.rest.bodies import decode, encode
from tapster.serving.rest.calls import STATUS
from tapster.serving.rest.routes import MANAGING, WATCHING, Route
from tapster.serving.rest.service import Service, wire_of
from tapster.serving.rest.watching import Watching

log = logging.getLogger(__name__)

Message = dict[str, Any]
Answered = tuple[int, bytes, bytes]
JSON: Final = b"application/json"
# What KServe's protocol v1 and the Open Inference Protocol call alive.
ALIVE: Final = {"v1.live": b'{"status":"alive"}', "v2.live": b'{"live":true}'}


class _Index(Struct):
    """What may be asked of the index: only those that are ready."""

    ready: bool = False


class _Manage(Struct):
    """What may be said of a model that is to come or go."""

    parameters: dict[str, Any] | None = None


_INDEX: Final = msgspec.json.Decoder(_Index)
_MANAGE: Final = msgspec.json.Decoder(_Manage)


class Application:
    """Health, metadata, state of versions, statistics, the repository, and metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._watching = Watching(service)
        self._version = version("tapster")
        self._kinds: dict[str, Callable[[Route, Pass, bytes], Any]] = {
            "v2.server": self._server,
            "v2.model": self._model,
            "v2.model_ready": self._model_ready,
            "v2.stats": self._statistics,
            "v2.index": self._index,
            "v1.models": self._models,
            "v1.status": self._status,
            "v1.metadata": self._metadata,
        }

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """See the ASGI specification."""
        state = scope["state"]
        route, holder = state["route"], state["pass"]
        if route.kind in WATCHING and holder is not None:
            status, kind, found = await self._watching.answer(route, scope)
            pieces = found if isinstance(found, list) else [found]
        else:
            given = (await receive()).get("body", b"") if route.method == b"POST" else b""
            status, kind, body = await self._answer(route, holder, given)
            pieces = [body]
        headers = [
            (b"content-type", kind),
            (b"x-request-id", state["id"]),
            (b"content-length", b"%d" % sum(map(len, pieces))),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            more = piece is not pieces[-1]
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _answer(self, route: Route, holder: Pass | None, given: bytes) -> Answered:
        service = self._service
        try:
            if route.kind in ALIVE:
                return 200, JSON, ALIVE[route.kind]
            if route.kind == "v2.ready":
                ready = service.ready
                return (200, JSON, b'{"ready":true}') if ready else (503, JSON, b'{"ready":false}')
            if holder is None:
                raise TapsterError("unauthenticated", "a key is needed")
            if route.kind in MANAGING:
                await self._manage(route, holder, given)
                return 200, JSON, b"{}"
            return 200, JSON, encode(self._kinds[route.kind](route, holder, given))
        except TapsterError as error:
            return STATUS[error.code], JSON, wire_of(route).refuse(error)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            failure = TapsterError("internal", "the server failed on this request")
            return 500, JSON, wire_of(route).refuse(failure)

    # -- Open Inference

    def _server(self, route: Route, holder: Pass, given: bytes) -> Message:
        return {
            "name": "tapster",
            "version": self._version,
            "extensions": open_models.EXTENSIONS,
        }

    def _model(self, route: Route, holder: Pass, given: bytes) -> Message:
        if route.name == "stats" and self._service.engine.find(holder.tenant, "stats") is None:
            return self._statistics(Route("v2.stats"), holder, given)
        endpoint = self._service.endpoint(holder, route)
        return open_models.describe(self._service.target(endpoint, route), route.name)

    def _model_ready(self, route: Route, holder: Pass, given: bytes) -> Message:
        endpoint = self._service.endpoint(holder, route)
        state, error = self._service.target(endpoint, route).state
        if state == FAILED:
            raise TapsterError("unavailable", f"the model cannot be loaded: {error}")
        return {"name": route.name, "ready": True}

    def _statistics(self, route: Route, holder: Pass, given: bytes) -> Message:
        service = self._service
        if route.name:
            endpoint = service.own(holder, route)
            named = [service.target(endpoint, route)] if route.version else endpoint.targets
            found = [(endpoint, target) for target in named]
        else:
            mine = service.engine.mine(holder)
            found = [(endpoint, target) for endpoint in mine for target in endpoint.targets]
        return {"model_stats": [open_models.statistics(service.slots, *each) for each in found]}

    def _index(self, route: Route, holder: Pass, given: bytes) -> list[Message]:
        only_ready = bool(given) and decode(_INDEX, given).ready
        lines = [
            line
            for name, endpoint in self._service.engine.visible(holder)
            for line in open_models.index(name, self._service.engine.versions(endpoint))
        ]
        return [line for line in lines if not only_ready or line["state"] == "READY"]

    async def _manage(self, route: Route, holder: Pass, given: bytes) -> None:
        """Have models come or go. What an endpoint serves is not for this port to say."""
        parameters = decode(_MANAGE, given).parameters if given else None
        if parameters and set(parameters) - {"unload_dependents"}:
            raise TapsterError(
                "invalid",
                "the inference port does not change what a model is",
                hint="import a version and deploy it through the control API",
                field="parameters",
            )
        endpoint, repository = self._service.own(holder, route), self._service.repository
        act = repository.load if route.kind == "v2.load" else repository.unload
        await act(endpoint)

    # -- TensorFlow Serving, KServe v1, OpenAI

    def _models(self, route: Route, holder: Pass, given: bytes) -> Message:
        return tf_models.listing(self._service.engine.visible(holder))

    def _status(self, route: Route, holder: Pass, given: bytes) -> Message:
        endpoint = self._service.endpoint(holder, route)
        versions = self._service.engine.versions(endpoint)
        if route.version or route.label:
            versions = self._named(endpoint, route, versions)
        return tf_models.status(route.name, endpoint, versions)

    def _named(
        self, endpoint: Endpoint, route: Route, versions: list[tuple[str, str, str]]
    ) -> list[tuple[str, str, str]]:
        """That of the versions which a route names, if only to say why it does not answer."""
        found = [each for each in versions if each[0] == route.version]
        if found:
            return found
        wanted = self._service.target(endpoint, route).version
        return [each for each in versions if each[0] == wanted]

    def _metadata(self, route: Route, holder: Pass, given: bytes) -> Message:
        endpoint = self._service.endpoint(holder, route)
        return tf_models.describe(self._service.target(endpoint, route), route.name)
