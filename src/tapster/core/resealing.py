"""Sealing what lies sealed with another data key, a file at a time.

A file is under the former key or under the new one at every moment, so whatever is killed is gone
on with; its header says which key it is.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tapster.core.blobs import storage_error
from tapster.core.envelope import HEADER_BYTES, DataKey, Sealer, opened, sealed_with

Find = Callable[[str], DataKey]


@dataclass(frozen=True)
class Piece:
    """Something that lies sealed. `reseal` has it be under a key: False if it is, or is gone."""

    name: str
    reseal: Callable[[DataKey], bool]


@dataclass(frozen=True)
class Anew:
    """How files are sealed anew: beside in `staging`, on the same file system, then put in place.

    `put(path, staged)` puts a file in another's place, whole, for good. Raises FileNotFoundError if
    there is none.
    """

    staging: Path
    find: Find
    put: Callable[[Path, Path], None]

    def reseal(self, path: Path, key: DataKey, *place: str) -> bool:
        """Have a sealed file be under `key`; see Piece.

        Raises TapsterError(unprocessable) for one that does not open, (storage_full, unavailable).
        """
        header = header_of(path)
        if sealed_with(header) in {"", key.id}:
            return False
        staged = self.staging / uuid4().hex
        try:
            self.staging.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._seal(path, staged, key, place)
            if header_of(path) != header:  # another file has come in its place
                return False
            self.put(path, staged)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error) from error
        finally:
            staged.unlink(missing_ok=True)
        return True

    def _seal(self, path: Path, staged: Path, key: DataKey, place: tuple[str, ...]) -> None:
        with path.open("rb") as source, staged.open("xb") as target:
            sealer = Sealer(target, key, *place)
            for piece in opened(source, self.find, *place):
                sealer.feed(piece)
            sealer.end()
            target.flush()
            os.fsync(target.fileno())


def holding(held: DataKey | None, find: Find) -> Find:
    """`find` for who has sealed something with a key that may be destroyed by the time it lands."""
    if held is None:
        return find
    return lambda identifier: held if identifier == held.id else find(identifier)


def header_of(path: Path) -> bytes:
    """The beginning of a file, that of a sealed one is like no other's; b"" if there is none."""
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        return file.read(HEADER_BYTES)
    return b""


def replace(path: Path, staged: Path) -> None:
    """Put a file in the place of one in a folder of ours. Raises FileNotFoundError."""
    path.stat()
    staged.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
