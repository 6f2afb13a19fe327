"""What job processes print: where it lies, and how it is read.

While nothing is encrypted that is a file in the home. Else the file is in the vault while the job
runs, and a sealed copy takes its place in the home when it stops.
"""

import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

from tapster.core.blobs import write_atomically
from tapster.core.envelope import DataKey, is_sealed, opened, sealed_bytes, sealed_with
from tapster.core.parts import Parts
from tapster.core.resealing import Anew, Piece, header_of, holding, replace

_PIECE: Final = 1 << 16
_NAME: Final = "log"


class JobFolders:
    """The folders of jobs that run, and the logs of all."""

    def __init__(self, parts: Parts) -> None:
        self._keys = parts.keys
        self._kept = parts.settings.home / "jobs"
        self._staging = parts.settings.home / "sealing"
        self.root = self._kept if parts.vault is None else parts.vault.folder("jobs")

    def begin(self, tenant: str, job: str) -> None:
        """Have the log of a job's earlier attempts where the next one goes on with it."""
        live = self.root / job / _NAME
        if live.exists() or not (self._kept / job / _NAME).exists():
            return
        live.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with live.open("xb") as file:
            for piece in self._stored(tenant, job):
                file.write(piece)

    def end(self, tenant: str, job: str) -> None:
        """Seal the log of a job that has stopped, and take it out of the vault."""
        live = self.root / job / _NAME
        if self._keys is None or self.root == self._kept:
            return
        if live.exists():
            key = self._keys.current(tenant)
            (self._kept / job).mkdir(parents=True, exist_ok=True)
            text = sealed_bytes(live.read_bytes(), key, *_place(tenant, job))
            write_atomically(self._kept / job / _NAME, text)
            self._reseal(tenant, job, self._keys.current(tenant), key)  # it may be another now
        shutil.rmtree(self.root / job, ignore_errors=True)

    def pieces(self, tenant: str, jobs: Iterable[str]) -> Iterator[Piece]:
        """Those logs of a tenant's jobs that lie sealed."""
        for job in jobs:
            if sealed_with(header_of(self._kept / job / _NAME)):
                yield Piece(f"jobs/{job}", partial(self._reseal, tenant, job))

    def _reseal(self, tenant: str, job: str, key: DataKey, held: DataKey | None = None) -> bool:
        """See Piece."""
        assert self._keys is not None
        find = holding(held, partial(self._keys.find, tenant))
        anew = Anew(self._staging, find, replace)
        return anew.reseal(self._kept / job / _NAME, key, *_place(tenant, job))

    def left(self) -> list[str]:
        """Jobs whose logs a killed process has left in the vault."""
        if self.root == self._kept:
            return []
        return [path.name for path in self.root.iterdir()]

    def read(self, tenant: str, job: str, offset: int) -> Iterator[bytes]:
        """What a job has printed, from so many bytes on."""
        try:
            file = (self.root / job / _NAME).open("rb")
        except FileNotFoundError:
            for piece in self._stored(tenant, job):
                yield piece[min(offset, len(piece)) :]
                offset = max(0, offset - len(piece))
            return
        with file:
            file.seek(offset)
            while piece := file.read(_PIECE):
                yield piece

    def remove(self, job: str) -> int:
        """Forget a job's log; returns the bytes freed."""
        size = sum(path.stat().st_size for path in (self._kept / job).glob(_NAME))
        for root in {self.root, self._kept}:
            shutil.rmtree(root / job, ignore_errors=True)
        return size

    def _stored(self, tenant: str, job: str) -> Iterator[bytes]:
        """The log in the home, if there is one."""
        path = self._kept / job / _NAME
        if not path.exists():
            return
        with path.open("rb") as file:
            if self._keys is not None and is_sealed(path):
                yield from opened(file, partial(self._keys.find, tenant), *_place(tenant, job))
            else:
                yield file.read()


def _place(tenant: str, job: str) -> tuple[str, str, str]:
    return tenant, f"jobs/{job}", _NAME
