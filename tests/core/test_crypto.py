"""Keys and signatures."""

from pathlib import Path

from tapster.core.crypto import Signer, key_digest, new_key, verify


def test_only_the_signers_own_signature_verifies(tmp_path: Path) -> None:
    signer, other = Signer.of(tmp_path / "a"), Signer.of(tmp_path / "b")
    signature = signer.sign(b"manifest")
    assert verify(signer.public, signature, b"manifest")
    assert not verify(signer.public, signature, b"manifesto")
    assert not verify(other.public, signature, b"manifest")
    assert not verify("zz", signature, b"manifest")
    assert not verify(signer.public, "", b"manifest")


def test_a_signer_keeps_its_key_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    assert Signer.of(path).public == Signer.of(path).public
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_are_long_random_and_stored_as_digests() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 and key.startswith("tap_") for key in keys)
    assert len(key_digest(keys.pop())) == 64
