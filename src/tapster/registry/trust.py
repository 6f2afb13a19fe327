"""Whose packages may be imported: verbs over trusted keys."""

import re
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.registry import store
from tapster.registry.service import check_name

_KEY: Final = re.compile(r"[0-9a-f]{64}")


def keys(tx: Connection, tenant: str) -> list[dict[str, Any]]:
    """Trusted keys by name: {"name", "public_key", "created"}."""
    return store.keys(tx, tenant)


def trust(tx: Connection, tenant: str, name: str, public_key: str) -> dict[str, Any]:
    """Accept packages signed by an Ed25519 public key (64 hex digits).

    Raises TapsterError(invalid) for something that is no key and TapsterError(conflict) when the
    name stands for another one.
    """
    check_name(name, "a trusted key")
    key = public_key.strip().lower()
    if not _KEY.fullmatch(key):
        raise TapsterError(
            "invalid",
            "this is not an Ed25519 public key in hex (64 digits)",
            hint="`tapster trust list` on the other installation shows its own key",
            field="public_key",
        )
    for known in store.keys(tx, tenant):
        if known["name"] == name:
            if known["public_key"] != key:
                raise TapsterError(
                    "conflict",
                    f"{name} already stands for another key",
                    hint=f"`tapster trust remove {name}` first, or choose another name",
                    field="name",
                )
            return known
    store.add_key(tx, tenant, name, key)
    return next(known for known in store.keys(tx, tenant) if known["name"] == name)


def distrust(tx: Connection, tenant: str, name: str) -> None:
    """Accept no more packages of a key; what was imported stays. Raises TapsterError(not_found)."""
    if not store.remove_key(tx, tenant, name):
        raise TapsterError(
            "not_found", f"there is no trusted key {name[:100]!r}", hint="see `tapster trust list`"
        )
