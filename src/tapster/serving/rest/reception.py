"""What arrives on a connection, and whether it may go on.

Who calls is asked, and the request's framing and form are looked at, when its headers are whole,
before any of its body is kept. The parser calls back; a refusal waits for its place in line.
"""

import asyncio
from abc import abstractmethod
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from tapster.contract.errors import Code, TapsterError
from tapster.serving.gate import Pass, denial
from tapster.serving.rest.calls import STATUS, Turn
from tapster.serving.rest.connection import CONTINUE, Connection, StopError
from tapster.serving.rest.forms import PLAIN, form_of
from tapster.serving.rest.holding import NEVER
from tapster.serving.rest.routes import UNKNOWN, Route
from tapster.serving.rest.service import Service, wire_of
from tapster.serving.slots import REFUSED

MAX_HEADERS: Final = 256
SMALL_BODY: Final = 64 * 1024

# Headers that are looked at, and those of them that may come in several lines.
_NOTED: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"traceparent",
        b"x-request-id",
        b"x-request-timeout",
        b"x-sticky-key",
    }
)
_LISTS: Final = frozenset({b"accept", b"accept-encoding", b"content-encoding", b"traceparent"})
_KEYS: Final = frozenset({"unauthenticated", "forbidden"})
_UPGRADING: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Reception(Connection):
    """A connection whose requests are examined; what then becomes of them is a subclass's."""

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(service, config, server_state, app_state, _loop)
        self._authorization = b""
        self._generation = -1
        self._known: Pass | None = None
        self._begin()

    @abstractmethod
    def _arrived(self, route: Route) -> None:
        """A request that may go on is whole: put it in line."""

    def _without_upgrade(self, rest: bytes | memoryview) -> None:
        """Serve a request that offers an upgrade as if it did not (RFC 9110, 7.8)."""
        head = [self._method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in _UPGRADING:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"".join([*head, b"\r\n"]))
        if len(rest) and not self._deaf:
            self._feed(rest)

    # -- the parser's callbacks

    def _begin(self) -> None:
        self._message = False
        self._in_body = False
        self._partial = 0
        self._size = 0
        self._trailing = 0
        self._most = self._settings.max_body
        self._body: bytes | bytearray = b""
        self._noted: dict[bytes, bytes] = {}
        self._refusal: bytes | None = None
        self._upgrade = False
        self._wants_continue = False
        self._method = b""
        self._keep_alive = True
        self._route = UNKNOWN
        self._form = PLAIN
        self._pass: Pass | None = None

    def on_message_begin(self) -> None:
        """See httptools."""
        self._begin()
        self._message = True
        self.url = b""
        self.headers = []
        if not self._line:
            self.deadline = self.loop.time() + self._settings.receive_timeout

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self.url += url
        self._size = self._count(self._size, len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are counted and forgotten."""
        size = len(name) + len(value) + 4
        if self._in_body:
            self._trailing = self._count(self._trailing, size)
            return
        self._size = self._count(self._size, size)
        name = name.lower()
        headers = self.headers
        headers.append((name, value))
        if name in _NOTED:
            if name in self._noted:
                if name not in _LISTS:
                    self._refuse_now(400, "invalid", f"the header {name.decode()} is there twice")
                    raise StopError
                value = self._noted[name] + b", " + value
            self._noted[name] = value
        if len(headers) > MAX_HEADERS:
            self._refuse_now(431, "invalid", f"there are more than {MAX_HEADERS} headers")
            raise StopError

    def _count(self, before: int, size: int) -> int:
        """The sum. Stops when headers, or trailers, come to more than they may."""
        if before + size > self._settings.max_headers:
            self._refuse_now(431, "invalid", "the headers are too large")
            raise StopError
        return before + size

    def on_headers_complete(self) -> None:
        """See httptools."""
        parser = self.parser
        self._method = parser.get_method()
        self._in_body = True
        self._size = 0
        if self._method == b"CONNECT":
            self._refuse_now(405, "invalid", "this server is no proxy", allow="GET, POST")
            raise StopError
        if parser.should_upgrade():
            self._upgrade = True
            return
        self._keep_alive = parser.should_keep_alive() and not self._service.draining
        self._route = self._service.routes.find(self.url)
        if not self._line:
            self.deadline = self.loop.time() + self._settings.receive_timeout
        self._examine(self._route, self._noted)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._refusal is not None:
            self._size += len(body)
        elif not self._body:
            self._body = body
            self._size = len(body)
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
            self._size += len(body)
        if self._size > self._most:
            self._too_large()

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._upgrade:
            return
        self._message = False
        self._wants_continue = False  # it did not wait, and a 100 now would be the next answer's
        self._share.spent += 1
        self.deadline = NEVER
        if not self._keep_alive:
            self._deaf = True
        if self._refusal is None:
            self._arrived(self._route)
            return
        self._line.append(Turn(self._keep_alive, self._refusal))
        self._release()
        self.advance()

    def _coming(self) -> int:
        """See Connection: a body without a length is expected to double."""
        if self._refusal is not None:
            return 0
        length = self._noted.get(b"content-length")
        return int(length) if length else max(2 * len(self._body), SMALL_BODY)

    # -- what is asked

    def _examine(self, route: Route, noted: dict[bytes, bytes]) -> None:
        """Decide, before any of the body is kept, whether this request goes on."""
        length = noted.get(b"content-length", b"0")
        self._examine_framing(noted)
        if not route.public:
            self._pass = self._admit(noted.get(b"authorization", b""))
            named = self._pass is None or not route.name or self._pass.names(route.name)
            if self._pass is None or not (named and self._pass.may(route.right)):
                error = denial(self._pass)
                self._service.region.add(REFUSED)
                self._refuse(STATUS[error.code], error.code, error.message, error.hint)
                return
        unknown = route.kind in {"unknown", "plain.unknown"}
        if not (route.call or unknown):
            self._most = min(self._most, SMALL_BODY)
        if len(length) > 15 or int(length) > self._most:
            self._too_large()
        if unknown:
            self._refuse(404, "not_found", "there is nothing at this path")
        elif self._method != route.method:
            allowed = route.method.decode()
            self._refuse(405, "invalid", f"this path answers {allowed} only", allow=allowed)
        elif not route.call or self._examine_body(route, noted):
            self._meet(noted.get(b"expect"))

    def _examine_framing(self, noted: dict[bytes, bytes]) -> None:
        host = noted.get(b"host")
        old = self.parser.get_http_version() == "1.0"
        if host is None:
            if not old:
                self._refuse_now(400, "invalid", "the header host is missing")
                raise StopError
        elif not self._service.knows(host):
            self._refuse_now(403, "forbidden", "without keys, only this machine's name is answered")
            raise StopError
        if old and b"transfer-encoding" in noted:  # nobody in between need know it (RFC 9112, 6.1)
            self._refuse_now(400, "invalid", "HTTP/1.0 has no transfer encodings")
            raise StopError
        if noted.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._refuse_now(400, "invalid", "only the transfer encoding chunked is understood")
            raise StopError

    def _examine_body(self, route: Route, noted: dict[bytes, bytes]) -> bool:
        """Whether a call's body is of a form that is understood."""
        try:
            self._form = form_of(
                noted, tables=route.kind == "plain.predict", binary=route.kind == "v2.infer"
            )
        except TapsterError as error:
            self._refuse(STATUS[error.code], error.code, error.message, error.hint)
            return False
        return True

    def _meet(self, expected: bytes | None) -> None:
        """Tell a client that waits for it to go on (RFC 9110, 10.1.1)."""
        if expected is None or self.parser.get_http_version() == "1.0":
            return
        if expected.lower() != b"100-continue":
            self._refuse(417, "invalid", "only 100-continue can be expected")
        elif self._line:
            self._wants_continue = True
        else:
            self.transport.write(CONTINUE)

    def _admit(self, header: bytes) -> Pass | None:
        """The pass of a key, worked out once for as long as the plan's keys stay the same."""
        gate = self._service.gate
        known = self._known
        if (
            known is None
            or known.ended
            or known.expires is not None
            or gate.generation != self._generation
            or header != self._authorization
        ):
            known = gate.admit(header)
            self._known, self._authorization, self._generation = known, header, gate.generation
        if known is not None and known.tenant != self._share.tenant:
            self._share = self._service.shares.of(known.tenant)
        return known

    # -- refusals

    def _refuse(
        self, status: int, code: Code, message: str, hint: str = "", *, allow: str = ""
    ) -> None:
        """Refuse this request; its body is read and dropped if it is small."""
        length = self._noted.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in self._noted
        if chunked or b"expect" in self._noted or len(length) > 9 or int(length) > SMALL_BODY:
            self._refuse_now(status, code, message, hint, allow=allow)
            raise StopError
        error = TapsterError(code, message, hint=hint)
        self._refusal = self._spell(status, error, self._keep_alive, allow)

    def _refuse_now(
        self, status: int, code: Code, message: str, hint: str = "", *, allow: str = ""
    ) -> None:
        """Refuse this request and hear no more from this connection."""
        self._deaf = True
        self._message = True
        self._body = b""
        self._release()
        error = TapsterError(code, message, hint=hint)
        self._line.append(Turn(False, self._spell(status, error, False, allow)))
        self.advance()

    def _too_large(self) -> None:
        hint = "send fewer rows at once" if self._route.call else ""
        self._refuse_now(413, "too_large", f"the body is larger than {self._most} bytes", hint)
        raise StopError

    def _spell(self, status: int, error: TapsterError, keep_alive: bool, allow: str) -> bytes:
        if error.code not in _KEYS:
            self._service.region.refused()
        body = wire_of(self._route).refuse(error)
        heads = self._service.heads
        identity = heads.identify(self._noted.get(b"x-request-id", b""))
        response = heads.respond(status, body, keep_alive, identity, allow=allow)
        return response[: len(response) - len(body)] if self._method == b"HEAD" else response
