"""Tenants and keys: bootstrap, authentication, revisions."""

import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.plan import KeyGrant
from tapster.core.blobs import write_atomically
from tapster.core.crypto import KEY_PREFIX, key_digest, new_key
from tapster.core.telemetry import logger
from tapster.tenancy import store

log = logger(__name__)

MAX_KEY: Final = 256
ADMIN_KEY: Final = "key_admin"


def ensure_key_file(path: Path) -> str:
    """The key in `path`, made at first use (mode 0600)."""
    if not path.exists():
        write_atomically(path, new_key().encode() + b"\n")
    return path.read_text().strip()


def ensure_admin(tx: Connection, key: str) -> None:
    """Make the default tenant and let `key` administer it, instead of any former admin key."""
    store.add_tenant(tx, DEFAULT_TENANT)
    if store.find_key(tx, key_digest(key)) is None:
        store.remove_key(tx, DEFAULT_TENANT, ADMIN_KEY)
        store.add_key(tx, DEFAULT_TENANT, ADMIN_KEY, key_digest(key), ["*"])
        revise(tx, DEFAULT_TENANT, "admin key")


def authenticate(tx: Connection, key: str) -> Principal | None:
    """Whose key this is, or None when it is malformed, unknown or expired."""
    if not key.startswith(KEY_PREFIX) or len(key) > MAX_KEY or not key.isascii():
        return None
    row = store.find_key(tx, key_digest(key))
    if row is None or (row["expires"] is not None and row["expires"] <= time.time()):
        return None
    return Principal(row["tenant"], row["id"], frozenset(row["rights"]))


def grants(tx: Connection) -> tuple[KeyGrant, ...]:
    """Every key as the data plane must know it."""
    return tuple(
        KeyGrant(row["id"], row["digest"], row["tenant"], tuple(row["rights"]), row["expires"])
        for row in store.all_keys(tx)
    )


def revise(tx: Connection, tenant: str, what: str, *, kind: str = "", ref: str = "") -> int:
    """Record, in the transaction of the change itself, that the plan has changed.

    `kind` and `ref` say what is another one now, or gone, so that data planes need not be told all
    there is: `key` and its id; `tenant` or `limits` and the tenant; `endpoint` and its id or name,
    "" for all of the tenant (their prices too); `model` and its name (aliases). Without a kind,
    everything is sent.
    """
    number = store.revise(tx, tenant, what, kind, ref)
    log.info("the plan changes", tenant=tenant, plan=number, what=what)
    return number


def revision(tx: Connection) -> int:
    """The number of the newest change."""
    return store.revision(tx)
