"""What it costs to know who calls, to count it and to hold it to limits: processor time a request.

The same worker is driven with the gate, the limits and the counting stubbed out (`ungated.py`), as
it is with a tenant without limits, and with one that has every kind of limit there is.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.planes import Plane
from benchmarks.report import Verdict

from tapster.contract.plan import LimitGrant, Price, TenantGrant
from tapster.contract.usage import BUDGETED
from tapster.serving.wallet import ANSWERED, GRANTED, LEFT, RESETS, Wallet

GOAL_US: Final = 5.0
PLENTY: Final = 10**15
DAY: Final = 86_400
UNGATED: Final = (str(Path(__file__).with_name("ungated.py")),)
LIMITS: Final = (
    LimitGrant("lim_rate", "rate", 10**9, burst=10**6),
    LimitGrant("lim_concurrency", "concurrency", 10**6),
    LimitGrant("lim_requests", "requests", PLENTY, "day"),
    LimitGrant("lim_rows", "rows", PLENTY, "month"),
    LimitGrant("lim_compute", "compute", PLENTY, "month"),
    LimitGrant("lim_money", "money", PLENTY, "month"),
)
PRICES: Final = (Price(request=1000, row=10, compute=1_000_000),)
TWO: Final = "a rate and a daily budget"
NAMES: Final = ("stubbed out", "no limits", TWO, f"{len(LIMITS)} limits of every kind")

Drive = Callable[[Plane], dict[str, Any]]
Serve = Callable[[Plane, tuple[TenantGrant, ...], tuple[Price, ...]], None]


def measure(
    wire: str, rounds: int, new_plane: Callable[[str], Plane], serve: Serve, drive: Drive
) -> Iterator[Verdict]:
    """Print and judge; `serve` makes a plane serve a tenant `caller`, `drive` calls it."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with ExitStack() as running:
        planes = {name: running.enter_context(new_plane(f"{wire}-{at}")) for at, name in _listed()}
        for name, plane in planes.items():
            _prepare(plane, name, serve)
        for _ in range(rounds):
            for name, plane in planes.items():
                found[name].append(drive(plane))
    spent = {name: statistics.median(one["cpu_us"] for one in each) for name, each in found.items()}
    for name in NAMES:
        rate = statistics.median(one["rate"] for one in found[name])
        more = spent[name] - spent[NAMES[0]]
        print(f"| {wire} | {name} | {rate:,.0f} | {spent[name]:.1f} | {more:.1f} |", flush=True)
    for name in NAMES[1:]:
        more = spent[name] - spent[NAMES[0]]
        goal = f"{wire}: key, {name}, metering: under {GOAL_US:g} us of processor a request"
        yield Verdict(goal, f"{more:.1f} us", more < GOAL_US)


def _listed() -> list[tuple[int, str]]:
    return list(enumerate(NAMES))


def _prepare(plane: Plane, name: str, serve: Serve) -> None:
    if name == NAMES[0]:
        plane.module = UNGATED
    limits = {NAMES[2]: LIMITS[:3:2], NAMES[3]: LIMITS}.get(name, ())
    _fill(plane.home, limits)
    serve(plane, (TenantGrant("caller", limits=limits),), PRICES if name == NAMES[3] else ())


def _fill(home: Path, limits: tuple[LimitGrant, ...]) -> None:
    """Grant all that the limits allow, as the control plane would."""
    wallet = Wallet(home)
    with wallet.lock:
        book = wallet.book(int(time.time()) // DAY)
        for limit in limits:
            if limit.metric in BUDGETED:
                entry = book.add(limit.id)
                entry[GRANTED] = entry[LEFT] = PLENTY
                entry[ANSWERED], entry[RESETS] = time.monotonic_ns(), int(time.time()) + DAY
