"""What is going on: the request, or the work of the system's own, that transactions belong to."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import Principal
from tapster.core.changes import changes_of

SYSTEM: Final = "system"
ANONYMOUS: Final = "anonymous"
PREFIX: Final = "/api/v1"
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
# What only looks, and is recorded all the same: the record itself, what people have sent, and what
# leaves in bulk.
_SEEN: Final = ("/export",)
_SEEN_UNDER: Final = ("/audit", "/payloads")


@dataclass
class Act:
    """Something that somebody does. A request's parts are read from its ASGI scope when needed."""

    scope: dict[str, Any] | None = None
    tenant: str = ""
    verb: str = ""
    object: str = ""
    lines: int = 0
    about: str = ""
    known: str = ""

    @property
    def who(self) -> str:
        """The member's or the key's id, `system` or `anonymous`."""
        if self.scope is None:
            return SYSTEM
        found = self._principal
        return (found.member or found.key_id if found else self.known) or ANONYMOUS

    @property
    def whose(self) -> str:
        """The tenant that acts; "" if nobody knows."""
        found = self._principal
        return self.tenant if found is None else found.tenant

    @property
    def client(self) -> str:
        """The address it came from."""
        peer = (self.scope or {}).get("client")
        return str(peer[0]) if peer else ""

    @property
    def method(self) -> str:
        """The request's method, if it is one of HTTP's."""
        method = (self.scope or {}).get("method", "")
        return method if method in _METHODS else "other"

    @property
    def action(self) -> str:
        """The method and the route's template, or the verb of the system's own work."""
        return self.verb if self.scope is None else f"{self.method} {self.route or '-'}"

    @property
    def route(self) -> str:
        """The template of the route that answered, without /api/v1; "" for none."""
        found = getattr((self.scope or {}).get("route"), "path", "")
        return str(found).removeprefix(PREFIX)

    @property
    def target(self) -> str:
        """What it is done to: `endpoint=churn`; "" if its path names nothing."""
        if self.about or self.scope is None:
            return self.about or self.object
        named = self.scope.get("path_params") or {}
        return ",".join(f"{name}={value}" for name, value in named.items())

    @property
    def success(self) -> int:
        """The status of a good answer of its route."""
        found = getattr((self.scope or {}).get("route"), "status_code", None)
        return int(found or 200)

    @property
    def internal(self) -> bool:
        """Whether it is traffic between the planes, which is no act of anybody's."""
        return str((self.scope or {}).get("path", "")).startswith("/internal/")

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.scope is None or (self.method not in _READING and not self.internal)

    @property
    def seen(self) -> bool:
        """Whether it only looks, at something of which that is recorded too."""
        route = self.route
        return self.method == "GET" and (route.startswith(_SEEN_UNDER) or route.endswith(_SEEN))

    @property
    def _principal(self) -> Principal | None:
        found = (self.scope or {}).get("state", {}).get("principal")
        return found if isinstance(found, Principal) else None


@dataclass(frozen=True)
class Remark:
    """What a service says of its own work, or of a refusal, in the transaction it happens in."""

    tenant: str
    verb: str
    object: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    alone: bool = False


@dataclass
class Muted:
    """Tenants that this transaction erases: what it removes of theirs is told to nobody."""

    tenants: set[str] = field(default_factory=set)


current: ContextVar[Act | None] = ContextVar("tapster_act", default=None)


@contextmanager
def acting(tenant: str, verb: str, target: str = "") -> Iterator[Act]:
    """Work of the system's own: what transactions inside change is recorded under `verb`.

    `verb` is such as `deployments.settle`, `target` such as `job=job_1f0c`. A transaction that
    changes nothing leaves no line.
    """
    act = Act(tenant=tenant, verb=verb, object=target)
    token = current.set(act)
    try:
        yield act
    finally:
        current.reset(token)


def remark(
    tx: Connection,
    tenant: str,
    verb: str,
    target: str = "",
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    alone: bool = False,
) -> None:
    """Record something under a name of its own, in the transaction that does it.

    In a request that changes rows it adds to what is told of them, unless it is to stand `alone`.
    """
    changes = changes_of(tx)
    if changes is not None:
        changes.remarks.append(Remark(tenant, verb, target, before, after, alone))


def about(target: str, tenant: str = "", who: str = "") -> None:
    """Say what the current request is about when its path does not name it: `member=mem_1f`.

    Of a caller without a key also whose matter it is (`tenant`), and, once proven, `who` it is.
    """
    act = current.get()
    if act is not None:
        act.about, act.tenant, act.known = target, tenant or act.tenant, who or act.known
