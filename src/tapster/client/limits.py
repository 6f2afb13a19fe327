"""The verbs over limits, and how limits are written: requests=500/day, storage=10GB."""

import re
from collections.abc import Sequence
from typing import Any, Final

from tapster.client.calling import Caller
from tapster.client.transport import spell
from tapster.contract.errors import TapsterError
from tapster.contract.limits import Limit

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+]?\d+)?)\s*([a-zA-Z]*)")
_BYTES: Final = {
    "": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS: Final = {"storage": _BYTES, "compute": _SECONDS, "training": _SECONDS}
_PERIODS: Final = {"d": "day", "day": "day", "month": "month", "mo": "month"}


class LimitVerbs(Caller):
    """See Client."""

    def limits_show(self, tenant: str = "") -> list[Limit]:
        """A tenant's limits, and what is used and left of each; one's own by default."""
        return self._call(list[Limit], "GET", "/limits", params={"tenant": tenant})

    def limits_set(
        self, *limits: str, tenant: str = "", endpoint: str = "", key: str = ""
    ) -> list[Limit]:
        """Set limits such as "requests=500/day" or "rate=100/s"; "requests=none/day" removes one.

        Each takes the place of the one with its metric, period and scope. `endpoint` (its name) and
        `key` (its id) narrow them to what is asked of the one, or with the other. Returns all that
        the tenant has.
        """
        body = {"limits": parse(limits), "tenant": tenant, "endpoint": endpoint, "key": key}
        return self._call(list[Limit], "POST", "/limits", body)

    def limits_delete(self, limit: str) -> Limit:
        """Remove a limit by its id."""
        return self._call(Limit, "DELETE", f"/limits/{spell(limit)}")


def parse(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Limits as the API takes them, from NAME=AMOUNT[/PERIOD]. Raises TapsterError(invalid).

    Bytes may be written as 10GB or 10GiB, seconds as 10h; `burst` belongs to `rate`. `none` removes
    a limit: that of a period if one is given, else whichever the metric can have.
    """
    found: list[dict[str, Any]] = []
    burst: float | None = None
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise _odd(text, "NAME=AMOUNT, such as requests=500/day", name)
        if name == "burst":
            burst = _amount(name, value)
        else:
            found += _limits(name, *_parts(value))
    return found if burst is None else _with_burst(found, burst)


def _parts(value: str) -> tuple[str, str]:
    amount, _, period = value.partition("/")
    return amount.strip(), period.strip()


def _limits(name: str, amount: str, period: str) -> list[dict[str, Any]]:
    if name == "rate" and period in {"s", "sec", "second"}:
        period = ""
    period = _PERIODS.get(period, period)
    if amount != "none":
        return [{"metric": name, "amount": _amount(name, amount), "period": period}]
    counted = name in {"requests", "rows", "tokens", "compute", "spend", "training"}
    periods = ["day", "month"] if counted and not period else [period]
    return [{"metric": name, "amount": None, "period": one} for one in periods]


def _with_burst(found: list[dict[str, Any]], burst: float) -> list[dict[str, Any]]:
    rates = [one for one in found if one["metric"] == "rate" and one["amount"] is not None]
    if not rates:
        raise TapsterError(
            "invalid", "burst goes with a rate", hint="for example rate=100/s burst=200",
            field="burst",
        )  # fmt: skip
    return [{**one, "burst": burst} if one in rates else one for one in found]


def _amount(name: str, text: str) -> float:
    """A number, whole if it is, in bytes or seconds where these are counted."""
    found = _AMOUNT.fullmatch(text.strip())
    known = _UNITS.get(name, {"": 1})
    unit = found[2].lower() if found else "?"
    if unit not in known and unit.removesuffix("b") in known and name == "storage":
        unit = unit.removesuffix("b")
    if found is None or unit not in known:
        raise _odd(text, f"an amount of {name}", name)
    amount = float(found[1]) * known[unit]
    return int(amount) if amount == int(amount) else amount


def _odd(text: str, expected: str, field: str) -> TapsterError:
    return TapsterError(
        "invalid",
        f"{text[:100]!r} is not {expected}",
        hint="for example requests=500/day spend=5.00/month rate=100/s burst=200 storage=10GB",
        field=field[:100],
    )
