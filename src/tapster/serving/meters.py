"""The limits of one worker: what is left of each here, and what the machine's wallet has.

What is here is taken at once, by whoever counts (see `tills`). When there is too little, a meter's
`draw` gets more from the wallet: it says True when the request may go on as far as this limit is
concerned, and False when it must wait; it raises LimitError when waiting is no use.
"""

import time
from collections.abc import Callable
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.plan import LimitGrant
from tapster.contract.usage import LARGEST
from tapster.serving.wallet import (
    ANSWERED,
    ARRIVAL,
    ASKED,
    GRANTED,
    LEFT,
    RESETS,
    SPENT,
    WANTED,
    Entry,
    Wallet,
)

SECOND: Final = 1_000_000_000
# What the control plane has said of an exhausted budget is asked for again after so long.
FRESH: Final = SECOND
# A worker draws from a budget as much at once as this share of it, at first and at most; and no
# more than this share of what is left, so that nothing lies idle in one worker when others need it.
FIRST_SHARE, LARGEST_SHARE, SHARE_OF_REST = 1024, 64, 64
# Draws that follow one another faster grow; so many of them are asked for ahead of need.
QUICKLY: Final = SECOND // 2
AHEAD: Final = 4
# A worker takes what a rate allows in so long (nanoseconds) at once.
CHUNK: Final = SECOND // 100
# What a place to run in counts for in a worker's column while nothing runs there, beside itself.
SPARE: Final = 1 << 32
_NAMES: Final = {
    "requests": "requests",
    "rows": "rows",
    "tokens": "tokens",
    "compute": "compute",
    "money": "spend",
    "rate": "requests a second",
    "concurrency": "concurrent requests",
}
_SCALES: Final = {"compute": 10**9, "money": 10**9, "rate": 1000}
_QUANTITIES: Final = {"compute": "seconds of compute"}

Clock = Callable[[], int]


class LimitError(TapsterError):
    """A limit was hit: which, how much it allows, what is left, seconds until it resets."""

    def __init__(self, limit: LimitGrant, remaining: int, resets: float, hint: str = "") -> None:
        where = " at this endpoint" if limit.endpoint else ""
        where += " with this key" if limit.key else ""
        period = f" of the {limit.period}" if limit.period else ""
        allowed = shown(limit, limit.amount)
        super().__init__(
            "exhausted",
            f"the limit is reached: {_NAMES[limit.metric]}{period}{where} ({allowed})",
            hint=hint or f"it resets in {_lasting(resets)}",
            retry_after=resets,
        )
        self.limit = _whole(limit, limit.amount)
        self.remaining = _whole(limit, max(remaining, 0))
        self.resets = resets


def shown(limit: LimitGrant, units: int) -> str:
    """An amount as people say it."""
    scale = _SCALES.get(limit.metric, 1)
    what = _QUANTITIES.get(limit.metric, "")
    return f"{units / scale:.12g} {what}".rstrip()


def _whole(limit: LimitGrant, units: int) -> int:
    return units // _SCALES.get(limit.metric, 1)


def _lasting(seconds: float) -> str:
    whole = max(1, round(seconds))
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {name}"
    return f"{whole} s"


class Purse:
    """What a worker has of a budget on one day. `free` is neither spent nor reserved."""

    __slots__ = (
        "_before", "_chunk", "_clock", "_drawn_at", "_entry", "_wallet", "_worker", "day", "free",
        "limit", "scarce", "waiting",
    )  # fmt: skip

    def __init__(
        self, limit: LimitGrant, day: int, wallet: Wallet, worker: int, clock: Clock
    ) -> None:
        self.limit = limit
        self.day = day
        self.free = 0
        self.scarce = False  # so little is left that nobody keeps any
        self.waiting = 0  # units that requests here wait for
        self._wallet = wallet
        self._worker = worker
        self._clock = clock
        self._entry: Entry | None = None
        self._chunk = max(1, limit.amount // FIRST_SHARE)
        self._drawn_at = 0
        self._before = 0  # free units at the last beat

    def draw(self, need: int) -> bool:
        """Have so many units here. Raises LimitError; see above."""
        if need <= self.free or self._draw(need):
            return True
        self._judge(need)
        return False

    def yield_all(self) -> None:
        """Let the other workers have what is free here."""
        if self.free and self._entry is not None:
            units, self.free = self.free, 0
            self._entry.set(self._worker, self._entry.column(self._worker) - units)

    def beat(self) -> None:
        """Called a few times a second: what nobody has asked for since is given away."""
        if self.free == self._before:
            self.yield_all()
        self._before = self.free

    def resets(self) -> float:
        """Seconds until its period ends, as the control plane has it."""
        end = self._entry[RESETS] if self._entry is not None else 0
        return max(1.0, end - time.time()) if end else 1.0

    def _draw(self, need: int) -> bool:
        """Whether there are so many units here now."""
        wallet = self._wallet
        if not wallet.lock.take():
            return False
        try:
            entry = self._entry
            if entry is None:
                entry = self._entry = wallet.book(self.day).add(self.limit.id)
            return self._draw_from(entry, need)
        finally:
            wallet.lock.give()

    def _draw_from(self, entry: Entry, need: int) -> bool:
        now = self._clock()
        quick = now - self._drawn_at < QUICKLY
        self._drawn_at = now
        most = max(1, self.limit.amount // LARGEST_SHARE)
        self._chunk = min(self._chunk * 2, most) if quick else max(1, self._chunk // 2)
        drawn = entry.drawn()
        free = max(entry[GRANTED] - drawn, 0)
        rest = (free + (entry[LEFT] if entry[ANSWERED] else self.limit.amount)) // SHARE_OF_REST
        self.scarce = rest < max(need, 1)
        chunk = min(self._chunk, rest)
        missing = need - self.free
        enough = missing <= free
        if enough:
            units = max(missing, min(chunk, free))
            entry.set(self._worker, entry.column(self._worker) + units)
            self.free += units
            drawn, free = drawn + units, free - units
        ahead = AHEAD * chunk
        refused = not enough and need > self.limit.amount  # whatever is granted
        if not refused and (not enough or free < ahead):
            wanted = 0 if enough else max(missing, self.waiting)
            self._want(entry, drawn + wanted + 2 * ahead, now)
        return enough

    def _want(self, entry: Entry, units: int, now: int) -> None:
        # What was wanted once, and is answered, nobody may want any more.
        pending, units = entry[ASKED] >= entry[ANSWERED], min(units, LARGEST)
        entry[WANTED] = max(units, entry[WANTED]) if pending else units
        if entry[WANTED] > entry[GRANTED]:
            entry[ASKED] = now
            self._wallet.demand()

    def _judge(self, need: int) -> None:
        """Raises LimitError when there will be no more within the period."""
        entry = self._entry
        if need > self.limit.amount:
            hint = f"the request alone takes {shown(self.limit, need)}"
            raise LimitError(self.limit, self._left(), self.resets(), hint)
        if entry is None or not entry[SPENT] or entry[RESETS] <= time.time():
            return
        if 0 <= self._clock() - entry[ANSWERED] < FRESH and self._left() < need:
            raise LimitError(self.limit, self._left(), self.resets())

    def _left(self) -> int:
        """Units that are left on this machine."""
        entry = self._entry
        return max(entry[GRANTED] - entry.drawn(), 0) + self.free if entry is not None else 0


class Gauge:
    """How many requests may run at once, over all workers.

    A worker's column has, as two numbers, what it may run and how much of that is `spare`: kept
    for those who come next, while less than half of all may run, and for no longer than a beat.
    """

    __slots__ = ("_column", "_entry", "_keeps", "_wallet", "_worker", "limit", "spare")

    def __init__(self, limit: LimitGrant, wallet: Wallet, worker: int) -> None:
        self.limit = limit
        self.spare = 0
        self._wallet = wallet
        self._worker = worker
        self._entry: Entry | None = None
        self._column = 0
        self._keeps = False

    def draw(self) -> bool:
        """Have room for one more. Raises LimitError; see above."""
        wallet = self._wallet
        if not wallet.lock.take():
            return False
        try:
            entry = self._entry
            if entry is None:
                entry = self._entry = wallet.held.add(self.limit.id)
            spare, held = divmod(entry.drawn(), SPARE)
            if held >= self.limit.amount:
                if spare:  # in other workers, for a moment
                    return False
                raise LimitError(self.limit, 0, 1.0, "it is free again once others have ended")
            self._keeps = 2 * held < self.limit.amount
            self.spare += 1
            self._write(1 + SPARE)
        finally:
            wallet.lock.give()
        return True

    def take(self) -> None:
        """One runs in a place that was spare."""
        self.spare -= 1
        self._write(-SPARE)

    def give(self, count: int) -> None:
        """So many have ended."""
        if self._keeps:
            self.spare += count
            self._write(count * SPARE)
        else:
            self._write(-count)

    def tidy(self) -> None:
        """Keep nothing that others may need."""
        if self.spare and not self._keeps:
            units, self.spare = self.spare, 0
            self._write(-units * (1 + SPARE))

    def beat(self) -> None:
        """Called a few times a second."""
        self._keeps = False
        self.tidy()

    def _write(self, change: int) -> None:
        assert self._entry is not None
        self._column += change
        self._entry.set(self._worker, self._column)


class Rate:
    """Requests a second, with a burst: a token bucket as one number, the theoretical arrival time
    of the generic cell rate algorithm (ITU-T I.371). Workers take tokens from it by the hundredth
    of a second, so that over any time at most `workers` hundredths of a second too many pass.
    """

    __slots__ = ("_burst", "_chunk", "_clock", "_entry", "_gap", "_wallet", "limit", "tokens")

    def __init__(self, limit: LimitGrant, wallet: Wallet, clock: Clock) -> None:
        self.limit = limit
        self.tokens = 0
        self._wallet = wallet
        self._clock = clock
        self._entry: Entry | None = None
        self._gap = max(1, 1000 * SECOND // max(limit.amount, 1))
        self._burst = self._gap * (limit.burst or max(1, limit.amount // 1000))
        self._chunk = max(1, CHUNK // self._gap)

    def draw(self) -> bool:
        """Have tokens. Raises LimitError; see above."""
        if not self._wallet.lock.take():
            return False
        try:
            return self._draw(self._clock())
        finally:
            self._wallet.lock.give()

    def _draw(self, now: int) -> bool:
        entry = self._entry
        if entry is None:
            entry = self._entry = self._wallet.held.add(self.limit.id)
        arrival = entry[ARRIVAL]
        if arrival < now or arrival > now + self._burst + self._gap * self._chunk:
            arrival = now  # the clock began anew with the machine, or the limit was another
        tokens = min(self._chunk, (now + self._burst - arrival) // self._gap)
        if tokens < 1:
            wait = (arrival + self._gap - now - self._burst) / SECOND
            raise LimitError(self.limit, 0, wait)
        entry[ARRIVAL] = arrival + tokens * self._gap
        self.tokens = tokens
        return True
