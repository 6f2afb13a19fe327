"""Money as whole billionths of the currency: from decimal strings, and back, never by floats."""

import re
from decimal import Decimal
from typing import Final

from tapster.contract.errors import TapsterError

NANO: Final = 10**9
DEAREST: Final = 1000 * NANO
_NUMBER: Final = re.compile(r"[0-9.]{1,20}([eE][-+]?[0-9]{1,3})?")


def parse(text: str, field: str = "") -> int:
    """Billionths of the currency of `0.001`, `12` or `1e-6`.

    Raises TapsterError(invalid) for what is no amount, has more than nine decimals, or is above
    1000 for one unit.
    """
    try:
        amount = Decimal(text) if _NUMBER.fullmatch(text) else None
    except ArithmeticError:
        amount = None
    if amount is None:
        raise TapsterError("invalid", f"{text[:50]!r} is not an amount such as 0.001", field=field)
    if amount > DEAREST // NANO:
        raise TapsterError("invalid", f"{text[:50]} a unit is above the limit of 1000", field=field)
    nano = amount.scaleb(9)
    if nano != nano.to_integral_value():
        raise TapsterError(
            "invalid",
            f"{text[:50]} has more than nine decimals",
            hint="amounts are kept in billionths of the currency",
            field=field,
        )
    return int(nano)


def spell(nano: int, places: int = 2) -> str:
    """The exact amount as a decimal string with at least `places` decimals."""
    return decimal(nano, NANO, places)


def decimal(number: int, unit: int, places: int = 0) -> str:
    """`number / unit` (a power of ten) exactly, with at least `places` decimals."""
    whole, rest = divmod(abs(number), unit)
    digits = str(rest + unit)[1:].rstrip("0").ljust(places, "0")
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
