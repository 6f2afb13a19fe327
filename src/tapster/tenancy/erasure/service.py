"""The end of a tenant, in steps that can be taken again; and the keys that the plan carries."""

from sqlalchemy import Connection

from tapster.tenancy.erasure import store


def wrapped_keys(tx: Connection) -> dict[str, str]:
    """Every tenant's data key as the master key has wrapped it: for the plan."""
    return store.all_keys(tx)
