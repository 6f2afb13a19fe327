"""Whose turn it is to be read: tenants share the event loop before anything of theirs is queued.

Reading and parsing take the loop's time. A tenant may have as much of it in one turn of the loop
as some tens of small requests need; beyond that, and while others call, what its connections bring
is held back until everybody else's has been read, and who sends on meanwhile is paused. Those held
back are read by turns of their tenants (deficit round robin: Shreedhar and Varghese, 1995).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakValueDictionary

# Cost is counted in small requests; so many bytes (as a power of two) cost as much as one more.
BYTES_BITS: Final = 12
# What a tenant of weight 1 may have in one turn, about half a millisecond.
QUOTA: Final = 16
LEAST_WEIGHT: Final = 1.0 / QUOTA
# Seconds of a turn that go to those who were held back, before sockets are looked at again.
LONGEST: Final = 0.002
# How often it is looked who calls at all, and how long somebody counts as one who does.
LOOK_SECONDS: Final = 0.5
RECENT_SECONDS: Final = 5.0
# What strangers may spend in a second and be nobody's competitors: each connection of every caller
# is a stranger's at first.
STRANGERS: Final = 500


class Reader(Protocol):
    """A connection that has been held back."""

    def read_on(self) -> None:
        """Take what has come."""
        ...


class Share:
    """What a tenant has had of the loop: `spent`, which may grow to `most` until somebody asks.

    `tight` says that its connections are to be read in small pieces.
    """

    __slots__ = (
        "__weakref__", "called", "held", "most", "seen", "spent", "tenant", "tight", "turn"
    )  # fmt: skip

    def __init__(self, tenant: str, tight: bool = False) -> None:
        self.tenant = tenant
        self.tight = tight
        self.spent = 0
        self.most = 0
        self.turn = -1  # in which `most` was last set
        self.held: deque[Reader] = deque()
        self.seen = 0  # what was spent when it was last looked, and when it had last grown
        self.called = -RECENT_SECONDS


class Shares:
    """The shares of a worker's callers, on both ports. Every method runs on the event loop.

    `weight` is a tenant's. Connections of which nobody has shown a key yet are `strangers`, who
    have one share together.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self.strangers = Share("", tight=True)
        self.contended = False
        self._weight = weight
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()
        self._waiting: deque[Share] = deque()
        self._turn = 0
        self._ends = False  # the turn is going to be ended
        self._looked = 0.0

    def of(self, tenant: str) -> Share:
        """A tenant's share. It lasts as long as somebody refers to it."""
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant, self.contended)
        return share

    def over(self, share: Share) -> bool:
        """Whether more must be held back; to be asked once `spent` has reached `most`."""
        if share.held:
            return True
        if share.turn != self._turn:
            share.turn = self._turn
            self._end_turn()
        elif self._competing():
            return True
        share.most = share.spent + self._quota(share)
        return False

    def hold(self, share: Share, reader: Reader) -> None:
        """Have a connection of a tenant that is over its share read when that comes round."""
        if not share.held:
            self._waiting.append(share)
        share.held.append(reader)
        self._end_turn()

    def _end_turn(self) -> None:
        """End this turn once every socket has been read that has something now."""
        if not self._ends:
            self._ends = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._ends = False
        self._turn += 1
        until = time.monotonic() + LONGEST
        waiting = self._waiting
        for _ in range(len(waiting)):
            share = waiting[0]
            share.turn = self._turn
            if share.spent >= share.most:
                share.most += self._quota(share)
            while share.held and share.spent < share.most:
                share.held.popleft().read_on()
                if time.monotonic() >= until:
                    break
            if not share.held:
                waiting.popleft()
            elif share.spent >= share.most:
                waiting.rotate(-1)
            if time.monotonic() >= until:
                break
        if waiting:
            self._end_turn()

    def _quota(self, share: Share) -> int:
        return int(QUOTA * max(self._weight(share.tenant), LEAST_WEIGHT))

    def _competing(self) -> bool:
        """Whether several tenants have called in the last seconds."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            few, self._looked = STRANGERS * (now - self._looked), now
            shares = [self.strangers, *self._shares.values()]
            for share in shares:
                if share.spent - share.seen > (few if share is self.strangers else 0):
                    share.called = now
                share.seen = share.spent
            called = [share for share in shares if now - share.called < RECENT_SECONDS]
            self.contended = len(called) > 1
            for share in shares[1:]:
                share.tight = self.contended
        return self.contended
