"""The table of rights: what can be permitted, and which role holds what.

A right is `area:read`, `area:write` or `predict`; `area:*` is every right of an area, `*` every
right there is or will be. A test compares the table with what the routes ask for.
"""

from collections.abc import Collection, Iterable
from typing import Final

# Asked of a route that everybody may use who can say who they are; and of one for everybody.
ANY: Final = "any"
NONE: Final = "none"

RIGHTS: Final[dict[str, str]] = {
    "admin:write": "say whose packages are trusted",
    "audit:read": "read the record of changes and refusals",
    "datasets:read": "see datasets, profiles, lineage",
    "datasets:write": "import, clean, split, delete datasets",
    "endpoints:read": "see endpoints and what they serve",
    "endpoints:write": "deploy, change, share, withdraw, delete endpoints",
    "invoices:read": "see invoices",
    "invoices:write": "make invoices",
    "jobs:read": "see jobs and their logs",
    "jobs:write": "cancel jobs",
    "keys:read": "see keys, but not their secrets",
    "keys:write": "make, rotate, revoke keys",
    "limits:read": "see limits and what is left",
    "limits:write": "set limits",
    "members:read": "see members and their sessions",
    "members:write": "add, change, suspend, remove members",
    "metrics:read": "see metrics of the whole installation",
    "models:read": "see and export models",
    "models:write": "import, describe, alias, delete models",
    "payloads:read": "read what was logged of requests",
    "payloads:write": "log what endpoints are asked, delete it, agree that others do",
    "predict": "ask endpoints, and see how they are asked",
    "prices:read": "see prices",
    "prices:write": "set prices",
    "privacy:read": "see how data are protected and what is logged",
    "privacy:write": "change that",
    "roles:read": "see roles",
    "roles:write": "make and delete roles",
    "server:read": "see the machine and its resources",
    "tenants:read": "see every tenant",
    "tenants:write": "make, suspend, erase tenants",
    "training:read": "see algorithms and metrics",
    "training:write": "train models",
    "uploads:write": "send files",
    "usage:read": "see what was used",
}


_OWNERS_ONLY: Final = frozenset(
    {"payloads:write", "prices:write", "privacy:write", "tenants:write"}
)
# What people have sent is for none of the roles that only look.
_READ: Final = frozenset(right for right in RIGHTS if right.endswith(":read")) - {"payloads:read"}

ROLES: Final[dict[str, frozenset[str]]] = {
    "owner": frozenset({"*"}),
    "admin": frozenset(RIGHTS) - _OWNERS_ONLY,
    "developer": frozenset({
        "datasets:read", "datasets:write", "endpoints:read", "jobs:read", "jobs:write",
        "limits:read", "models:read", "models:write", "predict", "server:read", "training:read",
        "training:write", "uploads:write", "usage:read",
    }),
    "operator": frozenset({
        "endpoints:read", "endpoints:write", "jobs:read", "jobs:write", "limits:read",
        "metrics:read", "models:read", "predict", "server:read", "usage:read",
    }),
    "consumer": frozenset({"predict"}),
    "auditor": _READ,
}  # fmt: skip


def holds(held: Collection[str], right: str) -> bool:
    """Whether rights include one: by its name, its area's `area:*`, or `*`."""
    return right in held or "*" in held or f"{right.partition(':')[0]}:*" in held


def covers(held: Collection[str], wanted: Iterable[str]) -> bool:
    """Whether rights include all others, so that their holder may give these."""
    return all(_covered(held, right) for right in wanted)


def _covered(held: Collection[str], right: str) -> bool:
    if right == "*":
        return "*" in held
    return holds(held, right) or (right.endswith(":*") and all(r in held for r in _area(right)))


def known(right: str) -> bool:
    """Whether there is such a right, or an area of them."""
    return right in RIGHTS or right == "*" or (right.endswith(":*") and bool(_area(right)))


def _area(right: str) -> list[str]:
    return [each for each in RIGHTS if each.startswith(right.removesuffix("*"))]
