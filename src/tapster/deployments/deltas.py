"""How plans travel: as a whole, or as what has changed since the one that an agent holds.

A delta has what is there now of all that its revisions name, so it may say the same twice, and
some things before their revision's number is reached; said again they change nothing.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.plan import PlanDelta
from tapster.deployments import borrowing, planning, store
from tapster.deployments.store import Row
from tapster.tenancy import revisions
from tapster.tenancy import service as tenancy
from tapster.tenancy.revisions import Revision
from tapster.tenancy.shares import service as shares
from tapster.tenancy.shares.service import MODEL

# Changes that one delta may tell of, and how many a data plane may be behind.
MOST: Final = 200
FAR: Final = 20_000
_ENDPOINT: Final = 10
_KINDS: Final = frozenset({"key", "tenant", "limits", "endpoint", "model", "share"})


def news(tx: Connection, after: int, mark: str) -> bool:
    """Whether there is another plan than the one with this number and mark."""
    number = tenancy.revision(tx)
    return (number, revisions.mark(tx, number)) != (after, mark)


def delta(tx: Connection, public_key: str, after: int, mark: str) -> bytes | None:
    """The next delta after a plan (JSON); None if only the whole plan will do.

    That is so when the plan is of another history, of long ago, or when a revision does not say
    what it changed.
    """
    if after <= 0 or not mark or revisions.mark(tx, after) != mark:
        return None
    if tenancy.revision(tx) - after > FAR:
        return None
    told = _within(revisions.history(tx, after, MOST))
    if not told or not all(each.kind in _KINDS and each.mark for each in told):
        return None
    found = _Changes(tx, public_key, told).delta(after, mark)
    return msgspec.json.encode(found)


def _within(history: list[Revision]) -> list[Revision]:
    """As many of the oldest as one delta may tell of."""
    weight = 0
    for at, each in enumerate(history):
        weight += _ENDPOINT if each.kind in {"endpoint", "model"} else 1
        if weight > MOST:
            return history[: max(at, 1)]
    return history


class _Changes:
    """What is there now of all that some revisions name."""

    def __init__(self, tx: Connection, public_key: str, told: list[Revision]) -> None:
        self._tx = tx
        self._public_key = public_key
        self._told = told

    def delta(self, after: int, mark: str) -> PlanDelta:
        """The delta that brings them to who holds the plan `after`."""
        tx, newest = self._tx, self._told[-1]
        keys = self._named("key")
        grants = tenancy.grants(tx, keys) if keys else ()
        tenants = sorted({*self._named("tenant"), *self._named("limits")})
        standings = planning.standings(tx, tenants) if tenants else ()
        rows, gone = self._endpoints()
        part = planning.part(tx, rows, self._public_key) if rows else planning.Part()
        planned = {endpoint.id for endpoint in part.endpoints}
        return PlanDelta(
            after,
            mark,
            newest.number,
            newest.mark,
            keys=grants,
            gone_keys=_missing(keys, (grant.id for grant in grants)),
            tenants=standings,
            gone_tenants=_missing(tenants, (standing.tenant for standing in standings)),
            endpoints=part.endpoints,
            gone_endpoints=(*gone, *(row.id for row in rows if row.id not in planned)),
            packages=part.packages,
            needs=part.needs,
            signers=part.signers,
        )

    def _named(self, kind: str) -> list[str]:
        return sorted({each.ref or each.tenant for each in self._told if each.kind == kind})

    def _endpoints(self) -> tuple[list[Row], list[str]]:
        """Those that are named, and the ids of those that are not there."""
        rows: dict[str, Row] = {}
        gone: dict[str, None] = {}
        for tenant in sorted({e.tenant for e in self._told if e.kind in {"endpoint", "model"}}):
            known = store.listing(self._tx, tenant)
            for each in self._told:
                if each.tenant != tenant or each.kind not in {"endpoint", "model"}:
                    continue
                found = [row for row in known if _means(each, row)]
                rows |= {row.id: row for row in found}
                if not found and each.kind == "endpoint" and each.ref:
                    gone[each.ref] = None
        rows |= {row.id: row for row in self._borrowing()}
        return list(rows.values()), list(gone)

    def _borrowing(self) -> list[Row]:
        """Endpoints of others with models that are shared, or were until now."""
        lent = {
            (each.tenant, each.ref)
            for each in self._told
            if each.kind == "share"
            or (each.kind == "model" and shares.consumers(self._tx, MODEL, each.tenant, each.ref))
        }
        if not lent:
            return []
        return [row for row in store.everywhere(self._tx) if borrowing.borrows(row, lent)]


def _means(revision: Revision, row: Row) -> bool:
    """Whether a revision is about an endpoint of its tenant."""
    if revision.kind == "model":
        held = (one for each in row.sets for one in each.variants)
        return any(not one.owner and one.model == revision.ref for one in held)
    return revision.ref in {"", row.id, row.name}


def _missing(named: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    there = set(found)
    return tuple(each for each in named if each not in there)
