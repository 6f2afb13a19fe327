"""The guard of every control route: which right it needs, and who is asking."""

import hmac
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.tenancy import service

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_ANYBODY = Principal(DEFAULT_TENANT, "", frozenset({"*"}))


class need:  # noqa: N801 - read as a verb: Depends(need("datasets:read"))
    """A FastAPI dependency: the caller as a Principal, if it holds `right`.

    Raises TapsterError(unauthenticated) without a valid key, TapsterError(forbidden) without the
    right. Routes are walked by a test that reads `right` back.
    """

    def __init__(self, right: str) -> None:
        self.right = right

    def __call__(self, request: Request) -> Principal:
        parts: Parts = request.app.state.parts
        who = _local(request) if parts.settings.no_auth else _identify(request, parts)
        request.state.principal = who  # the record tells of refusals too
        if not who.may(self.right):
            raise TapsterError("forbidden", f"this key does not hold the right {self.right}")
        request.state.tenant = who.tenant
        return who


def _local(request: Request) -> Principal:
    """Anybody on this machine, but no web page of elsewhere, whatever its name resolves to."""
    origin = request.headers.get("origin")
    for url in ("//" + request.headers.get("host", ""), origin or "//localhost"):
        if _host(url) not in LOOPBACK:
            raise TapsterError(
                "forbidden",
                "without keys, only pages and programs of this machine are served",
                hint="use http://127.0.0.1, or start without --no-auth",
            )
    return _ANYBODY


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def agent_only(key: str) -> Callable[[Request], None]:
    """A dependency that lets the data plane's agent in, by its own credential, and nobody else."""

    def check(request: Request) -> None:
        if not hmac.compare_digest(_bearer(request).encode(), key.encode()):
            raise TapsterError("unauthenticated", "this route is the data plane's")

    check.right = "agent"  # type: ignore[attr-defined]
    return check


def _identify(request: Request, parts: Parts) -> Principal:
    with parts.db.read() as tx:
        who = service.authenticate(tx, _bearer(request))
    if who is None:
        raise TapsterError(
            "unauthenticated",
            "a valid API key is needed",
            hint="send `Authorization: Bearer <key>`; the first key is in TAPSTER_HOME/admin.key",
        )
    return who


def _bearer(request: Request) -> str:
    value: Any = request.headers.get("authorization", "")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
