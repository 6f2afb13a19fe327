"""What the composition root hands to every slice."""

from dataclasses import dataclass

from tapster.core.blobs import LocalBlobs
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.settings import Settings
from tapster.core.uploads import Uploads


@dataclass(frozen=True)
class Parts:
    """The concrete parts an installation runs on."""

    settings: Settings
    db: Database
    blobs: LocalBlobs
    signer: Signer
    uploads: Uploads
