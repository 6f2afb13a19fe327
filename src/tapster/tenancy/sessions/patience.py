"""How often somebody may try to sign in: a bucket a member's name and one an address.

Every attempt fills both before its password is looked at, so that many at once are no way around;
they drain with time. A good one empties the member's and takes itself back from the address's.
"""

import hashlib
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.tenancy.sessions import store


@dataclass(frozen=True)
class Bucket:
    """Holds `size` attempts and loses one every `drain` seconds."""

    size: float
    drain: float

    def left(self, level: float, seconds: float) -> float:
        """What is left of a level after a while; nothing when the clock was set back meanwhile."""
        return 0.0 if seconds < -1 else max(0.0, level - seconds / self.drain)


MEMBER: Final = Bucket(5, 60.0)
ADDRESS: Final = Bucket(30, 10.0)


def attempt(tx: Connection, tenant: str, name: str, address: str) -> None:
    """Count an attempt. Raises TapsterError(exhausted) when one of the buckets is full."""
    _fill(tx, [_member(tenant, name), _address(address)])


def arrive(tx: Connection, address: str) -> None:
    """Count an attempt of whom only the address is known. Raises TapsterError(exhausted)."""
    _fill(tx, [_address(address)])


def _fill(tx: Connection, buckets: list[tuple[str, Bucket]]) -> None:
    store.in_turn(tx)
    now = time.time()
    levels = []
    for key, bucket in buckets:
        level, at = store.level(tx, "", key)
        level = bucket.left(level, now - at)
        if level + 1 > bucket.size:
            raise TapsterError(
                "exhausted",
                "too many attempts to sign in; wait before the next",
                retry_after=(level + 1 - bucket.size) * bucket.drain,
            )
        levels.append((key, level + 1))
    for key, level in levels:
        store.fill(tx, "", key, level)
    store.sweep(tx, now - max(each.size * each.drain for each in (MEMBER, ADDRESS)))


def forgive(tx: Connection, tenant: str, name: str, address: str) -> None:
    """Take a good attempt back."""
    store.empty(tx, "", _member(tenant, name)[0])
    key, bucket = _address(address)
    level, at = store.level(tx, "", key)
    store.fill(tx, "", key, max(0.0, bucket.left(level, time.time() - at) - 1))


def _member(tenant: str, name: str) -> tuple[str, Bucket]:
    """By digest: what was tried can be anything, and nobody need read it."""
    digest = hashlib.sha256(f"{tenant}\0{name}".encode("utf-8", "replace")).hexdigest()
    return f"member {digest}", MEMBER


def _address(address: str) -> tuple[str, Bucket]:
    """Of IPv6 the first half, which is what one subscriber has."""
    try:
        found = ip_address(address)
    except ValueError:
        return "address unknown", ADDRESS
    if isinstance(found, IPv6Address):
        return f"address {IPv6Network((found, 64), strict=False)}", ADDRESS
    return f"address {found}", ADDRESS
