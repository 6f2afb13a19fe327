"""A package on disk: sealing it, signing it, and opening one without trusting it.

Nothing is parsed before its digest is known to be right: `manifest.json` against the package's
digest, every other file against the manifest. Only plain files that the manifest lists may lie
in the folder.
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from tapster.contract import manifest as contract
from tapster.contract.errors import TapsterError
from tapster.contract.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SIGNATURE,
    FileEntry,
    Lineage,
    Manifest,
    Signature,
    Task,
    Tolerance,
)
from tapster.core.blobs import write_atomically
from tapster.core.crypto import Signer, file_digest, verify

MODEL: Final = "model.onnx"
PARITY: Final = "parity.msgpack"
MAX_MANIFEST: Final = 64 << 20
MAX_SIGNATURE: Final = 4096
MAX_FILES: Final = 100_000
MAX_BYTES: Final = 16 << 30

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_NAME: Final = re.compile(rf"{_PART}(/{_PART})?")


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose every byte has been checked; `files` holds them by name."""

    manifest: Manifest
    files: dict[str, bytes]
    digest: str


class _Signed(msgspec.Struct, frozen=True):
    public: str
    signature: str


_SIGNATURES: Final = msgspec.json.Decoder(_Signed)


def seal(
    folder: Path,
    *,
    name: str,
    task: Task,
    signature: Signature,
    tolerance: Tolerance,
    lineage: Lineage | None = None,
    metrics: dict[str, Any] | None = None,
    created: float = 0.0,
    runtime: str = "onnx",
    model_file: str = MODEL,
) -> str:
    """Write `manifest.json` over the files that lie in `folder`; returns the package's digest.

    `created` is in seconds since 1970. Raises ValueError for a folder that `open_package` would
    refuse: that is the caller's bug, not a user's mistake.
    """
    files = {
        path: FileEntry(sha256=file_digest(folder / path), size=(folder / path).stat().st_size)
        for path in sorted(_listing(folder))
        if path not in {MANIFEST, SIGNATURE}
    }
    manifest = Manifest(
        name=name,
        task=task,
        runtime=runtime,
        model_file=model_file,
        signature=signature,
        tolerance=tolerance,
        files=files,
        lineage=lineage or Lineage(),
        metrics=metrics or {},
        created=created,
    )
    if problem := _inconsistency(manifest):
        raise ValueError(problem)
    data = contract.encode(manifest)
    write_atomically(folder / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def sign(folder: Path, signer: Signer) -> None:
    """Write `manifest.sig`: the signer's public key and signature over `manifest.json`."""
    data = _read(folder / MANIFEST, MANIFEST, MAX_MANIFEST)
    signed = _Signed(public=signer.public, signature=signer.sign(data))
    write_atomically(folder / SIGNATURE, msgspec.json.encode(signed))


def check_signature(folder: Path, trusted: Collection[str]) -> str:
    """The public key (hex) that signed the package, if it is one of `trusted`.

    Raises TapsterError(unprocessable) for a missing or wrong signature and
    TapsterError(forbidden) for a right one by a key that is not trusted.
    """
    data = _read(folder / MANIFEST, MANIFEST, MAX_MANIFEST)
    try:
        raw = _read(folder / SIGNATURE, SIGNATURE, MAX_SIGNATURE)
        signed = _SIGNATURES.decode(raw)
    except (TapsterError, msgspec.MsgspecError, UnicodeDecodeError):
        raise _refused("it is not signed, or its signature cannot be read") from None
    if not verify(signed.public, signed.signature, data):
        raise _refused("its signature is not valid for its content")
    if signed.public not in trusted:
        raise TapsterError(
            "forbidden",
            f"the package is signed by a key that is not trusted here: {signed.public[:64]}",
            hint="ask its owner for their public key, then `tapster trust add NAME KEY`",
        )
    return signed.public


def package_digest(folder: Path) -> str:
    """The digest of the package in `folder`: SHA-256 (hex) of its `manifest.json`."""
    return hashlib.sha256(_read(folder / MANIFEST, MANIFEST, MAX_MANIFEST)).hexdigest()


def is_member_name(name: str) -> bool:
    """Whether a package may hold a file of this name (a slash separates one folder)."""
    return _NAME.fullmatch(name) is not None


def read_manifest(folder: Path) -> tuple[str, Manifest]:
    """Digest and manifest of the package in `folder`. Raises TapsterError(unprocessable)."""
    data = _read(folder / MANIFEST, MANIFEST, MAX_MANIFEST)
    return hashlib.sha256(data).hexdigest(), decode_manifest(data)


def read_member(folder: Path, digest: str, name: str) -> bytes | None:
    """One verified file of the package with this digest; None if it has no such file."""
    found, manifest = read_manifest(folder)
    if found != digest:
        raise _refused(f"{MANIFEST} is not what was registered")
    entry = manifest.files.get(name)
    return None if entry is None else _verified(folder, name, entry)


def open_package(folder: Path, digest: str) -> Package:
    """Read the package in `folder`, whose `manifest.json` must have SHA-256 `digest` (hex).

    Each file is read once; what was checked is what is returned. Raises
    TapsterError(unprocessable) when anything is missing, altered, truncated, added or not a
    plain file.
    """
    data = _read(folder / MANIFEST, MANIFEST, MAX_MANIFEST)
    if hashlib.sha256(data).hexdigest() != digest:
        raise _refused(f"{MANIFEST} is not what was registered")
    manifest = decode_manifest(data)
    found = set(_listing(folder)) - {MANIFEST, SIGNATURE}
    if extra := sorted(found - manifest.files.keys()):
        raise _refused(f"it holds a file that its manifest does not list: {extra[0][:100]!r}")
    files = {name: _verified(folder, name, entry) for name, entry in manifest.files.items()}
    return Package(manifest=manifest, files=files, digest=digest)


def file_names(folder: Path) -> list[str]:
    """Names of all files of a folder. Raises TapsterError(unprocessable) for other things in it."""
    return sorted(_listing(folder))


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that is no package yet, by name. Raises TapsterError(unprocessable)."""
    return {
        name: _read(folder / name, name, (folder / name).lstat().st_size)
        for name in file_names(folder)
    }


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest whose digest is known. Raises TapsterError(unprocessable)."""
    try:
        manifest = contract.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refused(f"{MANIFEST} is not a manifest") from None
    if manifest.format_version != FORMAT_VERSION:
        raise TapsterError(
            "unprocessable",
            f"the package has format {manifest.format_version}; this Tapster reads"
            f" {FORMAT_VERSION}",
            hint="update Tapster on this machine",
        )
    if problem := _inconsistency(manifest):
        raise _refused(problem)
    return manifest


def _inconsistency(manifest: Manifest) -> str:
    """What is wrong with a manifest taken by itself, or ""."""
    files, signature = manifest.files, manifest.signature
    if manifest.model_file not in files:
        return "its manifest lists no model file"
    if len(files) > MAX_FILES or sum(entry.size for entry in files.values()) > MAX_BYTES:
        return "it is too large"
    if len({name.lower() for name in files}) < len(files):
        return "two of its files differ only in case"
    for name, entry in files.items():
        if not _NAME.fullmatch(name) or name in {MANIFEST, SIGNATURE} or entry.size < 0:
            return f"its manifest lists a file that cannot be: {name[:100]!r}"
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    if len(inputs) < len(signature.inputs) or len(outputs) < len(signature.outputs):
        return "its signature names an input or output twice"
    return _misplaced(signature, inputs)


def _misplaced(signature: Signature, inputs: dict[str, contract.TensorSpec]) -> str:
    if not signature.columns:
        return ""
    places = {(column.tensor, column.position) for column in signature.columns}
    names = {column.name for column in signature.columns}
    expected = {
        (spec.name, position)
        for spec in inputs.values()
        if len(spec.shape) == 2 and 0 < spec.shape[1] <= len(signature.columns)
        for position in range(spec.shape[1])
    }
    if len(names) < len(signature.columns) or len(places) < len(signature.columns):
        return "its signature names a column or a place twice"
    if places != expected or {tensor for tensor, _ in places} != inputs.keys():
        return "the columns of its signature do not fit its inputs"
    for column in signature.columns:
        wanted = "BYTES" if column.kind == "text" else "FP32"
        if inputs[column.tensor].datatype != wanted:
            return f"column {column.name[:100]!r} does not fit the type of its input"
    return ""


def _listing(folder: Path, prefix: str = "") -> Iterator[str]:
    """Names of all files in a package folder. Raises for anything but files and one level."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False) and not prefix:
                yield from _listing(folder / entry.name, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise _refused(f"it holds something that is not a plain file: {name[:100]!r}")


def _verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    data = _read(folder / name, name, entry.size)
    if len(data) != entry.size:
        raise _refused(f"its file {name!r} is truncated")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _refused(f"its file {name!r} has been altered")
    return data


def _read(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a plain file, at most `limit`; a link, a device or a pipe is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise _refused(f"its file {name!r} is missing") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refused(f"it holds something that is not a plain file: {name!r}")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limit:
            raise _refused(f"its file {name!r} is larger than it should be")
        return file.read(limit + 1)


def _refused(reason: str) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"the package is refused: {reason}",
        hint="it was damaged or altered after it was sealed: train, import or export it again",
    )
