"""Amounts as people type them: 2s, 5ms, 10m, 1G, A@1=0.6, 5,25,50,100."""

import re
from collections.abc import Sequence
from typing import Any, Final

from tapster.contract.errors import TapsterError

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_DURATIONS: Final = frozenset({"deadline", "window", "cache", "idle"})
_NUMBERS: Final = frozenset({"queue", "concurrency"})


def duration(text: str, field: str = "") -> float:
    """Seconds of `2s`, `5ms`, `10m`, `1h` or a bare number. Raises TapsterError(invalid)."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or found[2].lower() not in _SECONDS:
        raise _odd(text, "a duration such as 500ms, 2s or 10m", field)
    return float(found[1]) * _SECONDS[found[2].lower()]


def size(text: str, field: str = "") -> int:
    """Bytes of `512M`, `1G` or a bare number; powers of 1024. Raises TapsterError(invalid)."""
    found = _AMOUNT.fullmatch(text.strip())
    unit = found[2].lower().removesuffix("b").removesuffix("i") if found else "?"
    if found is None or unit not in _BYTES:
        raise _odd(text, "a size such as 512M or 1G", field)
    return int(float(found[1]) * _BYTES[unit])


def number(text: str, field: str = "") -> float:
    """A number. Raises TapsterError(invalid)."""
    try:
        return float(text)
    except ValueError:
        raise _odd(text, "a number", field) from None


def steps(text: str) -> list[float]:
    """Percentages with commas between. Raises TapsterError(invalid)."""
    return [number(part.strip().removesuffix("%"), "canary") for part in text.split(",")]


def factors(given: Sequence[str], field: str) -> dict[str, float]:
    """Weights by reference, from NAME@VERSION=WEIGHT. Raises TapsterError(invalid)."""
    found: dict[str, float] = {}
    for text in given:
        ref, sign, weight = text.partition("=")
        if not sign or not ref:
            raise _odd(text, "NAME@VERSION=WEIGHT", field)
        if ref in found:
            raise TapsterError("invalid", f"{ref!r} is named twice", field=field)
        found[ref] = number(weight.removesuffix("%"), field)
    return found


def settings(given: Sequence[str]) -> dict[str, Any]:
    """What `endpoints set` is given, as `endpoint_set` takes it. Raises TapsterError(invalid)."""
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise _odd(text, "OPTION=VALUE", "")
        if name == "weights":
            found["weights"] = factors(value.split(","), name)
        elif name == "shadow":
            found["shadows"] = [] if value == "none" else value.split(",")
        else:
            options[name] = None if value in {"default", "auto"} else _option(name, value)
    return {**found, "options": options} if options else found


def _option(name: str, value: str) -> Any:
    if name in _DURATIONS:
        return duration(value, name)
    if name == "memory":
        return size(value, name)
    if name in _NUMBERS:
        found = number(value, name)
        return int(found) if found == int(found) else found
    return value  # the server says which options there are


def _odd(text: str, expected: str, field: str) -> TapsterError:
    return TapsterError("invalid", f"{text[:200]!r} is not {expected}", field=field)
