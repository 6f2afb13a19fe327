"""Sessions that `tapster login` keeps in the home, by the server's URL (mode 0600)."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def token(home: Path, url: str) -> str:
    """The token of the session that was begun at a server, if it has not ended; else nothing."""
    kept = _read(home).get(url)
    return str(kept["token"]) if kept and kept["expires"] > time.time() else ""


def remember(home: Path, url: str, token: str, expires: float) -> None:
    """Keep a session; those that have ended go."""
    now = time.time()
    kept = {where: each for where, each in _read(home).items() if each["expires"] > now}
    _write(home, {**kept, url: {"token": token, "expires": expires}})


def forget(home: Path, url: str) -> None:
    """Keep a server's session no longer."""
    kept = _read(home)
    if kept.pop(url, None) is not None:
        _write(home, kept)


def _read(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / "sessions.json").read_bytes())
        return {
            str(url): {"token": str(each["token"]), "expires": float(each["expires"])}
            for url, each in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(home: Path, kept: dict[str, Any]) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = home / f"sessions.json.{os.getpid()}"
    with suppress(FileNotFoundError):
        part.unlink()
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(kept, file)
    part.replace(home / "sessions.json")
