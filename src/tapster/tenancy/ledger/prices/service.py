"""Setting, ending and finding prices. Every change tells the data plane, which reserves by them."""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.errors import TapsterError
from tapster.contract.plan import Price
from tapster.contract.usage import FREE
from tapster.core.crypto import new_id
from tapster.tenancy import service as tenancy
from tapster.tenancy.ledger import money
from tapster.tenancy.ledger.prices import store
from tapster.tenancy.ledger.prices.store import PriceRow
from tapster.tenancy.ledger.tariffs import CALLS, HOUSE, Tariff, Tier, dearest
from tapster.tenancy.shares import service as shares
from tapster.tenancy.tenants import service as tenants

MOST_TIERS: Final = 20
MOST_PRICES: Final = 1000
_MOST_UNITS: Final = 10**15


def tariff(
    rates: Mapping[str, str], tiers: Iterable[tuple[int, Mapping[str, str]]], *, house: bool
) -> Tariff:
    """A tariff from decimal strings: `rates` for everything, `tiers` for what is above so much.

    `house` says that it is for job time and storage, not for calls. Raises TapsterError(invalid).
    """
    allowed = HOUSE if house else CALLS
    made = {0: _rates(rates, allowed)}
    for above, more in tiers:
        if not 0 < above <= _MOST_UNITS:
            raise TapsterError("invalid", "a tier is above a whole number of units", field="above")
        if above in made:
            raise TapsterError("invalid", f"there are two tiers above {above}", field="above")
        made[above] = _rates(more, allowed)
    if len(made) > MOST_TIERS:
        raise TapsterError("invalid", f"a price has at most {MOST_TIERS} tiers", field="tiers")
    if not all(found for above, found in made.items() if above) or not any(made.values()):
        raise TapsterError(
            "invalid",
            "a price, and each of its tiers, says what something costs",
            hint=f"for example {allowed[0]}=0.001; names are {', '.join(allowed)}",
            field="rates",
        )
    return tuple(Tier(above, made[above]) for above in sorted(made))


def put(
    tx: Connection,
    tenant: str,
    endpoint: str,
    caller: str,
    made: Tariff,
    *,
    now: float | None = None,
) -> PriceRow:
    """Ask `made` for an endpoint from now on, of `caller` ("": of everybody without another price).

    What was asked until now is kept. An `endpoint` of "" is the installation's own price. Raises
    TapsterError(invalid) for a caller's name, (conflict) for too many prices.
    """
    if caller and not tenants.proper(caller):
        raise TapsterError("invalid", "this cannot be a tenant's name", field="tenant")
    at = time.time() if now is None else now
    held = store.holding(tx, tenant, endpoint)
    former = [row for row in held if row.caller == caller]
    if not former and len(held) >= MOST_PRICES:
        raise TapsterError("conflict", f"an endpoint has at most {MOST_PRICES} prices at once")
    for row in former:
        store.end(tx, tenant, row.id, at)
    made_row = PriceRow(new_id("pri"), tenant, endpoint, caller, made, at, None)
    store.add(tx, tenant, made_row)
    _tell(tx, tenant, endpoint)
    return made_row


def delete(tx: Connection, tenant: str, identifier: str, now: float | None = None) -> PriceRow:
    """Ask a price no longer. Raises TapsterError(not_found)."""
    row = store.get(tx, tenant, identifier)
    at = time.time() if now is None else now
    if row is None or not store.end(tx, tenant, identifier, at):
        raise TapsterError(
            "not_found", f"there is no price {identifier!r}", hint="see `tapster prices list`"
        )
    _tell(tx, tenant, row.endpoint)
    return row


def listing(tx: Connection, tenant: str, *, ended: bool = False) -> list[PriceRow]:
    """The prices a tenant asks for, those asked of it by name (of both, with `ended`, old ones
    too), and what everybody pays for what is shared with it."""
    rows = store.listing(tx, tenant, ended=ended)
    named = {(row.tenant, row.endpoint) for row in rows if row.caller and row.until is None}
    places = set(shares.offered(tx, shares.ENDPOINT, tenant)) - named
    general = (
        row
        for row in store.everywhere(tx, {owner for owner, _ in places})
        if not row.caller and (row.tenant, row.endpoint) in places
    )
    return [*rows, *general]


def shown(row: PriceRow) -> dict[str, Any]:
    """A price as the API gives it: rates as decimal strings."""
    base = [tier for tier in row.tariff if tier.above == 0]
    return {
        "id": row.id,
        "owner": row.tenant,
        "endpoint": row.endpoint,
        "tenant": row.caller,
        "rates": _spelled(base[0]) if base else {},
        "tiers": [
            {"above": tier.above, "rates": _spelled(tier)} for tier in row.tariff if tier.above
        ],
        "since": row.since,
        "until": row.until,
    }


def planned(
    tx: Connection, owners: Collection[str] | None = None
) -> dict[tuple[str, str], tuple[Price, ...]]:
    """What calls cost at most, by owner and endpoint's name, for reservations; `owners`' only.

    Whoever has no price there is told so: what is let in by that stays free, whatever is asked
    before it is reported. Of an endpoint that is not named, `unpriced` is what holds.
    """
    found: dict[tuple[str, str], tuple[Price, ...]] = {}
    for row in store.everywhere(tx, owners):
        if row.endpoint:
            here = (row.tenant, row.endpoint)
            price = Price(tenant=row.caller, id=row.id, **dearest(row.tariff))
            found[here] = (*found.get(here, ()), price)
    return {
        here: asked if any(not price.tenant for price in asked) else (*asked, *unpriced())
        for here, asked in found.items()
    }


def unpriced() -> tuple[Price, ...]:
    """The prices of an endpoint that asks none."""
    return (Price(id=FREE),)


class Book:
    """The prices of some owners, to be looked up many times: those that held after `after`, and
    those `named` by whoever was let in by them, however late."""

    def __init__(
        self, tx: Connection, owners: Iterable[str], after: float, named: Iterable[str] = ()
    ) -> None:
        self._prices: dict[tuple[str, str, str], list[PriceRow]] = {}
        for row in store.of_owners(tx, owners, after, named):
            self._prices.setdefault((row.tenant, row.endpoint, row.caller), []).append(row)

    def price(
        self, owner: str, endpoint: str, payer: str, moment: float, named: str = ""
    ) -> PriceRow | None:
        """The price in force at `moment`; the one `named`, if the payer was ever asked it.

        None for what is free.
        """
        if named == FREE:
            return None
        own = self._prices.get((owner, endpoint, payer), [])
        general = self._prices.get((owner, endpoint, ""), []) if payer else []
        if named:
            found = next((row for row in (*own, *general) if row.id == named), None)
            if found is not None:
                return found
        return _in_force(own, moment) or _in_force(general, moment)


def house(tx: Connection, payer: str, moment: float) -> PriceRow | None:
    """The installation's price of job time and storage for a tenant."""
    return Book(tx, [DEFAULT_TENANT], moment).price(DEFAULT_TENANT, "", payer, moment)


def _in_force(rows: list[PriceRow], moment: float) -> PriceRow | None:
    held = (row for row in rows if row.since <= moment and (row.until or moment + 1) > moment)
    return max(held, key=lambda row: row.since, default=None)


def _rates(given: Mapping[str, str], allowed: tuple[str, ...]) -> dict[str, int]:
    for name in given:
        if name not in allowed:
            raise TapsterError(
                "invalid",
                f"{name[:50]!r} has no price here",
                hint=_instead(name, allowed),
                field="rates",
            )
    return {name: money.parse(given[name], name) for name in allowed if name in given}


def _instead(name: str, allowed: tuple[str, ...]) -> str:
    choose = f"choose among {', '.join(allowed)}"
    if name in CALLS:
        return f"that is asked for calls of an endpoint: name it (--endpoint), or {choose}"
    if name in HOUSE:
        return f"the installation asks that, without an endpoint; of one {choose}"
    return choose


def _spelled(tier: Tier) -> dict[str, str]:
    return {name: money.spell(price, 0) for name, price in tier.rates.items()}


def _tell(tx: Connection, tenant: str, endpoint: str) -> None:
    if endpoint:
        tenancy.revise(tx, tenant, f"endpoint {endpoint}: prices", kind="endpoint", ref=endpoint)
