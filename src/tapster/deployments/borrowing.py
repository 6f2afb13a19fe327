"""Other tenants' models behind a tenant's endpoints, and whether they are still there for it.

An endpoint stays as it was deployed when an owner withdraws a model: it is halted until the model
is shared again, or something else deployed. Who borrows may not pass on.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.deployments.sets import Held, ServingSet
from tapster.deployments.store import Row
from tapster.registry import sharing as models


def lost(tx: Connection, row: Row, serving: ServingSet | None) -> Held | None:
    """The first version of a set that its owner shares with the tenant no longer, or has deleted;
    None if the tenant may use them all."""
    for held in serving.variants if serving is not None else ():
        if held.owner and not _there(tx, row.tenant, held):
            return held
    return None


def halted(tx: Connection, row: Row, serving: ServingSet | None) -> TapsterError | None:
    """Why a set answers nobody, None if it does: what cannot answer as it was deployed is not
    answered in part."""
    held = lost(tx, row, serving)
    if held is None:
        return None
    return TapsterError(
        "unavailable",
        f"endpoint {row.name} answers nobody: {held.ref} is not shared with you any longer",
        hint=f"deploy another model there, or ask {held.owner} to share it again",
    )


def borrows(row: Row, models: Collection[tuple[str, str]]) -> bool:
    """Whether an endpoint has any of these models of others: (owner, what the owner calls it)."""
    return any(
        held.owner and (held.owner, held.model) in models
        for serving in row.sets
        for held in serving.variants
    )


def _there(tx: Connection, tenant: str, held: Held) -> bool:
    try:
        found = models.exactly(tx, tenant, held.owner, f"{held.model}@{held.version}")
    except TapsterError:
        return False
    return found.digest == held.digest
