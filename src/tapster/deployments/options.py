"""What may be set at an endpoint: see contract/plan.Options."""

import math
from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.plan import Options

# The least and the most of each, and what it is called in an error.
LIMITS: Final[dict[str, tuple[float, float, str]]] = {
    "deadline": (0.001, 3600, "seconds from 0.001 to 3600"),
    "queue": (1, 100_000, "a whole number of requests from 1 to 100000"),
    "concurrency": (1, 64, "a whole number of runs from 1 to 64"),
    "window": (0, 1, "seconds from 0 to 1, or null for the worker to choose"),
    "cache": (0, 86_400, "seconds from 0 (never) to 86400"),
    "idle": (0, 31_536_000, "seconds from 0 (never) to a year"),
    "memory": (0, 1 << 44, "bytes from 16 MiB, or 0 for the installation's setting"),
}
_WHOLE: Final = frozenset({"queue", "concurrency", "memory"})
_LEAST_MEMORY: Final = 16 << 20


def changed(held: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options that are set once `given` are; None gives an option back its default.

    Raises TapsterError(invalid) for an unknown name and a value out of range.
    """
    found = dict(held)
    for name, value in given.items():
        if name not in LIMITS:
            raise TapsterError(
                "invalid",
                f"there is no option {name[:100]!r}",
                hint=f"one of: {', '.join(LIMITS)}",
                field=f"options.{name[:100]}",
            )
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _checked(name, value)
    return found


def made(held: dict[str, Any]) -> Options:
    """Options as the plan carries them."""
    return msgspec.convert(held, Options)


def _checked(name: str, value: Any) -> float | int:
    least, most, text = LIMITS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = name not in _WHOLE or (number and value == int(value) if _finite(value) else False)
    small = name == "memory" and number and 0 < value < _LEAST_MEMORY
    if not number or not _finite(value) or not whole or small or not least <= value <= most:
        raise TapsterError(
            "invalid", f"{name} must be {text}, not {value!r:.50}", field=f"options.{name}"
        )
    return int(value) if name in _WHOLE else float(value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
