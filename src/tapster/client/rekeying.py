"""The verbs over tenants' data keys."""

from collections.abc import Callable
from typing import Final

from tapster.client.calling import Caller
from tapster.client.transport import spell
from tapster.client.waiting import until
from tapster.contract.encryption import Rekeying

RekeyingProgress = Callable[[Rekeying], None]
_LIMIT: Final = 24 * 3600.0


class RekeyVerbs(Caller):
    """See Client."""

    def tenants_rekey(
        self, name: str, *, wait: bool = True, on_progress: RekeyingProgress | None = None
    ) -> Rekeying:
        """Give a tenant another data key: what lies sealed is sealed anew, the former destroyed.

        Returns once that is done; without `wait`, once what is new is sealed with the new key.
        """
        begun = self._call(Rekeying, "POST", f"/tenants/{spell(name)}/rekey")
        if not wait:
            return begun

        def ended() -> Rekeying | None:
            found = {each.id: each for each in self.tenants_rekeyings(name)}[begun.id]
            if on_progress is not None:
                on_progress(found)
            return found if found.status == "ended" else None

        return until(ended, _LIMIT, f"the sealing anew of what {name} has")

    def tenants_rekeyings(self, name: str) -> list[Rekeying]:
        """How a tenant was given other data keys, newest first."""
        return self._call(list[Rekeying], "GET", f"/tenants/{spell(name)}/rekeyings")
