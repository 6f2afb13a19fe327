"""What callers have asked of the repository, on disk, where every worker of the machine sees it.

Of each endpoint the newest wish: to have its models in memory, or to have them leave it. Wishes are
numbered, so a worker knows which of them are new to it, and a successor carries out those of its
predecessor's time that still matter. They bind nobody to an endpoint's later packages.
"""

import fcntl
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tapster.core.blobs import write_atomically
from tapster.serving.planfile import Stamp, stamp

NAME: Final = "wishes.json"
LOCK: Final = "wishes.lock"


class Wish(msgspec.Struct, frozen=True):
    """To have these packages (digests) in memory, or out of it."""

    number: int
    loaded: bool
    packages: tuple[str, ...]


class Wishes(msgspec.Struct, frozen=True):
    """By the id of the endpoint; `number` is that of the newest ever."""

    number: int = 0
    endpoints: dict[str, Wish] = {}


_WISHES: Final = msgspec.json.Decoder(Wishes)


class Wishlist:
    """The file. `make` is for threads, all else for the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._stamp: Stamp | None = None
        self.seen = Wishes()

    def news(self) -> bool:
        """Read what has been asked, if that is anything new."""
        found = stamp(self._path)
        if found == self._stamp:
            return False
        self._stamp, self.seen = found, self._read()
        return True

    def make(
        self, endpoint: str, *, loaded: bool, packages: list[str], known: Container[str]
    ) -> int:
        """Write a wish down, and forget those of endpoints that are not `known`; its number.

        Raises TapsterError(storage_full, unavailable).
        """
        with self._locked():
            before = self._read()
            number = before.number + 1
            kept = {id: wish for id, wish in before.endpoints.items() if id in known}
            kept[endpoint] = Wish(number, loaded, tuple(packages))
            write_atomically(self._path, msgspec.json.encode(Wishes(number, kept)))
        return number

    def _read(self) -> Wishes:
        try:
            return _WISHES.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return Wishes()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
