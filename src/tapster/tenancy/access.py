"""The guard of every control route: which right it needs, and who is asking."""

import asyncio
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.usage import UsageReport
from tapster.core.db import Database
from tapster.core.parts import Parts
from tapster.tenancy import service
from tapster.tenancy.rights import ANY, NONE, RIGHTS
from tapster.tenancy.tenants.service import missing, proper

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
ACT_FOR: Final = "x-tapster-tenant"
_COARSE: Final = 60.0
_DELAY: Final = 1.0
_REMEMBERED: Final = 100_000
_ANYBODY = Principal(DEFAULT_TENANT, "", frozenset({"*"}), tenants=frozenset({"*"}))


class need:  # noqa: N801 - read as a verb: Depends(need("datasets:read"))
    """A FastAPI dependency: the caller as a Principal, if it holds `right`; `any` is none at all.

    Raises TapsterError(unauthenticated) without a valid key or session, TapsterError(forbidden)
    without the right or with a suspended tenant's key, TapsterError(not_found) for a tenant in
    `X-Tapster-Tenant` that is not there or not the caller's to act for. Routes are walked by a test
    that reads `right` back.
    """

    def __init__(self, right: str) -> None:
        assert right in RIGHTS or right == ANY, f"{right} is not in the table of rights"
        self.right = right

    def __call__(self, request: Request) -> Principal:
        parts: Parts = request.app.state.parts
        who = _local(request, parts) if parts.settings.no_auth else _identify(request, parts)
        request.state.tenant = who.tenant
        request.state.principal = who
        if self.right != ANY:
            self._check(request, who)
        return who

    def still(self, request: Request) -> bool:
        """Whether a caller who was let in would be now: to be asked while an answer goes on."""
        try:
            self(request)
        except TapsterError as error:
            if error.code in {"unauthenticated", "forbidden", "not_found"}:
                return False
            raise
        return True

    def _check(self, request: Request, who: Principal) -> None:
        if not who.may(self.right):
            raise TapsterError("forbidden", f"this key does not hold the right {self.right}")
        if who.endpoints and request.path_params.get("endpoint") not in who.endpoints:
            raise TapsterError("forbidden", "this key is for some endpoints, and nothing else")


class Uses:
    """When keys and sessions were last used, until it is written down: once a minute each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: dict[str, float] = {}
        self._written: dict[str, float] = {}

    def note(self, identifier: str) -> None:
        """A key or session is used now."""
        now = time.time()
        with self._lock:
            if now - self._written.get(identifier, 0.0) >= _COARSE:
                self._news[identifier] = now

    def counted(self, report: UsageReport) -> None:
        """The keys whose calls of today have become more since a machine's last report."""
        today = time.strftime("%Y-%m-%d", time.gmtime())
        for segment in report.segments:
            if segment.day == today and not segment.sealed:
                for count in segment.counts:
                    self.note(count.line.key)

    def take(self) -> dict[str, float]:
        """What is to be written down now: times by id."""
        with self._lock:
            news, self._news = self._news, {}
            if len(self._written) > _REMEMBERED:
                self._written.clear()
            self._written.update(news)
            return news

    async def run(self, db: Database) -> None:
        """Write it down, within a second, until cancelled."""
        while True:
            await asyncio.sleep(_DELAY)
            if times := self.take():
                await asyncio.to_thread(self._write, db, times)

    @staticmethod
    def _write(db: Database, times: dict[str, float]) -> None:
        with db.write() as tx:
            service.used(tx, times)


def everybody() -> None:
    """A dependency of the routes that need no key."""


everybody.right = NONE  # type: ignore[attr-defined]


def address_of(request: Request) -> str:
    """The address that a request came from, as the connection says; headers are not believed."""
    return request.client.host if request.client else ""


def _local(request: Request, parts: Parts) -> Principal:
    """Anybody on this machine, but no web page of elsewhere, whatever its name resolves to."""
    origin = request.headers.get("origin")
    for url in ("//" + request.headers.get("host", ""), origin or "//localhost"):
        if _host(url) not in LOOPBACK:
            raise TapsterError(
                "forbidden",
                "without keys, only pages and programs of this machine are served",
                hint="use http://127.0.0.1, or start without --no-auth",
            )
    with parts.db.read() as tx:
        return _acting(request, tx, _ANYBODY)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def agent_only(key: str) -> Callable[[Request], None]:
    """A dependency that lets the data plane's agent in, by its own credential, and nobody else."""

    def check(request: Request) -> None:
        parts: Parts = request.app.state.parts
        shown = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
        if parts.settings.tls_client_ca and not shown:
            raise TapsterError("unauthenticated", "this route asks for a client certificate")
        if not hmac.compare_digest(_bearer(request).encode(), key.encode()):
            raise TapsterError("unauthenticated", "this route is the data plane's")

    check.right = "agent"  # type: ignore[attr-defined]
    return check


def _identify(request: Request, parts: Parts) -> Principal:
    with parts.db.read() as tx:
        who = service.authenticate(tx, _bearer(request))
        if who is not None:
            request.app.state.uses.note(who.key_id)
            return _acting(request, tx, who)
        suspended = service.suspended(tx, _bearer(request))
    if suspended:
        raise TapsterError(
            "forbidden",
            f"the tenant {suspended} is suspended",
            hint="whoever runs this server can resume it",
        )
    raise TapsterError(
        "unauthenticated",
        "a valid API key is needed",
        hint="send `Authorization: Bearer <key>`; the first key is in TAPSTER_HOME/admin.key",
    )


def _acting(request: Request, tx: Connection, who: Principal) -> Principal:
    """The caller, in the tenant that the request is about: another than its own if it says so."""
    asked = request.headers.get(ACT_FOR)
    if asked is None or asked == who.tenant:
        return who
    if not proper(asked):
        raise missing(asked)
    service.acting_for(tx, who, asked)
    return replace(who, tenant=asked, home=who.tenant, tenants=frozenset())


def _bearer(request: Request) -> str:
    value: Any = request.headers.get("authorization", "")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
