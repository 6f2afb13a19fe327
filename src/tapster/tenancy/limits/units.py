"""Limits as people write them, and as they are kept: whole numbers of `usage.UNITS`."""

import math
from decimal import Decimal
from typing import Final, get_args

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.usage import LARGEST, Metric

_PERIODS: Final = ("day", "month")


class Kind(msgspec.Struct, frozen=True):
    """What limits of a metric are like: how many units one of what people write is, how small an
    amount may be, over which periods it is added up, and whether an endpoint or a key narrows it.
    """

    scale: int = 1
    least: int = 0
    periods: tuple[str, ...] = ("",)
    narrowed: bool = False
    what: str = ""


KINDS: Final[dict[Metric, Kind]] = {
    "requests": Kind(1, 0, _PERIODS, True, "requests"),
    "rows": Kind(1, 0, _PERIODS, True, "rows"),
    "tokens": Kind(1, 0, _PERIODS, True, "tokens"),
    "compute": Kind(10**9, 0, _PERIODS, True, "seconds"),
    "money": Kind(10**9, 0, _PERIODS, True, "of the currency"),
    "rate": Kind(1000, 1, ("",), True, "requests a second"),
    "concurrency": Kind(1, 1, ("",), True, "requests at once"),
    "storage": Kind(1, 0, ("",), False, "bytes"),
    "training": Kind(10**9, 0, _PERIODS, False, "seconds"),
    "jobs": Kind(1, 0, ("",), False, "jobs at once"),
    "models": Kind(1, 0, ("",), False, "versions"),
}
NAMES: Final = tuple("spend" if metric == "money" else metric for metric in get_args(Metric))


def metric_of(name: str) -> Metric:
    """The metric that people call `name`. Raises TapsterError(invalid)."""
    if name not in NAMES:
        raise TapsterError(
            "invalid",
            f"there is no limit called {name[:100]!r}",
            hint=f"choose one of: {', '.join(NAMES)}",
            field="metric",
        )
    metric: Metric = msgspec.convert("money" if name == "spend" else name, Metric)
    return metric


def name_of(metric: str) -> str:
    """What people call a metric."""
    return "spend" if metric == "money" else metric


def units(metric: Metric, amount: float) -> int:
    """An amount in whole units. Raises TapsterError(invalid) for what is no amount of it."""
    kind, name = KINDS[metric], name_of(metric)
    exact = Decimal(str(amount)) * kind.scale if math.isfinite(amount) else Decimal(-1)
    if not 0 <= exact <= LARGEST:
        raise TapsterError(
            "invalid", f"{name} {amount:g} is not between 0 and {LARGEST / kind.scale:.0e}",
            field=name,
        )  # fmt: skip
    if exact != exact.to_integral_value() or exact < kind.least:
        raise TapsterError(
            "invalid",
            f"{name} {amount:g} is too fine",
            hint=f"give a multiple of {1 / kind.scale:g}" + (", above 0" if kind.least else ""),
            field=name,
        )
    return int(exact)


def shown(metric: str, amount: int) -> float:
    """Units as people write them: whole where they are whole."""
    scale = KINDS[msgspec.convert(metric, Metric)].scale
    whole, rest = divmod(amount, scale)
    return amount / scale if rest else whole


def number(metric: str, amount: int) -> str:
    """An amount in figures, such as `36,000`."""
    exact = Decimal(amount) / KINDS[msgspec.convert(metric, Metric)].scale
    whole = exact == exact.to_integral_value()
    return f"{int(exact):,}" if whole else f"{exact.normalize():,f}"


def spelled(metric: str, amount: int, period: str = "") -> str:
    """An amount in words, such as `500 requests a day`."""
    words = f"{number(metric, amount)} {KINDS[msgspec.convert(metric, Metric)].what}"
    return f"{words} a {period}" if period else words


def check_period(metric: Metric, period: str) -> None:
    """Raise TapsterError(invalid) unless a limit of the metric may be for such a period."""
    kind, name = KINDS[metric], name_of(metric)
    if period in kind.periods:
        return
    if kind.periods == ("",):
        raise TapsterError(
            "invalid", f"{name} has no period: it holds at every moment", field="period"
        )
    raise TapsterError(
        "invalid",
        f"{name} is for a day or a month, not for {period[:50]!r}",
        hint=f"write {name}=AMOUNT/day or {name}=AMOUNT/month",
        field="period",
    )
