"""What runs cost, and what one turn of the event loop may spend on them."""

import asyncio
import math
from typing import Final

MAX_ROWS: Final = 1024
# Values that the answers of a batch may hold: spelled, each takes some tens of bytes.
MAX_VALUES: Final = 1 << 19
# And those that it is made of, which a model turns into others, often many more.
MAX_TAKEN: Final = 1 << 22
# Handing a batch to a thread and its outcome back, in seconds.
HANDOVER: Final = 0.0001
# Rows of the batches that a model is measured with before it serves; an estimate is trusted for so
# many times the rows of the largest run that it was right about.
MEASURED_ROWS: Final = 16
TRUST: Final = 4
# A batch of so many times the cost of a call wastes little on the call; more rows only add delay.
ENOUGH: Final = 16.0


class Budget:
    """Seconds of inline model work that one turn of the event loop may spend."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self.limit = limit
        self._loop = loop
        self._spent = 0.0

    def take(self, estimate: float) -> bool:
        """Spend `estimate` seconds of this turn, if so much is left."""
        if self._spent + estimate > self.limit:
            return False
        if self._spent == 0.0:
            self._loop.call_soon(self._renew)
        self._spent += estimate
        return True

    def _renew(self) -> None:
        self._spent = 0.0


class Cost:
    """What a run costs: seconds a call and a row, corrected by what runs really took.

    Processor time says whether a batch fits a turn of the event loop; time on the clock, which is
    longer on a busy machine, says how long those behind it wait. `most` rows go into a run, of
    which each takes so many values (`taken`) and is answered by so many. Beyond `trusted` rows
    nobody knows: what a run costs may grow faster than its rows.
    """

    def __init__(self, call: float, row: float, values: int = 1, taken: int = 1) -> None:
        wanted = min(MAX_VALUES // max(values, 1), MAX_TAKEN // max(taken, 1))
        self.most = max(1, min(MAX_ROWS, wanted))
        self._call = max(call, 1e-7)
        self._row = max(row, 1e-9)
        self._scale = 1.0
        self._pace = 1.0
        self.trusted = TRUST * MEASURED_ROWS

    def estimate(self, rows: int) -> float:
        """Seconds of the processor that a batch of `rows` should take."""
        return (self._call + rows * self._row) * self._scale

    def learn(self, rows: int, seconds: float) -> None:
        """Move a tenth of the way to what a batch really took of the processor."""
        ratio = seconds / (self._call + rows * self._row)
        if TRUST * rows > self.trusted and ratio < TRUST * self._scale:
            self.trusted = TRUST * rows
        self._scale = min(max(0.9 * self._scale + 0.1 * ratio, 0.05), 1000.0)

    def duration(self, rows: int) -> float:
        """Seconds that a batch of `rows` should take in a thread, there and back."""
        return HANDOVER + (self._call + rows * self._row) * self._pace

    def clock(self, rows: int, seconds: float) -> None:
        """Move a quarter of the way to how long a batch really took in a thread."""
        ratio = max(seconds - HANDOVER, 0.0) / (self._call + rows * self._row)
        self._pace = min(max(0.75 * self._pace + 0.25 * ratio, 0.05), 1000.0)

    @property
    def overhead(self) -> float:
        """Seconds that a batch takes in a thread however many rows it has."""
        return HANDOVER + self._call * self._pace

    @property
    def worthwhile(self) -> int:
        """How many rows a batch should have at most: beyond, each only waits for the others."""
        return max(1, min(self.most, math.ceil(ENOUGH * self.overhead / (self._row * self._pace))))

    def wait(self, rows: float, batches: float = 0) -> float:
        """Seconds until `rows` have been run in so many batches, 0 for as many as are worth it."""
        batches = batches or math.ceil(rows / self.worthwhile)
        return batches * self.overhead + rows * self._row * self._pace
