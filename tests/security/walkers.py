"""One caller of every kind, in the installation's tenant and in another, and how they call."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import Server
from tests.security.rights_table import ROLES

LIMIT = 30.0


@dataclass
class Callers:
    """Keys by role, of `default` and of `walkers`; and those that let nobody in, by their fault."""

    server: Server
    default: dict[str, str] = field(default_factory=dict)
    walkers: dict[str, str] = field(default_factory=dict)
    barred: dict[str, str] = field(default_factory=dict)
    suspended: str = ""

    def api(self, key: str = "", tenant: str = "") -> httpx.Client:
        """A client of the control API."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= {"X-Tapster-Tenant": tenant} if tenant else {}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=30)

    def key(self, tenant: str = "", **scope: Any) -> dict[str, Any]:
        """Make a key."""
        with self.api(self.server.key, tenant) as api:
            made = api.post("/api/v1/keys", json=scope)
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found


def callers(server: Server) -> Callers:
    """See Callers; all have reached the data plane."""
    made = Callers(server)
    with made.api(server.key) as api:
        for tenant in ("walkers", "suspended"):
            assert api.post("/api/v1/tenants", json={"name": tenant}).status_code == 201
        for role in ROLES:
            made.default[role] = made.key(role=role)["key"]
            made.walkers[role] = made.key("walkers", role=role)["key"]
        revoked = made.key("walkers", role="owner")
        expired = made.key("walkers", role="owner", expires_in=0.05)
        suspended = made.key("suspended", role="owner")
        rotated = made.key("walkers", role="owner")
        assert api.post("/api/v1/tenants/suspended/suspend").status_code == 200
        as_walkers = {"X-Tapster-Tenant": "walkers"}
        gone = api.delete(f"/api/v1/keys/{revoked['id']}", headers=as_walkers)
        assert gone.json()["status"] == "revoked"
        path = f"/api/v1/keys/{rotated['id']}/rotate"
        assert api.post(path, json={}, headers=as_walkers).status_code == 200
    made.barred = {
        "none": "",
        "wrong": "tap_" + hashlib.sha256(b"nobody's").hexdigest()[:43],
        "wrong session": "tas_" + hashlib.sha256(b"nobody's").hexdigest()[:43],
        "no key": "wrong",
        "injection": "' OR 1=1--",
        "long": "tap_" + "x" * 5000,
        "revoked": revoked["key"],
        "expired": expired["key"],
        "rotated": rotated["key"],
    }
    made.suspended = suspended["key"]
    _reached(made)
    return made


def _reached(made: Callers) -> None:
    def settled() -> bool:
        barred = (made.barred[kind] for kind in ("revoked", "rotated"))
        known = status(made.walkers["auditor"]) == status(made.suspended) == 403
        return known and all(status(key) == 401 for key in barred)

    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{made.server.rest_url}/v2", headers=headers, timeout=30).status_code

    wait_for(settled, "the data plane to know the keys")


def wait_for(check: Callable[[], Any], what: str) -> Any:
    """The first true value of `check`, within a limit that only a hang reaches."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain: {what}")
