"""What the threads of this process do: their stacks, looked at many times a second, and counted.

The result is text of collapsed stacks, a line each: `thread;outermost;...;innermost COUNT`, which
flame-graph programs read. Functions are given by module and name, without paths or values.
"""

import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Final

from tapster.contract.errors import TapsterError

INTERVAL: Final = 0.005
LONGEST: Final = 30.0
MAX_STACKS: Final = 5000
MAX_DEPTH: Final = 100
MAX_NAME: Final = 200

_busy: Final = threading.Lock()


def sample(seconds: float) -> str:
    """Look at all threads but this one for so long; blocks. One at a time.

    Raises TapsterError(conflict) while another does it, and TapsterError(invalid) for a time that
    is not between 0 and LONGEST seconds.
    """
    if not 0 < seconds <= LONGEST:
        raise TapsterError(
            "invalid",
            f"a profile takes more than 0 and at most {LONGEST:g} seconds",
            hint="for example ?seconds=3",
            field="seconds",
        )
    if not _busy.acquire(blocking=False):
        raise TapsterError("conflict", "this worker is being profiled already", hint="try later")
    try:
        return _spell(_counted(seconds))
    finally:
        _busy.release()


def _counted(seconds: float) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    me = threading.get_ident()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for thread, frame in sys._current_frames().items():
            if thread != me:
                stack = (names.get(thread, "unknown"), *_stack(frame))
                if stack in counts or len(counts) < MAX_STACKS:
                    counts[stack] += 1
        time.sleep(INTERVAL)
    return counts


def _stack(frame: FrameType | None) -> list[str]:
    """The functions that are being called, the outermost first."""
    found: list[str] = []
    while frame is not None and len(found) < MAX_DEPTH:
        module = frame.f_globals.get("__name__", "?")
        found.append(f"{module}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return found[::-1]


def _spell(counts: Counter[tuple[str, ...]]) -> str:
    lines = []
    for stack, count in counts.most_common():
        names = [name[:MAX_NAME].replace(";", ",").replace("\n", " ") for name in stack]
        lines.append(f"{';'.join(names)} {count}\n")
    return "".join(lines)
