"""Signed heads of the chain, kept outside the database: what the newest line was, and when.

Each is a line of `heads.jsonl` in one or two folders, synced before the next is written.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from heapq import merge
from pathlib import Path
from typing import Final

from tapster.contract.audit import WHOLE, Head, checked_heads, head_message
from tapster.core.crypto import Signer, verify
from tapster.core.telemetry import logger

log = logger(__name__)

FILE: Final = "heads.jsonl"
_LONGEST: Final = 1024


class Heads:
    """The heads of one installation, signed by its key for them."""

    def __init__(self, signer: Signer, folders: Sequence[Path]) -> None:
        self._signer = signer
        self.public = signer.public
        self.paths = [folder / FILE for folder in folders]
        self.newest = max((_last(path) for path in self.paths), default=0)

    def signed(self, view: str, number: int, digest: str) -> Head:
        """A head of now."""
        head = Head(view, number, digest, round(time.time(), 6), self._signer.public)
        return replace(head, signature=self._signer.sign(head_message(head)))

    def sign(self, message: bytes) -> str:
        """A signature of something else about the record."""
        return self._signer.sign(message)

    def keep(self, number: int, digest: str) -> None:
        """Sign the chain's newest line and write it to every folder.

        Raises OSError if it could be written to none; one that fails is logged.
        """
        text = json.dumps(asdict(self.signed(WHOLE, number, digest)), separators=(",", ":"))
        failure: OSError | None = None
        kept = False
        for path in self.paths:
            try:
                _append(path, text.encode() + b"\n")
                kept = True
            except OSError as error:
                log.error("a head of the audit could not be kept", reason=error.strerror)
                failure = error
        if not kept and failure is not None:
            raise failure
        self.newest = max(self.newest, number)

    def read(self, faults: list[str]) -> Iterator[Head]:
        """The heads kept until now, in order; what is wrong with the files goes to `faults`."""
        parts = [(path, path.stat().st_size) for path in self.paths if path.exists()]
        each = (self._read(path, size, faults) for path, size in parts)
        return merge(*each, key=lambda head: head.number)

    def _read(self, path: Path, size: int, faults: list[str]) -> Iterator[Head]:
        where = f"{path.parent.name}/{path.name}"
        yield from checked_heads(_lines(path, size), where, self.public, verify, faults)


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Whole lines within the first `size` bytes; one that a crash cut short is none."""
    read = 0
    with path.open("rb") as file:
        for line in file:
            read += len(line)
            if read > size or not line.endswith(b"\n"):
                return
            yield line


def _append(path: Path, line: bytes) -> None:
    """Write a line and sync it, after taking away what a crash left of another."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = _end(descriptor)
        os.ftruncate(descriptor, end)
        os.pwrite(descriptor, line, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _end(descriptor: int) -> int:
    """Where the last whole line ends."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _LONGEST, max(0, size - _LONGEST))
    return size - len(tail) + tail.rfind(b"\n") + 1


def _last(path: Path) -> int:
    """The number of the last head in a file; 0 without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2 * _LONGEST))
            whole = file.read().rpartition(b"\n")[0]
        return int(json.loads(whole.rpartition(b"\n")[2])["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
