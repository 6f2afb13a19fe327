"""Sealed folders under keys: what rows point at. A key is `tenant/kind/digest`.

A folder is put once, whole, and never changed. The local store writes under a temporary name,
syncs every file and renames, so `kill -9` leaves the whole folder or none of it.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Protocol, runtime_checkable
from uuid import uuid4

from tapster.contract.errors import TapsterError

_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}(/[a-z0-9][a-z0-9_-]{0,99}){2}")

# Set while a database transaction is open: storage may be slow or remote, a transaction may not.
in_transaction: ContextVar[bool] = ContextVar("in_transaction", default=False)


class BlobStore(Protocol):
    """Where sealed folders lie."""

    def put(self, key: str, folder: Path) -> int:
        """Store `folder` (which is consumed) under `key`; a key that exists is left as it is.

        Returns the bytes stored. Raises TapsterError(storage_full).
        """
        ...

    def get(self, key: str) -> Path:
        """A local folder with the content, not to be written to. Raises TapsterError(not_found)."""
        ...

    def delete(self, key: str) -> int:
        """Remove a folder; returns the bytes freed, 0 if there was none."""
        ...

    def keys(self) -> Iterator[str]:
        """Every key in the store."""
        ...

    def sweep(self) -> None:
        """Remove what a killed `put` or `delete` left. Only the store's sole user calls this."""
        ...


@runtime_checkable
class Replacing(Protocol):
    """A BlobStore whose content can be sealed with another key where it lies; others need not."""

    def replace(self, key: str, name: str, path: Path) -> None:
        """Put the file `path`, which is consumed, in the place of `name` in a stored folder.

        Readers see all of one or of the other. Raises FileNotFoundError when that is gone.
        """
        ...


class LocalBlobs:
    """A BlobStore in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / ".tmp"

    def put(self, key: str, folder: Path) -> int:
        """See BlobStore. `folder` is moved when it is on the same file system, else copied."""
        outside_transaction()
        target = self._path(key)
        if target.exists():
            shutil.rmtree(folder, ignore_errors=True)
            return folder_size(target)
        self._temporary.mkdir(parents=True, exist_ok=True)
        staging = self._temporary / uuid4().hex
        try:
            shutil.move(folder, staging)
            for path in sorted(staging.rglob("*")):
                _sync(path)
            _sync(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
            _sync(target.parent)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return folder_size(target)
            raise storage_error(error) from error
        return folder_size(target)

    def get(self, key: str) -> Path:
        """See BlobStore."""
        outside_transaction()
        path = self._path(key)
        if not path.is_dir():
            raise TapsterError("not_found", "the stored files of this object are gone")
        return path

    def delete(self, key: str) -> int:
        """See BlobStore. Renamed away first, so that a half-deleted folder is never seen."""
        outside_transaction()
        path = self._path(key)
        self._temporary.mkdir(parents=True, exist_ok=True)
        doomed = self._temporary / uuid4().hex
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return 0
        size = folder_size(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        return size

    def replace(self, key: str, name: str, path: Path) -> None:
        """Put a file in the place of one of a stored folder, whole, for good; `path` is consumed.

        Raises FileNotFoundError when that is gone.
        """
        outside_transaction()
        target = self._path(key) / name
        target.stat()
        _sync(path)
        path.replace(target)
        _sync(target.parent)

    def keys(self) -> Iterator[str]:
        """See BlobStore."""
        for path in sorted(self._root.glob("*/*/*")):
            key = path.relative_to(self._root).as_posix()
            if _KEY.fullmatch(key):
                yield key

    def sweep(self) -> None:
        """See BlobStore."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a blob key: {key!r}")
        return self._root / key


def folder_size(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new."""
    staging = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise storage_error(error) from error
    _sync(path.parent)


def storage_error(error: OSError) -> TapsterError:
    """An operating system's refusal to store, in words without a path."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return TapsterError(
            "storage_full",
            "the disk is full; nothing was stored",
            hint="free some space on the disk that holds TAPSTER_HOME and try again",
        )
    return TapsterError(
        "unavailable",
        f"the storage refused: {os.strerror(error.errno or 0)}",
        hint="check the disk and the permissions of TAPSTER_HOME, or run `tapster doctor`",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def outside_transaction() -> None:
    """Raise RuntimeError inside a transaction: storage may be slow, a transaction may not."""
    if in_transaction.get():
        raise RuntimeError("a blob was touched inside a database transaction")
