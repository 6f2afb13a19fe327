"""Shared memory for large tensors: files without a name, handed from process to process.

A segment never changes its size (sealed, memfd_create(2), where the system can), so that nobody
who holds it can make a read in another process fail.
"""

import fcntl
import mmap
import os
import sys
import tempfile
from contextlib import suppress
from typing import Final

SMALLEST: Final = 1 << 20
# Larger segments are given back after one run.
KEEP: Final = 32 << 20


class Segment:
    """Shared memory of `size` bytes, mapped here; `descriptor` is open until `close`."""

    def __init__(self, descriptor: int) -> None:
        """Map an open file; takes the descriptor over. Raises OSError or ValueError."""
        self.descriptor = descriptor
        try:
            self.size = os.fstat(descriptor).st_size
            self.memory = mmap.mmap(descriptor, self.size)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def make(cls, size: int) -> "Segment":
        """New memory for at least `size` bytes. Raises OSError."""
        rounded = max(SMALLEST, 1 << (size - 1).bit_length())
        if sys.platform == "linux":
            descriptor = os.memfd_create("tapster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, rounded)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, rounded)
        return cls(descriptor)

    def close(self) -> None:
        """Give the memory back; where an array still lies in it, once that is gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with suppress(BufferError):
                self.memory.close()
