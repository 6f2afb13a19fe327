"""Days and months, UTC: which days a period has, and when it ends.

Whoever counts says which day it is; nothing here asks a clock, so that none can be put back.
"""

import time
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from tapster.tenancy.ledger import periods


class Span(NamedTuple):
    """A period's first and last day, and its end (seconds since 1970)."""

    first: str
    last: str
    end: float


def today(at: float | None = None) -> str:
    """The day of a moment, by default of this one."""
    return periods.day_of(time.time() if at is None else at)


def span(period: str, day: str) -> Span:
    """The day or the month that `day` is in."""
    first = last = date.fromisoformat(day)
    if period == "month":
        first = first.replace(day=1)
        last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    midnight = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    return Span(first.isoformat(), last.isoformat(), midnight.timestamp())


def apart(one: str, other: str) -> int:
    """Days between two days."""
    return abs((date.fromisoformat(one) - date.fromisoformat(other)).days)


def before(day: str, days: int) -> str:
    """The day so many days earlier."""
    return (date.fromisoformat(day) - timedelta(days=days)).isoformat()


def until(moment: float) -> float:
    """Seconds from now to a moment, 0 if it is past."""
    return max(0.0, moment - time.time())
