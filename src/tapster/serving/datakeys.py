"""Tenants' data keys as a worker knows them: wrapped, in its plan; the master key opens them."""

import logging
from collections.abc import Iterable

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PackageRef
from tapster.core.blobs import BlobStore
from tapster.core.envelope import DataKey, Masters, masters_of, wrapper_of
from tapster.core.sealed import SealedBlobs
from tapster.core.settings import Settings
from tapster.core.vault import Vault

log = logging.getLogger(__name__)

# A tenant's keys: the id of each, and what it is wrapped in.
_Keys = dict[str, str]


class PlanKeys:
    """A Keyring of the packages of a plan. Without a master key it opens nothing.

    What comes wrapped by a master key that is not known here leaves in force what came before: a
    machine that has not been given a new master key yet goes on with what it has.
    """

    def __init__(self, masters: Masters | None) -> None:
        self._masters = masters
        self._wrapped: dict[str, _Keys] = {}
        self._missed: set[str] = set()

    def learn(self, packages: Iterable[PackageRef]) -> None:
        """Take the keys that come with packages; those that came before are forgotten."""
        self._wrapped = self._taken(packages)

    def add(self, packages: Iterable[PackageRef]) -> None:
        """Take the keys that come with more packages."""
        self._wrapped |= self._taken(packages)

    def current(self, tenant: str) -> DataKey:
        """See Keyring; a data plane stores nothing under such keys."""
        raise TapsterError("unsupported", "a data plane seals nothing")

    def find(self, tenant: str, identifier: str) -> DataKey:
        """See Keyring."""
        wrapped = self._wrapped.get(tenant, {}).get(identifier)
        if self._masters is None or wrapped is None:
            raise TapsterError("not_found", "the key of this package is not in the plan")
        return self._masters.unwrap(tenant, wrapped)

    def _taken(self, packages: Iterable[PackageRef]) -> dict[str, _Keys]:
        came = {p.key.partition("/")[0]: (p.secret, *p.former) for p in packages if p.secret}
        return {tenant: self._best(tenant, found) for tenant, found in came.items()}

    def _best(self, tenant: str, came: tuple[str, ...]) -> _Keys:
        found = {wrapped.partition(":")[0]: wrapped for wrapped in came}
        masters, before = self._masters, self._wrapped.get(tenant, {})
        if masters is None:
            return found
        for identifier, wrapped in found.items():
            if not masters.opens(wrapped):
                self._miss(masters, wrapper_of(wrapped))
                held = before.get(identifier, wrapped)
                found[identifier] = held if masters.opens(held) else wrapped
        return found

    def _miss(self, masters: Masters, name: str) -> None:
        if name not in self._missed:
            self._missed.add(name)
            log.error(
                "the plan's data keys are wrapped by master key %s, and this machine has %s: what"
                " it has loaded is served on; set TAPSTER_MASTER_KEY_FILE to that key, start again",
                name,
                " and ".join(sorted(masters.names)),
            )

    def opened(self, tenant: str, wrapped: str) -> DataKey | None:
        """A tenant's data key; None where nothing is encrypted. Raises TapsterError(unavailable)
        for one that does not open here, and where there must be one and is none."""
        if self._masters is None and not wrapped:
            return None
        if self._masters is None or not wrapped:
            raise TapsterError("unavailable", "there is no key to seal with")
        return self._masters.unwrap(tenant, wrapped)


def reading(
    settings: Settings, inner: BlobStore, vault: Vault | None
) -> tuple[BlobStore, PlanKeys]:
    """The store that a worker reads packages from, and the keys that its plans fill."""
    keys = PlanKeys(masters_of(settings))
    if vault is None:
        return inner, keys
    return SealedBlobs(inner, keys, vault, settings.home / "sealing"), keys
