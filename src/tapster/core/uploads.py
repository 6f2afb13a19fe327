"""Files that a client sent and a job has not yet used, one folder an upload.

With keys they are sealed as they arrive.
"""

import hashlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.core.crypto import new_id
from tapster.core.envelope import DataKey, Keyring, Sealer, is_sealed, opened, sealed_with
from tapster.core.resealing import Anew, Piece, header_of, holding, replace

_NAME: Final = re.compile(r"[^\W_][\w .()+@=-]{0,199}")
_ID: Final = re.compile(r"up_[0-9a-f]{16}")
_PIECE: Final = 1 << 20
_LONGEST: Final = 255  # bytes of a file name, on every file system we know


class Uploads:
    """Uploads of every tenant, under one folder."""

    def __init__(self, root: Path, keys: Keyring | None = None) -> None:
        self._root = root
        self._keys = keys

    def create(self, tenant: str) -> str:
        """Open an upload; returns its id."""
        identifier = new_id("up")
        try:
            (self._root / tenant / identifier).mkdir(parents=True)
        except OSError as error:
            raise storage_error(error) from error
        return identifier

    def check(self, tenant: str, identifier: str) -> Path:
        """The upload's folder. Raises TapsterError(not_found)."""
        folder = self._root / tenant / identifier
        if not _ID.fullmatch(identifier) or not folder.is_dir():
            raise TapsterError(
                "not_found", f"there is no upload {identifier!r}", hint="send the file again"
            )
        return folder

    async def write(
        self, tenant: str, identifier: str, name: str, body: AsyncIterator[bytes]
    ) -> tuple[str, int]:
        """Receive one file; returns its SHA-256 (hex) and size in bytes.

        Raises TapsterError(invalid) for a file name that could mean anything but a file here,
        and TapsterError(storage_full), after which the half-written file is gone.
        """
        if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST:
            raise TapsterError(
                "invalid",
                f"{name!r} cannot be used as a file name",
                hint="use letters, digits, spaces and . _ - ( ) + @ =",
                field="filename",
            )
        path = self.check(tenant, identifier) / name
        arriving = self._root / ".arriving" / new_id("part")
        try:
            arriving.parent.mkdir(exist_ok=True)
            key = None
            if self._keys is not None:
                key = await anyio.to_thread.run_sync(self._keys.current, tenant)
            place = (tenant, _place(identifier), name)
            received = await _receive(arriving, body, key, place)
            arriving.rename(path)  # a job never sees half of it
            if key is not None:  # the tenant may have been given another one meanwhile
                await anyio.to_thread.run_sync(self._follow, tenant, identifier, path, key)
        except OSError as error:
            raise storage_error(error) from error
        finally:
            arriving.unlink(missing_ok=True)
        return received

    def open(self, tenant: str, identifier: str, into: Path) -> Path:
        """The upload's files in the clear: `into`, a new folder, or where they lie if they are.

        Raises TapsterError(not_found, unprocessable), OSError when `into` takes no more.
        """
        folder = self.check(tenant, identifier)
        if self._keys is None:
            return folder
        find = partial(self._keys.find, tenant)
        into.mkdir(parents=True, mode=0o700)
        for path in sorted(folder.iterdir()):
            if not is_sealed(path):
                shutil.copyfile(path, into / path.name)
                continue
            with path.open("rb") as source, (into / path.name).open("xb") as target:
                for piece in opened(source, find, tenant, _place(identifier), path.name):
                    target.write(piece)
        return into

    def pieces(self, tenant: str) -> Iterator[Piece]:
        """Everything of a tenant's that lies sealed here."""
        if self._keys is None:
            return
        for path in (self._root / tenant).glob("up_*/*"):
            if sealed_with(header_of(path)):
                again = partial(self._reseal, tenant, path.parent.name, path)
                yield Piece(f"{_place(path.parent.name)}/{path.name}", again)

    def _follow(self, tenant: str, identifier: str, path: Path, held: DataKey) -> None:
        assert self._keys is not None
        self._reseal(tenant, identifier, path, self._keys.current(tenant), held)

    def _reseal(
        self, tenant: str, identifier: str, path: Path, key: DataKey, held: DataKey | None = None
    ) -> bool:
        """See Piece."""
        assert self._keys is not None
        find = holding(held, partial(self._keys.find, tenant))
        anew = Anew(self._root / ".arriving", find, replace)
        return anew.reseal(path, key, tenant, _place(identifier), path.name)

    def size(self, tenant: str, identifier: str = "") -> int:
        """Bytes of a tenant's uploads, or of one of them."""
        found = 0
        for path in (self._root / tenant / identifier).rglob("*"):
            with suppress(FileNotFoundError):  # it may go meanwhile
                found += path.stat().st_size if path.is_file() else 0
        return found

    def remove(self, tenant: str, identifier: str) -> None:
        """Drop an upload and its files."""
        shutil.rmtree(self._root / tenant / identifier, ignore_errors=True)

    def sweep(self, used: set[str], age: float = 0.0) -> None:
        """Remove uploads not in `used` that were opened over `age` seconds ago.

        Only the sole user of the folder may ask for an `age` that a client could still be within.
        """
        horizon = time.time() - age
        for path in (*self._root.glob("*/up_*"), *self._root.glob(".arriving/*")):
            with suppress(FileNotFoundError):  # it may end by itself meanwhile
                if path.name in used or path.stat().st_mtime > horizon:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _place(identifier: str) -> str:
    return f"uploads/{identifier}"


async def _receive(
    path: Path, body: AsyncIterator[bytes], key: DataKey | None, place: tuple[str, str, str]
) -> tuple[str, int]:
    digest, size, waiting, held = hashlib.sha256(), 0, [], 0
    with path.open("wb") as file:
        sealer = None if key is None else Sealer(file, key, *place)
        take: Callable[[bytes], object] = file.write if sealer is None else sealer.feed

        def flush(pieces: list[bytes]) -> None:
            for piece in pieces:
                digest.update(piece)
                take(piece)

        async for chunk in body:
            waiting.append(chunk)
            held += len(chunk)
            size += len(chunk)
            if held >= _PIECE:
                await anyio.to_thread.run_sync(flush, waiting)
                waiting, held = [], 0
        flush(waiting)
        if sealer is not None:
            sealer.end()
    return digest.hexdigest(), size
