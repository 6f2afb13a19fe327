"""A BlobStore over another that sees nothing but sealed files.

A blob of files becomes a folder of files called `0`, `1`, ... and an index of their names and
sizes, each sealed with its tenant's data key and bound to tenant, blob key and file name. Reading
one decrypts it into the vault, once a machine. Blobs stored before encryption was switched on are
read as they are.
"""

import shutil
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from tapster.contract.errors import TapsterError
from tapster.core import envelope
from tapster.core.blobs import BlobStore, Replacing, outside_transaction, storage_error
from tapster.core.envelope import DataKey, Keyring, sealed_with
from tapster.core.resealing import Anew, Find, Piece, header_of, holding
from tapster.core.vault import Vault

INDEX: Final = ".sealed"
# What the index is bound to in place of a file's name, which is never empty.
_NO_NAME: Final = ""
_TIDY: Final = 60.0


class _Entry(msgspec.Struct, frozen=True):
    name: str
    size: int


_ENTRIES: Final = msgspec.json.Decoder(list[_Entry])


class SealedBlobs:
    """See BlobStore. `staging` is a folder on the same file system as the inner store's."""

    def __init__(self, inner: BlobStore, keys: Keyring, vault: Vault, staging: Path) -> None:
        self._inner = inner
        self._keys = keys
        self._vault = vault
        self._staging = staging
        self._tidied = time.monotonic()

    def put(self, key: str, folder: Path) -> int:
        """See BlobStore; the bytes are those of the content in the clear."""
        outside_transaction()
        try:
            known = self._inner.get(key)
        except TapsterError:
            secret = self._keys.current(_tenant(key))
            staged, size = self._sealed(key, folder, secret)
            try:
                self._inner.put(key, staged)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            self._follow(key, secret)
        else:
            size = self._size(key, known)
        shutil.rmtree(folder, ignore_errors=True)
        return size

    def get(self, key: str) -> Path:
        """See BlobStore. Raises TapsterError(unprocessable) for what was altered."""
        folder = self._inner.get(key)
        if not sealed(folder):
            return folder
        if time.monotonic() - self._tidied > _TIDY:
            self._tidied = time.monotonic()
            self._vault.tidy()
        while (found := self._vault.get(key)) is None:
            with self._vault.making(key) as target:
                if self._vault.get(key) is None:
                    self._open(key, folder, target)
        return found

    def delete(self, key: str) -> int:
        """See BlobStore."""
        self._vault.drop(key)
        try:
            size = self._size(key, self._inner.get(key))
        except TapsterError:
            return self._inner.delete(key)
        return size if self._inner.delete(key) else 0

    def keys(self) -> Iterator[str]:
        """See BlobStore."""
        return self._inner.keys()

    def sweep(self) -> None:
        """See BlobStore."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._inner.sweep()

    def pieces(self, tenant: str, named: Collection[str]) -> Iterator[Piece]:
        """Everything of a tenant's that lies sealed; and what is `named` and is not there.

        Where a store is away for a while, nothing is there, and no key may be destroyed for that.
        """
        found = {key for key in self._inner.keys() if _tenant(key) == tenant}  # noqa: SIM118
        for key in sorted(found | set(named)):
            if key not in found:
                yield Piece(key, partial(self._missed, key))
            elif self._lies_sealed(key):
                yield Piece(key, partial(self._reseal, key))

    def _missed(self, key: str, secret: DataKey) -> bool:
        """See Piece. Raises TapsterError(not_found), unless it has come back."""
        return self._reseal(key, secret) if self._inner.get(key) else False

    def _lies_sealed(self, key: str) -> bool:
        try:
            return sealed(self._inner.get(key))
        except TapsterError:  # it has gone meanwhile
            return False

    def _follow(self, key: str, held: DataKey) -> None:
        """Seal anew what was stored while its tenant was given another key.

        Whoever destroys a former key has looked for what lay there when it became one.
        """
        self._reseal(key, self._keys.current(_tenant(key)), held)

    def _reseal(self, key: str, secret: DataKey, held: DataKey | None = None) -> bool:
        """See Piece. The parts of a blob may be under different keys meanwhile."""
        inner, tenant = self._inner, _tenant(key)
        find = holding(held, partial(self._keys.find, tenant))
        try:
            folder = inner.get(key)
            if all(_is_under(path, secret) for path in folder.iterdir()):
                return False
            entries = self._entries(key, folder, find)
        except FileNotFoundError:
            return False
        except TapsterError as error:
            if error.code == "not_found" and not self._lies_sealed(key):
                return False
            raise
        if not isinstance(inner, Replacing):
            raise TapsterError("unsupported", "this store of blobs cannot seal anew what it has")
        anew = Anew(
            self._staging,
            find,
            lambda path, staged: inner.replace(key, path.name, staged),
        )
        files = [(INDEX, _NO_NAME), *((str(at), entry.name) for at, entry in enumerate(entries))]
        done = [anew.reseal(folder / file, secret, tenant, key, name) for file, name in files]
        return any(done)

    def _sealed(self, key: str, folder: Path, secret: DataKey) -> tuple[Path, int]:
        """A folder of sealed files, and the bytes of what they hold."""
        tenant = _tenant(key)
        staged = self._staging / uuid4().hex
        entries = []
        try:
            staged.mkdir(parents=True, mode=0o700)
            for number, path in enumerate(_files(folder)):
                name = path.relative_to(folder).as_posix()
                with path.open("rb") as source, (staged / str(number)).open("xb") as target:
                    size = envelope.seal(source, target, secret, tenant, key, name)
                entries.append(_Entry(name, size))
            index = msgspec.json.encode(entries)
            text = envelope.sealed_bytes(index, secret, tenant, key, _NO_NAME)
            (staged / INDEX).write_bytes(text)
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            if isinstance(error, OSError):
                raise storage_error(error) from error
            raise
        return staged, sum(entry.size for entry in entries)

    def _entries(self, key: str, folder: Path, find: Find | None = None) -> list[_Entry]:
        tenant = _tenant(key)
        find = find or partial(self._keys.find, tenant)
        data = (folder / INDEX).read_bytes()
        return _ENTRIES.decode(envelope.opened_bytes(data, find, tenant, key, _NO_NAME))

    def _size(self, key: str, folder: Path) -> int:
        if sealed(folder):
            return sum(entry.size for entry in self._entries(key, folder))
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _open(self, key: str, folder: Path, target: Path) -> None:
        tenant = _tenant(key)
        find = partial(self._keys.find, tenant)
        for number, entry in enumerate(self._entries(key, folder)):
            path = target / entry.name
            path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
            try:
                source = (folder / str(number)).open("rb")
            except FileNotFoundError:
                raise envelope.damaged() from None
            with source, path.open("xb") as plain:
                for piece in envelope.opened(source, find, tenant, key, entry.name):
                    plain.write(piece)
            path.chmod(0o400)


def pieces(blobs: BlobStore, tenant: str, named: Collection[str]) -> Iterator[Piece]:
    """What of a tenant's blobs lies sealed; see SealedBlobs."""
    if isinstance(blobs, SealedBlobs):
        yield from blobs.pieces(tenant, [key for key in named if _tenant(key) == tenant])


def sealed(folder: Path) -> bool:
    """Whether a stored blob is sealed."""
    return (folder / INDEX).is_file()


def _is_under(path: Path, key: DataKey) -> bool:
    return sealed_with(header_of(path)) == key.id


def _tenant(key: str) -> str:
    return key.partition("/")[0]


def _files(folder: Path) -> list[Path]:
    """The plain files of a folder, in order. Raises for links and devices."""
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    if any(path.is_symlink() or not path.is_file() for path in found):
        raise TapsterError("unprocessable", "the folder holds something that is not a plain file")
    return found
