"""The HTTP protocol class: inference is answered straight from the parser's callbacks.

Every request that is not inference goes to the ASGI application.
"""

import asyncio
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from tapster.contract.errors import TapsterError
from tapster.serving.engine import Endpoint, Target
from tapster.serving.gate import Pass
from tapster.serving.rest.calls import Call
from tapster.serving.rest.connection import Visit
from tapster.serving.rest.forms import PLAIN
from tapster.serving.rest.holding import NEVER
from tapster.serving.rest.reading import AT_ONCE, FormedCall
from tapster.serving.rest.reception import Reception
from tapster.serving.rest.routes import Route
from tapster.serving.rest.sampled import operation
from tapster.serving.rest.seen import Seen
from tapster.serving.rest.service import Service, wire_of
from tapster.serving.shares import BYTES_BITS

# With these, the same head may want another answer, or never comes again, or has no length.
_VARYING: Final = frozenset({b"expect", b"transfer-encoding", b"x-request-id", b"traceparent"})


class InferenceProtocol(Reception):
    """A connection whose inference is answered without any ASGI machinery."""

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(service, config, server_state, app_state, _loop)
        self._learned: Seen | None = None
        self._head = 0

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. A whole request with a head seen before goes past the parser."""
        share = self._share
        if share.spent >= share.most and self._overdraws(data):
            return
        share.spent += 1 + (len(data) >> BYTES_BITS)
        service = self._service
        if self._message or self._rest or self._deaf or self._finishing or service.draining:
            super().data_received(data)
            self._learned = None
            return
        generation = service.gate.generation + service.engine.generation
        seen = service.seen.find(data, generation, self._head)
        if seen is None or seen.holder.ended:
            self._learned = None  # what was parsed in slices has left something here
            super().data_received(data)
            learned, self._learned = self._learned, None
            if learned is not None and not (self._message or self._deaf):
                service.seen.learn(data, learned, generation)
            return
        self._head = seen.head
        self._keep_alive = True
        self.deadline = NEVER
        if seen.form is PLAIN and seen.length <= AT_ONCE:
            call = Call(self, seen.wire, service.region, service.heads, True)
        else:
            call = FormedCall(self, seen.wire, service, True, seen.form)
            call.asked, call.holder = seen.asked, seen.holder
        call.account = seen.account
        call.tenant = seen.holder.tenant
        if seen.holder.tenant != share.tenant:
            self._share = service.shares.of(seen.holder.tenant)
        line = self._line
        line.append(call)
        if seen.target is not None:
            self._answer(call, seen.target, data[seen.head :], seen.timeout)
        else:
            self._answer_drawn(call, seen, data[seen.head :])
        if len(line) >= self._longest:
            self.flow.pause_reading()

    def _answer_drawn(self, call: Call, seen: Seen, body: bytes) -> None:
        """Answer a request with a head that was seen before by whatever version is drawn for it."""
        target = seen.endpoint.target("", "")
        assert target is not None
        try:
            call.account = self._service.accounts.find(seen.holder, target)
        except TapsterError as error:
            call.place = target.place
            call.fail(error)
            return
        self._answer(call, target, body, seen.timeout)

    def _arrived(self, route: Route) -> None:
        if route.call and self._pass is not None:
            self._call(route, self._pass)
            return
        self._line.append(Visit(self._cycle()))
        self._release()
        self.advance()

    def _call(self, route: Route, holder: Pass) -> None:
        service = self._service
        wire = wire_of(route, self._form)
        if self._form is PLAIN and self._size <= AT_ONCE:
            self._release()
            call = Call(self, wire, service.region, service.heads, self._keep_alive)
        else:
            held, self._held = self._held, 0
            call = FormedCall(self, wire, service, self._keep_alive, self._form, held)
            call.asked, call.holder = (route.version, route.label), holder
        if b"x-request-id" in self._noted:
            call.identity = service.heads.identify(self._noted[b"x-request-id"])
        if service.tracer is not None:
            parent = self._noted.get(b"traceparent", b"")
            service.tracer.begin(call, parent, operation(route.kind))
        self._line.append(call)
        try:
            endpoint = service.endpoint(holder, route)
        except TapsterError as error:
            call.fail(error)
            return
        call.place = endpoint.place
        call.tenant = holder.tenant
        sticky = self._noted.get(b"x-sticky-key", b"")
        try:
            timeout = _timeout(self._noted.get(b"x-request-timeout"), endpoint)
            target = service.target(endpoint, route, sticky)
            call.account = service.accounts.find(holder, target)
        except TapsterError as error:
            call.account = service.accounts.unserved(holder, endpoint)
            call.fail(error)
            return
        if self._keep_alive and holder.expires is None and not self._noted.keys() & _VARYING:
            fixed = target if _fixed(route, sticky, target) else None
            seen = Seen(wire, endpoint, holder, target=fixed, form=self._form)
            seen.account, seen.timeout, seen.asked = call.account, timeout, call.asked
            seen.length = int(self._noted.get(b"content-length", b"0"))
            self._learned = seen
        body, self._body = self._body, b""
        self._answer(call, target, body, timeout)

    def _answer(self, call: Call, target: Target, body: bytes | bytearray, timeout: float) -> None:
        call.target = target
        call.place = target.place
        call.deadline = call.began / 1e9 + timeout
        try:
            if len(body) > AT_ONCE or call.form is not PLAIN:
                self._service.reader.read(call, body)
            else:
                call.wire.read(call, body)
                if call.account.meters is None:
                    target.submit(call)
                else:
                    self._service.limiter.submit(call, target)
        except Exception as error:
            call.fail(error)

    def _cycle(self) -> RequestResponseCycle:
        cycle = RequestResponseCycle(
            scope={
                "type": "http",
                "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
                "http_version": self.parser.get_http_version(),
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme or "http",
                "method": self._method.decode("ascii"),
                "root_path": "",
                "path": self.url.decode("ascii", "replace"),
                "raw_path": self.url,
                "query_string": b"",
                "headers": self.headers,
                "state": {
                    "route": self._route,
                    "pass": self._pass,
                    "id": self._service.heads.identify(self._noted.get(b"x-request-id", b"")),
                },
            },
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self._keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body = bytearray(self._body)
        cycle.more_body = False
        cycle.message_event.set()
        return cycle


def _timeout(given: bytes | None, endpoint: Endpoint) -> float:
    """Seconds that a request may take: the endpoint's, or fewer that its caller allows.

    Raises TapsterError(invalid).
    """
    allowed = endpoint.plan.options.deadline
    if given is None:
        return allowed
    try:
        asked = float(given)
    except ValueError:
        asked = 0.0
    if not asked > 0:
        raise TapsterError(
            "invalid",
            "the header x-request-timeout must be a number of seconds above 0",
            hint="for example x-request-timeout: 0.5",
            field="x-request-timeout",
        )
    return min(asked, allowed)


def _fixed(route: Route, sticky: bytes, target: Target) -> bool:
    """Whether requests with this head always go to this target, while the plan stays."""
    return bool(route.version or route.label or sticky) or target is target.endpoint.only
