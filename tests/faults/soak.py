"""How long the long runs are: `TAPSTER_SOAK` scales them, 1 is full length."""

import os
from typing import Final

SOAK: Final = float(os.environ.get("TAPSTER_SOAK", "1"))


def scaled(full: float, least: float = 0.0) -> float:
    """A length (seconds, or a count) at this run's scale, never below `least`."""
    return max(least, full * SOAK)
