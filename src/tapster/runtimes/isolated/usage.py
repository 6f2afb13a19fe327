"""What a process uses of the machine, by its id."""

import sys
from contextlib import suppress
from pathlib import Path


def memory(pid: int) -> tuple[int, int, int]:
    """Bytes of private memory that a process uses and has asked for, and of shared memory.

    Zeros once it is gone.
    """
    if sys.platform != "linux":
        import psutil

        with suppress(psutil.Error):
            used = int(psutil.Process(pid).memory_info().rss)
            return used, used, 0
        return 0, 0, 0
    found = dict.fromkeys(("RssAnon", "VmData", "RssShmem"), 0)
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) << 10
    return found["RssAnon"], found["VmData"], found["RssShmem"]


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]
