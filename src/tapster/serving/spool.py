"""Payloads on their way from a worker to control: segments, in a folder of the machine.

A segment is a file of frames (see `core.frames`) that one worker writes, of one endpoint. Its name
ends in `.open` while it is written, and its writer holds a lock on it; whoever finds it without one
knows that its writer is dead. Whole or not, a segment goes to control, and then away.
"""

import contextlib
import fcntl
import http.client
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from tapster.core.crypto import new_id
from tapster.core.envelope import DataKey
from tapster.core.frames import frame

log = logging.getLogger(__name__)

FOLDER: Final = "payloads"
NEW: Final = ".new"
OPEN: Final = ".open"
DONE: Final = ".done"
BETWEEN: Final = "~"
# A segment ends at so many bytes, or seconds after it began.
SEGMENT_BYTES: Final = 1 << 20
SEGMENT_SECONDS: Final = 2.0
# Documents that are written at once, in bytes; one may be larger.
FRAME_BYTES: Final = 256 << 10
# Bytes that may wait on a machine while control is away.
MOST_BYTES: Final = 128 << 20
SHIP_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 30.0

# Answers that would be the same again.
_NEVER: Final = frozenset({400, 413, 422})

# Asks control: method, path, body, seconds; status and body of the answer.
Ask = Callable[[str, str, bytes, float], tuple[int, bytes]]


@dataclass
class _Segment:
    path: Path
    name: str
    file: int
    began: float
    size: int = 0
    frames: int = 0
    records: int = 0


class Spool:
    """The segments that one worker writes."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "run" / FOLDER
        self._open: dict[tuple[str, str], _Segment] = {}

    def append(
        self, tenant: str, endpoint: str, documents: Sequence[bytes], key: DataKey | None
    ) -> bool:
        """Write JSON objects, each with its number as `record`.

        False if there is no room for more. Raises OSError.
        """
        pieces: list[list[bytes]] = [[]]
        size = 0
        for document in documents:
            if size and size + len(document) > FRAME_BYTES:
                pieces.append([])
                size = 0
            pieces[-1].append(document)
            size += len(document)
        return all(self._append(tenant, endpoint, piece, key) for piece in pieces)

    def _append(
        self, tenant: str, endpoint: str, documents: Sequence[bytes], key: DataKey | None
    ) -> bool:
        """One frame of a few documents, or one."""
        segment = self._open.get((tenant, endpoint))
        if segment is None:
            if self._waiting() > MOST_BYTES:
                return False
            segment = self._begin(tenant, endpoint)
        lines = []
        for document in documents:
            segment.records += 1
            lines.append(b'{"record":"%b-%d",%b\n' % (
                segment.name.encode(), segment.records, document[1:]
            ))  # fmt: skip
        place = (tenant, FOLDER, segment.name)
        data = frame(b"".join(lines), key, segment.frames, *place)
        written = 0
        try:
            written = os.write(segment.file, data)
        finally:
            segment.frames += 1
            segment.size += written
            # Nothing can be read that follows a frame which is not whole, or not there.
            if written < len(data) or segment.size >= SEGMENT_BYTES:
                self._end((tenant, endpoint))
        return written == len(data)

    def turn(self) -> None:
        """End the segments that are old enough."""
        now = time.monotonic()
        for place, segment in list(self._open.items()):
            if now - segment.began >= SEGMENT_SECONDS:
                self._end(place)

    def close(self) -> None:
        """End all segments."""
        for place in list(self._open):
            self._end(place)

    def _begin(self, tenant: str, endpoint: str) -> _Segment:
        name = new_id("seg")
        path = self._folder / tenant / f"{endpoint}{BETWEEN}{name}{OPEN}"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        hidden = path.with_suffix(NEW)
        file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)  # before anybody could take it for a dead writer's
        hidden.rename(path)
        segment = self._open[tenant, endpoint] = _Segment(path, name, file, time.monotonic())
        return segment

    def _end(self, place: tuple[str, str]) -> None:
        segment = self._open.pop(place)
        with contextlib.suppress(OSError):  # its tenant is no more, nor is its folder
            segment.path.rename(segment.path.with_suffix(DONE))
        os.close(segment.file)

    def _waiting(self) -> int:
        return sum(size for _, size in _files(self._folder))


@dataclass(frozen=True)
class Sealed:
    """A segment that nobody writes any more."""

    path: Path
    tenant: str
    endpoint: str
    name: str


def finished(home: Path) -> Iterator[Sealed]:
    """The segments of a machine that nobody writes any more, oldest first."""
    found = [(path.stat().st_mtime, path) for path, _ in _files(home / "run" / FOLDER)]
    for _, path in sorted(found):
        endpoint, between, name = path.stem.partition(BETWEEN)
        if between and (path.suffix == DONE or (path.suffix == OPEN and _dead(path))):
            yield Sealed(path, path.parent.name, endpoint, name)


def ship(home: Path, ask: Ask, stop: threading.Event) -> None:
    """Send what is finished to control, again and again, until told to stop."""
    while not stop.wait(SHIP_SECONDS):
        try:
            for segment in list(finished(home)):
                if stop.is_set():
                    break
                _send(segment, ask)
        except (OSError, http.client.HTTPException) as error:
            log.debug("payloads wait: %s", error)


def _send(segment: Sealed, ask: Ask) -> None:
    """Send a segment; once control has taken it, or wants none such, it is gone."""
    data = segment.path.read_bytes()
    if data:
        names = {"tenant": segment.tenant, "endpoint": segment.endpoint, "segment": segment.name}
        path = f"/internal/payloads?{urlencode(names)}"
        status, _ = ask("POST", path, data, ANSWER_SECONDS)
        if status in _NEVER:
            log.error("control takes no such payloads (%d): they are dropped", status)
        elif status != 200:
            return
    segment.path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat().st_size


def _dead(path: Path) -> bool:
    """Whether nobody holds the lock of a segment."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
