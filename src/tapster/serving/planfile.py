"""The last good plan on disk, which only the holder of the agent's key can have written.

Two files, mode 0600: a snapshot, sealed with a MAC, and a log of the deltas since, named after the
snapshot's MAC. Each delta's MAC covers the one before it, the first the snapshot's: none can be
forged, left out in the middle, moved, or brought over from another log. A line that is not whole
yet, or whose writer was killed, is as if it were not there.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from tapster.contract.plan import PlanDelta
from tapster.contract.snapshots import Snapshot, unpack
from tapster.core.blobs import storage_error, write_atomically

NAME: Final = "plan.sealed"
LOGS: Final = "plan.*.log"
# A log longer than this, and than half of its snapshot, makes room for a new snapshot.
LONG: Final = 4 << 20
_MAC: Final = 32
# What a MAC covers first; of a delta it is the MAC before.
_WHOLE: Final = b"tapster snapshot"
_HEX: Final = 2 * _MAC
_PIECE: Final = 1 << 20
Stamp = tuple[int, int, int]
_DELTAS: Final = msgspec.json.Decoder(PlanDelta)


def read_key(home: Path) -> bytes:
    """The agent's key, or nothing while the control plane has not made one."""
    try:
        return (home / "agent.key").read_bytes().strip()
    except OSError:
        return b""


def stamp(path: Path) -> Stamp | None:
    """What changes whenever a file does; None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def save(folder: Path, plan: bytes, key: bytes) -> None:
    """Write a snapshot and its MAC in place of all there is. Raises TapsterError(storage_full)."""
    Book(folder, key).replace(plan)


class Pages:
    """The saved plan as it is read: the snapshot once, then deltas as they come.

    `refused` says that the log goes on with something that the key's holder has not written there.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        """Raises ValueError for a snapshot that is not there, not ours, or of another release."""
        self._key = key
        self.stamp = stamp(folder / NAME)
        try:
            data = (folder / NAME).read_bytes()
        except OSError:
            raise ValueError("there is no plan") from None
        plan = data[_MAC:]
        if not key or not hmac.compare_digest(data[:_MAC], _seal(key, _WHOLE, plan)):
            raise ValueError("the plan is not sealed by this installation")
        self.tip = data[:_MAC]
        del data
        self.size = len(plan)
        self.snapshot: Snapshot = unpack(plan)
        self.number = self.snapshot.plan.number
        self.mark = self.snapshot.plan.mark
        self.log = folder / log_name(self.tip)
        self.at = 0
        self._odd = b""
        self.refused = False

    def more(self) -> Iterator[PlanDelta]:
        """The deltas that have come since they were last asked for, as far as they are taken.

        What does not count is read again: it may have been the beginning of a line whose writer was
        killed, and the end of another that a new writer has put in its place meanwhile.
        """
        for _ in range(2):
            try:
                with self.log.open("rb") as file:
                    file.seek(self.at)
                    yield from self._whole(file)
            except FileNotFoundError:
                return
            if not self._odd or self.refused:
                return

    def grown(self) -> bool:
        """Whether there may be more."""
        try:
            return not self.refused and os.stat(self.log).st_size > self.at
        except OSError:
            return False

    def _whole(self, file: BinaryIO) -> Iterator[PlanDelta]:
        while (line := file.readline()).endswith(b"\n"):
            mac, body = line[:_HEX], line[_HEX + 1 : -1]
            tip = _seal(self._key, self.tip, body)
            try:
                if not hmac.compare_digest(bytes.fromhex(mac.decode("latin-1")), tip):
                    raise ValueError("another hand's")
                delta = _DELTAS.decode(body)
                if (delta.after, delta.base) != (self.number, self.mark):
                    raise ValueError("of another plan")
            except (ValueError, msgspec.MsgspecError):
                self.refused, self._odd = line == self._odd, line
                return
            self._odd = b""
            self.tip, self.at = tip, self.at + len(line)
            self.number, self.mark = delta.number, delta.mark
            yield delta


class Book:
    """The saved plan as its only writer keeps it; `number` is -1 while there is none to go on from.

    The machine's agent is the one writer: it holds a lock.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.key = key
        self.number, self.mark = -1, ""
        self._folder = folder
        self._log = -1
        self._path = folder
        self._tip, self._at, self._size = b"", 0, 0
        self._left: tuple[Stamp | None, Stamp | None] = (None, None)
        self._open()

    @property
    def long(self) -> bool:
        """Whether it is time for a snapshot."""
        return self._at > max(LONG, self._size // 2)

    def intact(self) -> bool:
        """Whether the files are as they were left here."""
        return self._left == self._stamps()

    def replace(self, plan: bytes) -> None:
        """Write a snapshot in place of all there is.

        Raises TapsterError(storage_full), ValueError for bytes that are no plan.
        """
        known = unpack(plan).plan
        tip = _seal(self.key, _WHOLE, plan)
        write_atomically(self._folder / NAME, tip + plan)
        self.close()
        for log in self._folder.glob(LOGS):
            log.unlink(missing_ok=True)
        self._tip, self._at, self._size = tip, 0, len(plan)
        self._path = self._folder / log_name(tip)
        self.number, self.mark = known.number, known.mark
        self._left = self._stamps()

    def append(self, body: bytes) -> None:
        """Add a delta (JSON in one line) to the log, whole or not at all.

        Raises TapsterError(storage_full), ValueError for what does not go on from
        `number`, and when somebody else has touched the files.
        """
        try:
            delta = _DELTAS.decode(body)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        if (delta.after, delta.base) != (self.number, self.mark) or b"\n" in body:
            raise ValueError("the delta is of another plan")
        if not self.intact():
            raise ValueError("the saved plan was touched by somebody else")
        tip = _seal(self.key, self._tip, body)
        line = tip.hex().encode() + b" " + body + b"\n"
        try:
            self._write(line)
        except OSError as error:
            with suppress(OSError):
                # A whole line may have been read already, and must not become another.
                if os.fstat(self._log).st_size < self._at + len(line):
                    os.ftruncate(self._log, self._at)
                    self._left = self._stamps()
            raise storage_error(error) from error
        self._tip, self._at = tip, self._at + len(line)
        self.number, self.mark = delta.number, delta.mark
        self._left = self._stamps()

    def close(self) -> None:
        """Close the log."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _open(self) -> None:
        """Go on where another writer stopped, or was stopped."""
        try:
            pages = Pages(self._folder, self.key)
        except ValueError:
            return
        for _ in pages.more():
            pass
        self._tip, self._at, self._size, self._path = pages.tip, pages.at, pages.size, pages.log
        if not pages.refused:
            self.number, self.mark = pages.number, pages.mark
            with suppress(FileNotFoundError):
                os.truncate(self._path, self._at)
        self._left = self._stamps()

    def _write(self, line: bytes) -> None:
        if self._log < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._log = os.open(self._path, flags, 0o600)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._log, rest) :]
        os.fsync(self._log)

    def _stamps(self) -> tuple[Stamp | None, Stamp | None]:
        return stamp(self._folder / NAME), stamp(self._path) if self._tip else None


def log_name(tip: bytes) -> str:
    """The name of the log that follows the snapshot with this MAC."""
    return f"plan.{tip[:8].hex()}.log"


def _seal(key: bytes, before: bytes, body: bytes) -> bytes:
    """The MAC of bytes that follow what `before` stands for."""
    made = hmac.new(key, before, hashlib.sha256)
    with memoryview(body) as view:
        for at in range(0, len(body), _PIECE):
            made.update(view[at : at + _PIECE])
    return made.digest()
