"""Days, hours and months of lines; all UTC."""

import calendar
import re
import time
from datetime import UTC, date, datetime
from typing import Final

from tapster.contract.errors import TapsterError

# How long after its month's end a line that comes late is still put on that month's bill.
CLOSING_SECONDS: Final = 3 * 86400.0
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_MONTH: Final = re.compile(r"\d{4}-\d\d")


def day_of(at: float) -> str:
    """The date of a moment, such as `2026-11-21`."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def hour_of(at: float) -> str:
    """The hour of a moment, such as `2026-11-21T14`."""
    return time.strftime("%Y-%m-%dT%H", time.gmtime(at))


def is_day(text: str) -> bool:
    """Whether this is a date as lines have them."""
    try:
        return bool(_DAY.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def day(text: str, field: str) -> str:
    """A date that somebody typed. Raises TapsterError(invalid)."""
    if not is_day(text):
        raise TapsterError("invalid", f"{text[:50]!r} is not a date like 2026-11-21", field=field)
    return text


def month(text: str, field: str = "month") -> str:
    """A month that somebody typed. Raises TapsterError(invalid)."""
    if not _MONTH.fullmatch(text) or not is_day(f"{text}-01"):
        raise TapsterError("invalid", f"{text[:50]!r} is not a month like 2026-11", field=field)
    return text


def begins(day: str) -> float:
    """The first moment of a day."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def ends(month: str) -> float:
    """The first moment after a month."""
    year, number = int(month[:4]), int(month[5:])
    last = calendar.monthrange(year, number)[1]
    return begins(f"{month}-{last}") + 86400.0


def hour_within(day: str, at: float) -> str:
    """The hour of `at`, held to `day`: reports may come after their day's end."""
    found = hour_of(at)
    return min(max(found, f"{day}T00"), f"{day}T23")


def bill_month(day: str, at: float) -> str:
    """On which month's bill a line of `day` stands that is written at `at`.

    Its own, unless that month's bill has closed, or the machine's clock is days ahead.
    """
    own = day[:7]
    if at >= ends(own) + CLOSING_SECONDS or begins(day) > at + 86400.0:
        return day_of(at)[:7]
    return own


def priced_at(day: str, at: float) -> float:
    """The moment whose prices hold for what was counted on `day` and arrives at `at`."""
    return min(at, begins(day) + 86400.0 - 0.001)


def state(month: str, now: float) -> str:
    """Of a month's bill: `open`, `closing` while late lines are still put on it, or `final`."""
    end = ends(month)
    return "open" if now < end else "closing" if now < end + CLOSING_SECONDS else "final"
