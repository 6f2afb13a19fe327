"""What one worker may hold of bodies that come and answers that go, and who waits for room.

A body is accounted for from its first piece that is not yet all of it until its request is
answered: all that its head promises, or twice what has come of one of unknown length. Bodies being
decompressed are accounted for afterwards; there are no more of these than threads that read.
Answers have a limit of their own, of the same size, so that neither keeps the other out.
"""

from collections import deque
from typing import Final, Protocol

# Connections that may wait; each holds what the last read brought.
MAX_WAITING: Final = 256
SMALL: Final = 64 * 1024


class Waiter(Protocol):
    """A connection that waits for room for the body it is receiving."""

    def granted(self) -> None:
        """The room that was asked for is there, and taken."""
        ...

    def denied(self) -> None:
        """It waits no more: others have fewer who wait, and there is no place for all."""
        ...


class Memory:
    """Bytes `held` for bodies, and `owed` to clients, against a limit each.

    Who waits is served in order, by turns of tenants; a small body does not wait, up to a quarter
    beyond the limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.owed = 0
        # By tenant, in the order of their turns.
        self._waiting: dict[str, deque[tuple[Waiter, int]]] = {}

    @property
    def full(self) -> bool:
        """Whether no body may be held any more."""
        return self.held >= self.limit

    @property
    def unread(self) -> bool:
        """Whether clients are owed so much that no large answer may be added."""
        return self.owed >= self.limit

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def take(self, size: int) -> bool:
        """Hold `size` bytes more if there is room and nobody waits. One body always has room."""
        small = size <= SMALL and self.held + size <= self.limit * 5 // 4
        if not small and (self._waiting or not self._fits(size)):
            return False
        self.held += size
        return True

    def owe(self, size: int) -> None:
        """Clients have yet to take `size` bytes of answers more (or fewer)."""
        self.owed += size

    def add(self, size: int) -> None:
        """Hold `size` bytes more (or fewer), room or not: they are there already."""
        self.held += size
        if size < 0:
            self._grant()

    def give(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.add(-size)

    def wait(self, waiter: Waiter, size: int, tenant: str = "") -> bool:
        """Have `waiter` told once `size` bytes are held for it.

        False if too many wait already, unless a tenant with more of them gives way.
        """
        line = self._waiting.get(tenant, ())
        if sum(map(len, self._waiting.values())) >= MAX_WAITING:
            fullest = max(self._waiting, key=lambda name: len(self._waiting[name]))
            if len(self._waiting[fullest]) <= len(line) + 1:
                return False
            self._waiting[fullest].pop()[0].denied()
        self._waiting.setdefault(tenant, deque()).append((waiter, size))
        return True

    def forget(self, waiter: Waiter) -> None:
        """It waits no more."""
        for tenant, line in self._waiting.items():
            kept = deque(pair for pair in line if pair[0] is not waiter)
            if len(kept) < len(line):
                self._waiting[tenant] = kept
                if not kept:
                    del self._waiting[tenant]
                break
        self._grant()

    def _fits(self, size: int) -> bool:
        return self.held + size <= self.limit or self.held <= 0

    def _grant(self) -> None:
        while self._waiting:
            tenant, line = next(iter(self._waiting.items()))
            waiter, size = line[0]
            if not self._fits(size):
                return
            line.popleft()
            del self._waiting[tenant]
            if line:
                self._waiting[tenant] = line
            self.held += size
            waiter.granted()
