"""Random keys, digests and Ed25519 signatures."""

import hashlib
import secrets
from pathlib import Path
from typing import Final

from tapster.core.blobs import write_atomically

KEY_PREFIX: Final = "tap_"
SESSION_PREFIX: Final = "tas_"


def new_key(prefix: str = KEY_PREFIX) -> str:
    """An API key, or another secret: 256 random bits, recognisable by its prefix."""
    return prefix + secrets.token_urlsafe(32)


def key_digest(key: str) -> str:
    """SHA-256 (hex) of a key: what is stored. Enough because the key is random, not chosen."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_id(prefix: str) -> str:
    """A short unguessable identifier, such as `job_3f...`."""
    return f"{prefix}_{secrets.token_hex(8)}"


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Signer:
    """An Ed25519 key pair (RFC 8032); public keys and signatures are spelled in hex."""

    def __init__(self, private: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.public: str = self._private.public_key().public_bytes_raw().hex()

    @classmethod
    def of(cls, path: Path) -> "Signer":
        """The signer whose 32 private bytes lie in `path`, made at first use (mode 0600)."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, secrets.token_bytes(32))
        return cls(path.read_bytes())

    def sign(self, data: bytes) -> str:
        """The signature of `data`."""
        return self._private.sign(data).hex()


def verify(public: str, signature: str, data: bytes) -> bool:
    """Whether `signature` is `public`'s over `data`; malformed hex is just False."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), data
        )
    except (InvalidSignature, ValueError):
        return False
    return True
