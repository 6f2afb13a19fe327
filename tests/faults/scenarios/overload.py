"""Ten times as many requests as a worker can answer, on schedule, whatever becomes of them."""

import time
from dataclasses import dataclass, field
from typing import Final

import psutil

from tapster.contract.plan import Options
from tests.faults.scenarios import models
from tests.faults.scenarios.load import Answered, Load, cases
from tests.serving.conftest import Plane, endpoint

# About 4.5 ms a row, so that ten times its peak is still an easy load to make.
LAYERS: Final = 800
OPTIONS: Final = Options(deadline=2.0, queue=64)
TIMES: Final = 10
ENDPOINT: Final = "busy"


@dataclass
class Overload:
    """Requests a second answered at best (the worse of before and after, as others may use the
    machine) and under overload; times in seconds."""

    peak: float
    goodput: float = 0.0
    offered: float = 0.0
    accepted: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    hints: bool = True
    memory: tuple[int, int] = (0, 0)
    recovery: float = 0.0
    generator: float = 0.0
    unsent: int = 0
    failures: list[str] = field(default_factory=list)


def overload(plane: Plane, seconds: float) -> Overload:
    """Measure the peak, then offer ten times as much for so many seconds, then half of it."""
    package = models.seal(plane.home, models.busy(LAYERS))
    plane.plan(endpoint(ENDPOINT, package, options=OPTIONS), packages=(package,))
    worker = psutil.Process(plane.start().pid)
    plane.applied()
    seen = Overload(_peak(plane, min(max(seconds / 4, 2.0), 10.0)))
    load = Load(plane.port, cases(ENDPOINT), rate=TIMES * seen.peak, connections=1000)
    with load:
        time.sleep(3.0)  # until connections are made and buffers have grown
        began, before = time.monotonic(), worker.memory_info().rss
        time.sleep(seconds)
        ended, after = time.monotonic(), worker.memory_info().rss
        load.rate = seen.peak / 2
        time.sleep(3.0)
    during = [a for a in load.answers if began <= a.due < ended]
    seen.offered = len(during) / seconds
    seen.goodput = sum(a.status == 200 for a in during) / seconds
    seen.accepted = [a.took for a in during if a.status == 200]
    seen.rejected = [a.took for a in during if a.status == 503]
    seen.hints = all(a.retry_after for a in during if a.status == 503)
    seen.statuses = {a.status for a in load.answers}
    seen.peak = min(seen.peak, _peak(plane, min(max(seconds / 4, 2.0), 10.0)))
    seen.memory, seen.generator, seen.unsent = (before, after), load.busy, load.unsent
    seen.recovery = _recovery([a for a in load.answers if a.due >= ended], ended)
    seen.failures = [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
    return seen


def _peak(plane: Plane, seconds: float) -> float:
    """Requests a second of as many callers as fill the model without waiting long."""
    with Load(plane.port, cases(ENDPOINT), connections=16) as load:
        load.more(50)
        began = time.monotonic()
        time.sleep(seconds)
        return len(load.good(began, began + seconds)) / seconds


def _recovery(after: list[Answered], ended: float) -> float:
    """Seconds until nothing is refused or slow any more."""
    bad = [a.due - ended for a in after if a.status != 200 or a.took > 0.25]
    return max(bad, default=0.0)
