"""Files that grow in memory: mapped piece by piece, so that nothing mapped ever moves.

The disk's room for a piece is taken before it is mapped: a full disk is an error that somebody
can handle, not a signal in the middle of a write.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# A multiple of the page size of every machine; the pieces double up to the second.
FIRST: Final = 1 << 16
LARGEST: Final = 1 << 20
# How often, and after how many seconds, a lock that another process holds is tried again.
TRIES: Final = 20
PAUSE: Final = 0.00005


class Extent:
    """A piece of a file, as bytes and as 64-bit words of this machine's byte order."""

    __slots__ = ("memory", "words")

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.words: memoryview[int] = memoryview(memory).cast("Q")


def spans() -> Iterator[tuple[int, int]]:
    """Where each extent of a file begins, and its bytes."""
    start, size = 0, FIRST
    while True:
        yield start, size
        start += size
        size = min(2 * size, LARGEST)


class Extents:
    """A file of extents; those that it has are mapped at once."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._spans = spans()
        self._next = next(self._spans)
        self.all: list[Extent] = []
        self.refresh()

    def refresh(self) -> None:
        """Map what the file has grown by."""
        size = os.fstat(self.file).st_size
        while sum(self._next) <= size:
            self._map()

    def grow(self) -> Extent:
        """Another extent, of zeros. Raises OSError when there is no room for it."""
        start, size = self._next
        os.posix_fallocate(self.file, start, size)
        return self._map()

    def _map(self) -> Extent:
        start, size = self._next
        extent = Extent(mmap.mmap(self.file, size, offset=start))
        self.all.append(extent)
        self._next = next(self._spans)
        return extent


class Lock:
    """A lock on a file that processes share, and threads that opened it apart. It is never waited
    for long: `take` may fail. It goes with the process."""

    def __init__(self, path: Path) -> None:
        self.file = -1
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)

    def take(self) -> bool:
        """Whether it is ours now."""
        for _ in range(TRIES):
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(PAUSE)
            else:
                return True
        return False

    def give(self) -> None:
        """Let others have it."""
        fcntl.flock(self.file, fcntl.LOCK_UN)

    def __enter__(self) -> "Lock":
        """Wait until it is ours: for threads that may wait, and a process that begins."""
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self.give()
