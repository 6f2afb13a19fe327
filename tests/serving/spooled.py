"""What workers have written down of payloads and nobody has taken yet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tapster.contract.plan import PayloadRules
from tapster.core.envelope import DataKey
from tapster.core.frames import frames
from tapster.serving.spool import FOLDER
from tests.serving.conftest import wait_for

SALT = "5a" * 32
EVERYTHING = ("email", "iban", "card", "ip", "phone")


def rules(**given: Any) -> PayloadRules:
    """Rules that write every request down, with all patterns."""
    return PayloadRules(**{"sample": 1.0, "patterns": EVERYTHING, "salt": SALT, **given})


def segments(home: Path, tenant: str = "default") -> list[Path]:
    """Files of a tenant."""
    return sorted((home / "run" / FOLDER / tenant).glob("*"))


def payloads(
    home: Path, tenant: str = "default", find: Callable[[str], DataKey] | None = None
) -> list[dict[str, Any]]:
    """What is there of a tenant, by time."""
    found = []
    for path in segments(home, tenant):
        name = path.stem.partition("~")[2]
        data = b"".join(frames(path.read_bytes(), find, tenant, FOLDER, name))
        found += [json.loads(line) for line in data.splitlines()]
    return sorted(found, key=lambda each: float(each["time"]))


def at_least(home: Path, count: int, **more: Any) -> list[dict[str, Any]]:
    """The payloads, once there are so many."""

    def there() -> list[dict[str, Any]] | None:
        found = payloads(home, **more)
        return found if len(found) >= count else None

    found: list[dict[str, Any]] = wait_for(there, f"{count} payloads")
    return found


def raw(home: Path) -> bytes:
    """The bytes of everything that lies there."""
    return b"".join(path.read_bytes() for path in sorted((home / "run" / FOLDER).glob("*/*")))
