"""Data keys as the plan carries them."""

from sqlalchemy import Connection

from tapster.tenancy.datakeys import store


def wrapped_keys(tx: Connection) -> dict[str, tuple[str, ...]]:
    """Every tenant's data keys as the master key has wrapped them, those in force first."""
    return store.everything(tx)
