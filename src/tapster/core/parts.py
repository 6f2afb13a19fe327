"""What the composition root hands to every slice."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from tapster.contract.usage import Metric
from tapster.core.blobs import BlobStore
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.envelope import DataKey, Keyring
from tapster.core.landing import Landing
from tapster.core.settings import Settings
from tapster.core.uploads import Uploads
from tapster.core.vault import Vault


class TenantKeys(Keyring, Protocol):
    """A keyring that also serves those who are in a transaction."""

    def within(self, tx: Connection, tenant: str) -> DataKey:
        """The key in force, as `current`: it stays that until the transaction ends."""
        ...

    def renew(self, tx: Connection, tenant: str) -> DataKey:
        """Give a tenant another key; the one in force is a former one from the commit on."""
        ...


@dataclass(frozen=True)
class Parts:
    """The concrete parts an installation runs on."""

    settings: Settings
    db: Database
    blobs: BlobStore
    signer: Signer
    uploads: Uploads
    # Both None while nothing is encrypted.
    keys: TenantKeys | None = None
    vault: Vault | None = None
    # What a tenant uses now of what has a limit: (tx, tenant) -> units.
    measures: Mapping[Metric, Callable[[Connection, str], int]] = field(default_factory=dict)
    landing: Landing = field(default_factory=Landing)
    # Held from storing a blob to the commit of its row, and from a row's deletion to its blob's:
    # else a deletion could take the blob that another row has just begun to name.
    storage: threading.Lock = field(default_factory=threading.Lock)
