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


class Loans:
    """What owners lend, looked up once however many borrow it."""

    def __init__(self, tx: Connection) -> None:
        self._tx = tx
        self._borrowers: dict[tuple[str, str], frozenset[str]] = {}
        self._digests: dict[tuple[str, str, int], str] = {}

    def lost(self, row: Row, serving: ServingSet | None) -> Held | None:
        """The first version of a set that its owner shares with the tenant no longer, or has
        deleted; None if the tenant may use them all."""
        for held in serving.variants if serving is not None else ():
            if held.owner and not self._there(row.tenant, held):
                return held
        return None

    def halted(self, row: Row, serving: ServingSet | None) -> TapsterError | None:
        """Why a set answers nobody, None if it does: what cannot answer as it was deployed is not
        answered in part."""
        held = self.lost(row, serving)
        if held is None:
            return None
        return TapsterError(
            "unavailable",
            f"endpoint {row.name} answers nobody: {held.ref} is not shared with you any longer",
            hint=f"deploy another model there, or ask {held.owner} to share it again",
        )

    def _there(self, tenant: str, held: Held) -> bool:
        model = (held.owner, held.model)
        if model not in self._borrowers:
            self._borrowers[model] = frozenset(models.borrowers(self._tx, *model))
        if not self._borrowers[model] & {tenant, models.ALL}:
            return False
        version = (*model, held.version)
        if version not in self._digests:
            self._digests[version] = models.digest(self._tx, *version)
        return self._digests[version] == held.digest


def lost(tx: Connection, row: Row, serving: ServingSet | None) -> Held | None:
    """See Loans."""
    return Loans(tx).lost(row, serving)


def halted(tx: Connection, row: Row, serving: ServingSet | None) -> TapsterError | None:
    """See Loans."""
    return Loans(tx).halted(row, serving)


def borrows(row: Row, lent: Collection[tuple[str, str]]) -> bool:
    """Whether an endpoint has any of these models of others: (owner, what the owner calls it)."""
    return any(
        held.owner and (held.owner, held.model) in lent
        for serving in row.sets
        for held in serving.variants
    )
