"""The last good plan on disk, which only the holder of the agent's key can have written."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

import msgspec

from tapster.contract.plan import ServingPlan
from tapster.core.blobs import write_atomically

NAME: Final = "plan.json"
_Stamp = tuple[int, int, int]


class _Sealed(msgspec.Struct):
    """The plan's exact bytes and their HMAC-SHA256 (hex), keyed by the agent's key."""

    mac: str
    plan: msgspec.Raw


_SEALED: Final = msgspec.json.Decoder(_Sealed)
_PLANS: Final = msgspec.json.Decoder(ServingPlan)


def read_key(home: Path) -> bytes:
    """The agent's key, or nothing while the control plane has not made one."""
    try:
        return (home / "agent.key").read_bytes().strip()
    except OSError:
        return b""


def save(folder: Path, plan: bytes, key: bytes) -> None:
    """Write a plan (JSON) and its MAC, mode 0600. Raises TapsterError(storage_full)."""
    sealed = _Sealed(mac=_mac(plan, key), plan=msgspec.Raw(plan))
    write_atomically(folder / NAME, msgspec.json.encode(sealed))


def load(folder: Path, key: bytes) -> ServingPlan | None:
    """The saved plan; None when there is none, or none that this key has sealed."""
    try:
        sealed = _SEALED.decode((folder / NAME).read_bytes())
        plan = bytes(sealed.plan)
        if not key or not hmac.compare_digest(sealed.mac, _mac(plan, key)):
            return None
        return _PLANS.decode(plan)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return None


def stamp(folder: Path) -> _Stamp | None:
    """What changes whenever the saved plan does; None when there is none."""
    try:
        status = os.stat(folder / NAME)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _mac(plan: bytes, key: bytes) -> str:
    return hmac.new(key, plan, hashlib.sha256).hexdigest()
