"""Tenants' data keys as a worker knows them: wrapped, in its plan; the master key opens them."""

from collections.abc import Iterable

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PackageRef
from tapster.core.blobs import BlobStore
from tapster.core.envelope import DataKey, Master, master_of
from tapster.core.sealed import SealedBlobs
from tapster.core.settings import Settings
from tapster.core.vault import Vault


class PlanKeys:
    """A Keyring of the packages of a plan. Without a master key it opens nothing."""

    def __init__(self, master: Master | None) -> None:
        self._master = master
        self._wrapped: dict[str, str] = {}

    def learn(self, packages: Iterable[PackageRef]) -> None:
        """Take the keys that come with packages; those that came before are forgotten."""
        self._wrapped = {p.key.partition("/")[0]: p.secret for p in packages if p.secret}

    def add(self, packages: Iterable[PackageRef]) -> None:
        """Take the keys that come with more packages."""
        self._wrapped |= {p.key.partition("/")[0]: p.secret for p in packages if p.secret}

    def current(self, tenant: str) -> DataKey:
        """See Keyring; a data plane stores nothing under such keys."""
        raise TapsterError("unsupported", "a data plane seals nothing")

    def find(self, tenant: str, identifier: str) -> DataKey:
        """See Keyring."""
        wrapped = self._wrapped.get(tenant, "")
        if self._master is None or not wrapped.startswith(f"{identifier}:"):
            raise TapsterError("not_found", "the key of this package is not in the plan")
        return self._master.unwrap(tenant, wrapped)


def reading(
    settings: Settings, inner: BlobStore, vault: Vault | None
) -> tuple[BlobStore, PlanKeys]:
    """The store that a worker reads packages from, and the keys that its plans fill."""
    keys = PlanKeys(master_of(settings))
    if vault is None:
        return inner, keys
    return SealedBlobs(inner, keys, vault, settings.home / "sealing"), keys
