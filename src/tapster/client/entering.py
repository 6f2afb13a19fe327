"""The verbs of signing in and out; a browser's way back from an identity provider."""

import html
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tapster.client.calling import Answer, Caller
from tapster.contract.control import Session
from tapster.contract.errors import TapsterError

PATIENCE: Final = 300.0


class EnteringVerbs(Caller):
    """See Client."""

    def login(self, member: str, password: str, *, tenant: str = "default") -> Session:
        """Sign in; whatever this client asks next, it asks as that member. `.token` says so too."""
        body = {"tenant": tenant, "member": member, "password": password}
        return self._signed_in(self._call(Session, "POST", "/sessions", body))

    def login_in_browser(
        self, show: Callable[[str], Any], *, tenant: str = "default", patience: float = PATIENCE
    ) -> Session:
        """Sign in by OpenID Connect: `show` gets the URL that a browser on this machine must open.

        Raises TapsterError(deadline) when it has not come back within `patience` seconds.
        """
        with _Return() as back:
            body = {"tenant": tenant, "redirect": back.url}
            begun = self._call(Answer, "POST", "/sessions/oidc", body)
            show(str(begun["url"]))
            code = back.code(str(begun["state"]), patience)
        body = {"state": begun["state"], "secret": begun["secret"], "code": code}
        return self._signed_in(self._call(Session, "POST", "/sessions/oidc/finish", body))

    def logout(self) -> Session:
        """End the session of `login`; this client has no key any more."""
        ended = self._call(Session, "DELETE", "/sessions/current")
        self._transport.authorize("")
        return ended

    def whoami(self) -> Answer:
        """Whom the key or session stands for: tenant, id, name, rights."""
        return self._call(Answer, "GET", "/sessions/current")

    def change_password(self, former: str, password: str) -> Answer:
        """Change the password of who is signed in, and end their other sessions."""
        body = {"former": former, "password": password}
        return self._call(Answer, "PUT", "/sessions/current/password", body)

    def _signed_in(self, session: Session) -> Session:
        self._transport.authorize(session.token)
        self.address = self._transport.address
        return session


class _Return:
    """A page on a free loopback port, where the browser returns with a code (RFC 8252, 7.3)."""

    def __enter__(self) -> "_Return":
        arrived = self._arrived = threading.Event()
        answers: list[dict[str, str]] = []
        self._answers = answers

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = {n: v[0] for n, v in parse_qs(urlsplit(self.path).query).items()}
                known = "state" in asked and not arrived.is_set()
                text = "You can close this page." if known else "There is nothing here."
                body = f"<!doctype html><title>Tapster</title><p>{html.escape(text)}".encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if known:
                    answers.append(asked)
                    arrived.set()

            def log_message(self, *_: Any) -> None:
                """Say nothing: addresses hold codes."""

        self._server = HTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def code(self, state: str, patience: float) -> str:
        """The code that comes back with `state`. Raises TapsterError."""
        if not self._arrived.wait(patience):
            raise TapsterError(
                "deadline", "nobody came back from the identity provider", hint="tapster login"
            )
        found = self._answers[0]
        if found.get("state") != state:
            raise TapsterError("unauthenticated", "somebody else's sign-in came back")
        if "code" not in found:
            reason = str(found.get("error", "no reason"))[:100]
            raise TapsterError("unauthenticated", f"the identity provider refused: {reason}")
        return found["code"]
