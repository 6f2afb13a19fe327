"""The verbs over the end of a tenant."""

from typing import Final

from tapster.client.calling import Caller
from tapster.client.transport import spell
from tapster.client.waiting import until
from tapster.contract.control import Erasure

_LIMIT: Final = 600.0


class ErasureVerbs(Caller):
    """See Client."""

    def tenants_erase(self, name: str, *, wait: bool = True) -> Erasure:
        """Destroy a tenant: its data key, sessions, keys, files and rows, for good.

        Returns once that is done, with the signed receipt; without `wait`, once it has begun.
        """
        begun = self._call(Erasure, "POST", f"/tenants/{spell(name)}/erase")
        if not wait:
            return begun

        def ended() -> Erasure | None:
            found = {each.id: each for each in self.tenants_erasures(name)}[begun.id]
            return found if found.status == "ended" else None

        return until(ended, _LIMIT, f"the erasure of {name}")

    def tenants_erasures(self, name: str) -> list[Erasure]:
        """Erasures of a tenant of this name, newest first, with their receipts."""
        return self._call(list[Erasure], "GET", f"/tenants/{spell(name)}/erasures")
