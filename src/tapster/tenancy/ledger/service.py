"""The verbs of the ledger: take reports in, count, show, check, forget."""

import time
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Job, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.usage import Line, Metric
from tapster.core.crypto import new_id
from tapster.tenancy.ledger import money, periods, posting, store
from tapster.tenancy.ledger.intake import closed, news, portions, take
from tapster.tenancy.ledger.posting import Growth
from tapster.tenancy.ledger.prices import store as price_rows
from tapster.tenancy.ledger.prices.service import planned, unpriced
from tapster.tenancy.ledger.reading import store as reading
from tapster.tenancy.ledger.reading.store import GROUPS, Scope
from tapster.tenancy.tenants import service as tenants

__all__ = [
    "GROUPS", "anonymise", "check", "closed", "counted", "news", "planned", "portions",
    "sample_due", "sample_storage", "take", "trained", "unpriced", "usage",
]  # fmt: skip

MOST_GROUPS: Final = 10_000
_NAMES: Final = {"name": "endpoint", "storage": "byte_hours"}
_COLUMNS: Final[dict[Metric, str]] = {
    "requests": "requests",
    "rows": "rows",
    "tokens": "tokens",
    "compute": "compute",
    "money": "amount",
    "training": "training",
    "storage": "storage",
}


def counted(
    tx: Connection,
    metric: Metric,
    tenant: str,
    first: str,
    last: str = "",
    *,
    endpoint: str = "",
    key: str = "",
    machine: str = "",
) -> int:
    """Units of a metric that the ledger has of a payer, from day `first` to `last`, else of a day.

    In the units of `usage.UNITS`. `endpoint` and `key` are ids; `machine` narrows it to what one
    machine has reported. Calls only, but of `training` (nanoseconds of finished jobs) and `storage`
    (byte-hours).
    """
    own = metric in {"training", "storage"}
    where: dict[str, str] = {"kind": metric if own else "calls"}
    given = {"endpoint": endpoint, "key": key, "machine": machine}
    where.update({name: value for name, value in given.items() if value})
    return reading.amount(tx, tenant, _COLUMNS[metric], (first, last or first), where)


def usage(
    tx: Connection,
    who: Principal,
    *,
    by: str,
    tenant: str = "",
    first: str = "",
    last: str = "",
    limit: int = 1000,
    currency: str = "",
) -> dict[str, Any]:
    """What was used from day `first` to `last`, by group: what the caller pays, and is paid.

    The installation sees all tenants, and with `tenant` one as that one sees itself; another tenant
    sees with `tenant` what that one pays it. Raises TapsterError(invalid) for a date or a group,
    (not_found) for a tenant of whom the caller cannot know.
    """
    if by not in GROUPS:
        raise TapsterError(
            "invalid",
            f"{by[:50]!r} is no group",
            hint=f"choose among {', '.join(GROUPS)}",
            field="by",
        )
    today = periods.day_of(time.time())
    until = periods.day(last, "to") if last else today
    since = periods.day(first, "from") if first else until if by == "hour" else f"{until[:7]}-01"
    if since > until:
        raise TapsterError(
            "invalid",
            f"the first day, {since}, is after the last, {until}",
            hint="without a last day it is today; days are those of UTC",
            field="from",
        )
    pays, earns = _scopes(tx, who, tenant, since, until)
    answer: dict[str, Any] = {"from": since, "to": until, "by": by, "currency": currency}
    answer["tenant"] = tenant or ("" if sees_all(who) else who.tenant)
    answer |= _shown(tx, pays, by, limit) if pays else {"rows": [], "total": None, "groups": 0}
    answer["earned"] = _shown(tx, earns, by, limit) if earns else None
    return answer


def sees_all(who: Principal) -> bool:
    """Whether somebody may see every tenant: the installation's own, with that right."""
    return who.tenant == DEFAULT_TENANT and who.may("tenants:read")


def payer(tx: Connection, who: Principal, tenant: str) -> str:
    """The tenant whose bills somebody asks for. Raises TapsterError(not_found)."""
    if not tenant or tenant == who.tenant:
        return who.tenant
    if not sees_all(who):
        raise tenants.missing(tenant)
    if not reading.known(tx, tenant):  # of one that was erased, only the ledger knows
        tenants.show(tx, tenant)
    return tenant


def check(tx: Connection) -> list[str]:
    """Where the sums that answers are made from differ from the lines; empty when all is well."""
    return reading.differences(tx)


def trained(
    tx: Connection, job: Job, now: float | None = None, *, ended: float | None = None
) -> None:
    """Put the time of a job that has ended on its tenant's showback, once.

    In the transaction that ends the job. What counts is the attempt that ended it; `ended`: when
    that was, if only found out now.
    """
    at = time.time() if now is None else now
    if job.started is None:
        return
    store.lock(tx)
    spent = max(round(((at if ended is None else ended) - job.started) * 1e9), 0)
    if store.once(tx, job.tenant, f"job/{job.id}", periods.day_of(at), at):
        _post_house(tx, "training", job.tenant, spent, at, name=job.kind[:128], endpoint=job.id)


def sample_due(tx: Connection, now: float | None = None) -> bool:
    """Whether nobody has sampled storage yet in this hour."""
    return not store.counted(tx, _sample(time.time() if now is None else now))


def sample_storage(tx: Connection, sizes: dict[str, int], now: float | None = None) -> bool:
    """Put what every tenant stores (bytes) on its showback for this hour, once.

    False if it has been done.
    """
    at = time.time() if now is None else now
    store.lock(tx)
    if not store.once(tx, DEFAULT_TENANT, _sample(at), periods.day_of(at), at):
        return False
    for tenant in sorted(sizes):
        if sizes[tenant] > 0:
            _post_house(tx, "storage", tenant, sizes[tenant], at)
    return True


def anonymise(tx: Connection, tenant: str) -> dict[str, Any]:
    """Let lines name a tenant no longer, when it is erased; amounts and other tenants' names stay.

    Returns {"pseudonym", "lines"}: what they are called now, and how many were changed.
    """
    store.lock(tx)
    pseudonym = f"erased:{new_id('ten')}"[:64]
    count = store.rename(tx, tenant, pseudonym)
    price_rows.rename(tx, tenant, pseudonym, time.time())
    posting.add_up(tx, store.lines_of(tx, pseudonym))
    return {"pseudonym": pseudonym, "lines": count}


def _scopes(
    tx: Connection, who: Principal, tenant: str, first: str, last: str
) -> tuple[Scope | None, Scope | None]:
    """What is paid, and what is earned."""
    whole = sees_all(who)
    if whole and not tenant:
        return Scope(first, last), None
    if whole or tenant in {"", who.tenant}:
        one = payer(tx, who, tenant)
        return Scope(first, last, one), Scope(first, last, owner=one, others=True)
    if not reading.known(tx, tenant, who.tenant):
        raise tenants.missing(tenant)
    return None, Scope(first, last, tenant, who.tenant, others=True)


def _shown(tx: Connection, scope: Scope, by: str, limit: int) -> dict[str, Any]:
    rows, total = reading.usage(tx, scope, by, min(limit, MOST_GROUPS))
    groups = total.pop("groups")
    return {"rows": [spelled(row) for row in rows], "total": spelled(total), "groups": groups}


def spelled(row: dict[str, Any]) -> dict[str, Any]:
    """A sum as the API gives it: times in seconds, money as exact decimal strings."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name == "period":
            found["hour" if "T" in value else "day"] = value
        elif name in {"compute", "training"}:
            found[f"{name}_seconds"] = value / 1e9
        elif name in {"amount", "showback"}:
            found[name] = money.spell(value)
        else:
            found[_NAMES.get(name, name)] = value
    return found


def _post_house(
    tx: Connection,
    kind: str,
    tenant: str,
    number: int,
    at: float,
    *,
    name: str = "",
    endpoint: str = "",
) -> None:
    line = Line(periods.day_of(at), tenant, "", DEFAULT_TENANT, endpoint, name, "", "")
    posting.post(tx, [Growth(kind, line, {kind: number})], at)


def _sample(at: float) -> str:
    return f"storage/{periods.hour_of(at)}"
