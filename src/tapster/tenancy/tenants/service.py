"""Verbs over tenants: add, show, suspend, resume."""

import re
from typing import Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Tenant
from tapster.contract.errors import TapsterError
from tapster.tenancy.datakeys import store as datakeys
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.revisions import revise
from tapster.tenancy.tenants import store

# No two hyphens in a row, and none at the end: `--` parts an owner from the name of an endpoint.
NAME: Final = re.compile(r"[a-z0-9](?:-?[a-z0-9])*")
LONGEST: Final = 63
_TITLE: Final = 200
LIGHTEST, HEAVIEST = 0.01, 100.0


def add(tx: Connection, name: str, title: str = "") -> Tenant:
    """Make a tenant. Raises TapsterError(invalid) for its name, (conflict) if there is one."""
    if not proper(name):
        raise TapsterError(
            "invalid",
            f"{name[:100]!r} cannot be the name of a tenant",
            hint="use up to 63 small letters, digits and single hyphens between them",
            field="name",
        )
    if len(title) > _TITLE:
        raise TapsterError(
            "invalid", f"the title is longer than {_TITLE} characters", field="title"
        )
    if not store.add(tx, name, title):
        raise TapsterError("conflict", f"there is a tenant {name} already", field="name")
    revise(tx, name, f"tenant {name} added", kind="tenant", ref=name)
    return show(tx, name)


def ensure(tx: Connection, name: str) -> None:
    """Make a tenant unless it is there."""
    store.add(tx, name)


def proper(name: str) -> bool:
    """Whether a tenant could be called so."""
    return len(name) <= LONGEST and NAME.fullmatch(name) is not None


def show(tx: Connection, name: str) -> Tenant:
    """One tenant. Raises TapsterError(not_found)."""
    found = store.get(tx, name) if proper(name) else None
    if found is None:
        raise missing(name)
    return found


def missing(name: str) -> TapsterError:
    """What to say when there is no such tenant, or it is none of the caller's business."""
    return TapsterError(
        "not_found", f"there is no tenant {name[:100]!r}", hint="see `tapster tenants list`"
    )


def listing(tx: Connection) -> list[Tenant]:
    """Every tenant."""
    return store.listing(tx)


def suspend(tx: Connection, name: str) -> Tenant:
    """Turn a tenant's keys and members away until it is resumed; nothing of its is deleted.

    Raises TapsterError(conflict) for the installation's own.
    """
    if name == DEFAULT_TENANT:
        raise TapsterError("conflict", "the installation's own tenant cannot be suspended")
    return _set(tx, name, "suspended")


def resume(tx: Connection, name: str) -> Tenant:
    """Let a suspended tenant's keys and members in again.

    Raises TapsterError(conflict) for one that is being erased.
    """
    datakeys.lock(tx)  # nobody begins to erase it before this has ended
    if erasures.ending(tx, name) is not None:
        raise TapsterError("conflict", f"tenant {name} is being erased, for good")
    return _set(tx, name, "active")


def weigh(tx: Connection, name: str, weight: float) -> Tenant:
    """Give a tenant another weight. Raises TapsterError(invalid)."""
    if not LIGHTEST <= weight <= HEAVIEST:
        raise TapsterError(
            "invalid",
            f"a weight is a number from {LIGHTEST:g} to {HEAVIEST:g}",
            hint="1 is what every tenant has at first",
            field="weight",
        )
    if show(tx, name).weight != weight:
        store.set_weight(tx, name, weight)
        revise(tx, name, f"tenant {name} weighs {weight:g}", kind="tenant", ref=name)
    return show(tx, name)


def weighed(tx: Connection) -> dict[str, float]:
    """The weights of all tenants that do not weigh 1."""
    return store.weighed(tx)


def _set(tx: Connection, name: str, status: str) -> Tenant:
    if show(tx, name).status != status:
        store.set_status(tx, name, status)
        revise(tx, name, f"tenant {name} is {status}", kind="tenant", ref=name)
    return show(tx, name)


def active(tx: Connection, name: str) -> bool:
    """Whether there is such a tenant, and its keys and members are let in."""
    found = store.get(tx, name)
    return found is not None and found.status == "active"


def suspended(tx: Connection) -> set[str]:
    """All tenants that are suspended."""
    return store.suspended(tx)
