"""What this process has allocated, and how what it no longer needs goes back to the system.

Both ask the GNU C library; with another one nothing is known and nothing is done.
"""

import ctypes
import sys
from functools import cache
from typing import Any, Final

# Of mallinfo2(3): `uordblks` are bytes in use, `hblkhd` bytes in chunks mapped by themselves.
_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd",
    "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def allocated() -> int:
    """Bytes that are in use on the heap; 0 where nobody can say."""
    library = _library()
    if library is None:
        return 0
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def trim() -> None:
    """Give freed memory back, which malloc would keep for later."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@cache
def _library() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None
    library.mallinfo2.restype = _Info
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    return library
