"""Packages between rows and blobs: storing what a job made, writing one out as a file.

An exported package is an uncompressed POSIX tar, byte for byte the same for the same package.
"""

import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import MANIFEST, SIGNATURE, Manifest
from tapster.core.parts import Parts
from tapster.core.vault import hold
from tapster.runtimes import package

EVALUATION: Final = "evaluation.json"
_PIECE: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE


def key_of(tenant: str, digest: str) -> str:
    """The blob key of a tenant's package."""
    return f"{tenant}/packages/{digest}"


def publish(
    parts: Parts, tenant: str, folder: Path, trusted: Collection[str] | None = None
) -> dict[str, Any]:
    """Sign the sealed package in `folder` with our key and store it; `folder` is consumed.

    With `trusted` the package must carry a signature of one of these keys instead. Returns
    {"digest", "bytes", "signer", "manifest"} in JSON types. Raises TapsterError(forbidden,
    unprocessable, storage_full). Never inside a transaction.
    """
    if trusted is None:
        package.sign(folder, parts.signer)
        trusted = {parts.signer.public}
    signer = package.check_signature(folder, trusted)
    digest, manifest = package.read_manifest(folder)
    size = parts.blobs.put(key_of(tenant, digest), folder)
    return {
        "digest": digest,
        "bytes": size,
        "signer": signer,
        "manifest": msgspec.to_builtins(manifest),
    }


def manifest_of(published: dict[str, Any]) -> Manifest:
    """The manifest in an answer of `publish`."""
    return msgspec.convert(published["manifest"], Manifest)


def evaluation(folder: Path, digest: str) -> dict[str, Any]:
    """What was measured on held-out data when the package was made; {} for a bare import."""
    data = package.read_member(folder, digest, EVALUATION)
    if data is None:
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise TapsterError("unprocessable", "the stored evaluation cannot be read") from None


def export_size(folder: Path) -> int:
    """Bytes that `export` will give."""
    sizes = (path.stat().st_size for path in _members(folder).values())
    return sum(_BLOCK + _padded(size) for size in sizes) + 2 * _BLOCK


def export(folder: Path) -> Iterator[bytes]:
    """The package as one file, in pieces: manifest and signature first, then the rest by name."""
    held = hold(folder)  # who reads slowly may take longer than a vault keeps it
    try:
        for name, path in _members(folder).items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, 0o644
            yield info.tobuf(tarfile.USTAR_FORMAT)
            left = info.size
            with path.open("rb") as file:
                while left and (piece := file.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
            yield bytes(left + _padded(info.size) - info.size)
        yield bytes(2 * _BLOCK)
    finally:
        os.close(held)


def _members(folder: Path) -> dict[str, Path]:
    first = {name: folder / name for name in (MANIFEST, SIGNATURE)}
    rest = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {**first, **rest}


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
