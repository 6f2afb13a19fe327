"""Verbs over limits: set, remove, show; and what of them the data plane must know.

The installation's tenant limits anybody. A tenant limits what its own keys and endpoints may use
of it, beside what the installation allows: all limits hold, so its own can only be tighter.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.limits import Limit
from tapster.contract.plan import LimitGrant, TenantGrant
from tapster.contract.usage import BUDGETED, HELD, Metric, Period
from tapster.tenancy.keys import service as keys
from tapster.tenancy.limits import grants, quotas, spans, store, units
from tapster.tenancy.limits.store import Row
from tapster.tenancy.revisions import revise
from tapster.tenancy.tenants import service as tenants

# (tx, tenant, name) -> owner and name of the endpoint that a tenant calls so, None if none.
Resolve = Callable[[Connection, str, str], tuple[str, str] | None]
_MOST: Final = 1000
# Seconds in which a burst must come back.
_LONGEST_BURST: Final = 31 * 86400.0


class Wanted(msgspec.Struct, frozen=True):
    """A limit to set, as people write it; without an `amount` it is to go."""

    metric: str
    amount: float | None
    period: str = ""
    burst: float | None = None


def put(
    tx: Connection,
    who: Principal,
    tenant: str,
    wanted: Sequence[Wanted],
    resolve: Resolve,
    *,
    endpoint: str = "",
    key: str = "",
) -> list[Limit]:
    """Set limits of `tenant`, narrowed to what is asked of an endpoint or with a key.

    Each takes the place of the one with its metric, period and scope. Returns all that the tenant
    has. Raises TapsterError(invalid) for amounts, (not_found) for what the caller cannot see,
    (forbidden) for a tenant that limits itself as a whole.
    """
    tenant = _whose(tx, who, tenant)
    if who.tenant != DEFAULT_TENANT and not (endpoint or key):
        raise TapsterError(
            "forbidden",
            "only the installation limits a tenant as a whole",
            hint="limit one of your keys or endpoints: --key or --endpoint",
        )
    owner, name = _endpoint(tx, tenant, endpoint, resolve)
    if key:
        keys.show(tx, tenant, key)
    scope = {"set_by": who.tenant, "owner": owner, "endpoint": name, "key": key}
    store.lock(tx, tenant)
    changed = [_put(tx, tenant, each, scope) for each in _once(wanted)]
    if store.count(tx, tenant) > _MOST:
        raise TapsterError("invalid", f"a tenant has at most {_MOST} limits", field="limits")
    if BUDGETED.union(HELD).intersection(changed):
        revise(tx, tenant, f"limits of {tenant}", kind="limits", ref=tenant)
    return [shown(row) for row in store.listing(tx, tenant)]


def remove(tx: Connection, who: Principal, identifier: str) -> Limit:
    """Remove a limit. Raises TapsterError(not_found), and (forbidden) for the installation's."""
    row = store.get(tx, identifier)
    if row is None or who.tenant not in {DEFAULT_TENANT, row.tenant}:
        raise TapsterError(
            "not_found", f"there is no limit {identifier[:100]!r}", hint="see `tapster limits show`"
        )
    if who.tenant not in {DEFAULT_TENANT, row.set_by}:
        raise TapsterError("forbidden", "this limit was set by the installation")
    store.remove(tx, row.tenant, identifier)
    if row.metric in BUDGETED | HELD:
        revise(tx, row.tenant, f"limits of {row.tenant}", kind="limits", ref=row.tenant)
    return shown(row)


def listing(
    tx: Connection, who: Principal, tenant: str, measures: Mapping[Metric, quotas.Measure]
) -> list[Limit]:
    """A tenant's limits, with what is used of each.

    Others' are seen by the installation's tenant, with the right to see tenants. Raises
    TapsterError(not_found).
    """
    if tenant not in {"", who.tenant} and not who.may("tenants:read"):
        raise tenants.missing(tenant)
    tenant = _whose(tx, who, tenant)
    return [shown(row, **_standing(tx, row, measures)) for row in store.listing(tx, tenant)]


def tenant_grants(
    tx: Connection,
    endpoints: Mapping[tuple[str, str], str],
    only: Collection[str] | None = None,
) -> tuple[TenantGrant, ...]:
    """Tenants with limits that the data plane holds to, or those of them that are named.

    `endpoints` has the id of each endpoint by owner and name; a limit of one that is not there
    waits until it is.
    """
    held: dict[str, list[LimitGrant]] = {}
    for row in store.every(tx, BUDGETED | HELD, only):
        endpoint = endpoints.get((row.owner, row.endpoint), "")
        if endpoint or not row.endpoint:
            held.setdefault(row.tenant, []).append(_limit_grant(row, endpoint))
    return tuple(TenantGrant(tenant, limits=tuple(held[tenant])) for tenant in sorted(held))


def endpoint_made(tx: Connection, owner: str, name: str) -> None:
    """An endpoint is there, perhaps again: limits of what is asked of it hold from now on."""
    for tenant in store.limited_at(tx, owner, name):
        revise(tx, tenant, f"limits of {tenant}", kind="limits", ref=tenant)


def shown(row: Row, **standing: float | None) -> Limit:
    """A limit as people see it."""
    foreign = row.endpoint and row.owner != row.tenant
    return Limit(
        id=row.id,
        tenant=row.tenant,
        metric=units.name_of(row.metric),
        period=row.period,
        amount=units.shown(row.metric, row.amount),
        burst=row.burst,
        endpoint=f"{row.owner}--{row.endpoint}" if foreign else row.endpoint,
        key=row.key,
        set_by=row.set_by,
        created=row.created,
        updated=row.updated,
        **standing,
    )


def _standing(
    tx: Connection, row: Row, measures: Mapping[Metric, quotas.Measure]
) -> dict[str, float | None]:
    """What is used and left of a limit now."""
    if row.metric in BUDGETED:
        used, held, period = grants.standing(tx, row, spans.today())
        return _numbers(row, used, held, period.end)
    if row.metric == "training":
        period = spans.span(row.period, spans.today())
        used, held = store.trained(tx, row.tenant, period.first, period.last)
        return _numbers(row, used, held, period.end)
    if row.metric in measures:
        return _numbers(row, measures[row.metric](tx, row.tenant), 0, None)
    return {}


def _numbers(row: Row, used: int, held: int, resets: float | None) -> dict[str, float | None]:
    return {
        "used": units.shown(row.metric, used),
        "held": units.shown(row.metric, held),
        "left": units.shown(row.metric, max(0, row.amount - used - held)),
        "resets": resets,
    }


def _whose(tx: Connection, who: Principal, tenant: str) -> str:
    """The tenant that is meant. Raises TapsterError(not_found) if it is not the caller's to see."""
    tenant = tenant or who.tenant
    if who.tenant not in {DEFAULT_TENANT, tenant}:
        raise tenants.missing(tenant)
    return tenants.show(tx, tenant).name


def _endpoint(tx: Connection, tenant: str, name: str, resolve: Resolve) -> tuple[str, str]:
    if not name:
        return "", ""
    found = resolve(tx, tenant, name)
    if found is None:
        raise TapsterError(
            "not_found", f"there is no endpoint {name[:100]!r}", hint="see `tapster endpoints list`"
        )
    return found


def _once(wanted: Sequence[Wanted]) -> Sequence[Wanted]:
    """What is wanted. Raises TapsterError(invalid) for nothing, and for a limit named twice."""
    if not wanted:
        raise TapsterError(
            "invalid", "no limit is named", hint="for example requests=500/day", field="limits"
        )
    names = [(each.metric, each.period) for each in wanted]
    for name in names:
        if names.count(name) > 1:
            raise TapsterError("invalid", f"{name[0][:100]} is named twice", field="limits")
    return wanted


def _put(tx: Connection, tenant: str, wanted: Wanted, scope: dict[str, str]) -> Metric:
    """Set or remove one limit; its metric."""
    metric = units.metric_of(wanted.metric)
    units.check_period(metric, wanted.period)
    if (scope["endpoint"] or scope["key"]) and not units.KINDS[metric].narrowed:
        raise TapsterError(
            "invalid",
            f"{wanted.metric} is of a tenant, not of an endpoint or a key",
            field="metric",
        )
    here: dict[str, Any] = {**scope, "metric": metric, "period": wanted.period}
    if wanted.amount is None:
        if found := store.find(tx, tenant, **here):
            store.remove(tx, tenant, found.id)
    else:
        amount = units.units(metric, wanted.amount)
        store.put(tx, tenant, amount, _burst(metric, amount, wanted.burst), **here)
    return metric


def _burst(metric: Metric, amount: int, wanted: float | None) -> int:
    """How many requests may come at once: a second's, unless said otherwise."""
    if metric != "rate":
        if wanted is not None:
            raise TapsterError("invalid", "burst goes with rate", field="burst")
        return 0
    if wanted is None:
        return max(1, -(-amount // 1000))
    if not 1 <= wanted <= amount / 1000 * _LONGEST_BURST or wanted != int(wanted):
        raise TapsterError(
            "invalid",
            f"burst {wanted:g} is no number of requests that the rate allows in 31 days",
            field="burst",
        )
    return int(wanted)


def _limit_grant(row: Row, endpoint: str) -> LimitGrant:
    period: Period = row.period
    return LimitGrant(row.id, row.metric, row.amount, period, endpoint, row.key, row.burst)
