"""Bytes on their way, by tenant: decided upon, and not yet where they will be counted."""

import threading
from collections import Counter


class Landing:
    """What is on its way. Whoever decides by it holds `lock` meanwhile, and only for a moment."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._bytes: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()

    def of(self, tenant: str) -> int:
        """Bytes of a tenant that are on their way."""
        return self._bytes[tenant]

    def ends(self, tenant: str) -> int:
        """How often something of a tenant's has arrived, or has given up."""
        return self._ends[tenant]

    def add(self, tenant: str, count: int) -> None:
        """More are; the lock is held."""
        self._bytes[tenant] += count

    def end(self, tenant: str, count: int) -> None:
        """They have arrived, or never will."""
        with self.lock:
            self._bytes[tenant] -= count
            self._ends[tenant] += 1
