"""Revisions: what tells the data planes that their plan has changed, and what in it."""

from typing import Final, NamedTuple

from sqlalchemy import Connection

from tapster.core.telemetry import logger
from tapster.tenancy import store

log = logger(__name__)

# Who is further behind is sent the whole plan.
KEPT: Final = 100_000
_SWEEP: Final = 1000


def revise(tx: Connection, tenant: str, what: str, *, kind: str = "", ref: str = "") -> int:
    """Record, in the transaction of the change itself, that the plan has changed.

    `kind` and `ref` say what is another one now, or gone, so that data planes need not be told all
    there is: `key` and its id; `tenant` or `limits` and the tenant; `endpoint` and its id or name,
    "" for all of the tenant (their prices too); `model` and its name (aliases); `share` and the
    model that is shared or withdrawn. Without a kind, everything is sent.
    """
    number = store.revise(tx, tenant, what, kind, ref)
    if number % _SWEEP == 0:
        store.forget(tx, number - KEPT)
    log.info("the plan changes", tenant=tenant, plan=number, what=what)
    return number


def revision(tx: Connection) -> int:
    """The number of the newest change."""
    return store.revision(tx)


class Revision(NamedTuple):
    """A change: of what `kind`, of which `tenant`, and what it is called (see `revise`)."""

    number: int
    mark: str
    tenant: str
    kind: str
    ref: str


def mark(tx: Connection, number: int) -> str:
    """What tells a revision from another history's with its number; "" if it is not known."""
    return store.mark(tx, number)


def history(tx: Connection, after: int, most: int) -> list[Revision]:
    """The changes since a revision, oldest first, at most so many."""
    return [
        Revision(row["number"], row["mark"], row["tenant"], row["kind"], row["ref"])
        for row in store.history(tx, after, most)
    ]
