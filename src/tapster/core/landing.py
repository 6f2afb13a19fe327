"""Bytes on their way, by tenant: decided upon, and not yet where they will be counted."""

import threading
from collections import Counter


class Landing:
    """What is on its way. Whoever decides by it holds `lock` meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._bytes: Counter[str] = Counter()

    def of(self, tenant: str) -> int:
        """Bytes of a tenant that are on their way."""
        return self._bytes[tenant]

    def add(self, tenant: str, count: int) -> None:
        """More are; the lock is held."""
        self._bytes[tenant] += count

    def end(self, tenant: str, count: int) -> None:
        """They have arrived, or never will."""
        with self.lock:
            self._bytes[tenant] -= count
            if not self._bytes[tenant]:
                del self._bytes[tenant]
