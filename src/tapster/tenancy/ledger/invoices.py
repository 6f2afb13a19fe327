"""Invoices: what a tenant's lines of a month come to, in one document."""

import time
from typing import Any

from sqlalchemy import Connection

from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.tenancy.ledger import money, periods, service
from tapster.tenancy.ledger.prices import service as prices
from tapster.tenancy.ledger.prices import store as price_rows
from tapster.tenancy.ledger.reading import store as reading

_HOUSE = ("training", "storage")


def listing(
    tx: Connection, who: Principal, tenant: str, currency: str, now: float | None = None
) -> list[dict[str, Any]]:
    """A tenant's invoices, the newest first: number, month, status, total.

    Raises TapsterError(not_found) for a tenant that is not the caller's to see.
    """
    payer, at = service.payer(tx, who, tenant), time.time() if now is None else now
    return [
        _head(payer, row["month"], currency, at)
        | {"total": money.spell(row["amount"]), "showback": money.spell(row["showback"])}
        for row in reading.months(tx, payer)
    ]


def invoice(
    tx: Connection,
    who: Principal,
    month: str,
    tenant: str = "",
    *,
    currency: str = "",
    now: float | None = None,
) -> dict[str, Any]:
    """A tenant's invoice for a month: its lines by endpoint, model, price and tier.

    `total` is the sum of `lines` and of the ledger's own, exactly; `showback` tells what job time
    and storage would cost, and is no part of it. Raises TapsterError(not_found).
    """
    payer, at = service.payer(tx, who, tenant), time.time() if now is None else now
    rows = reading.bill(tx, payer, periods.month(month))
    if not rows:
        raise TapsterError(
            "not_found",
            f"there is no invoice for {month}",
            hint="see `tapster invoices list`",
            field="month",
        )
    rates = {row.id: prices.shown(row) for row in price_rows.by_ids(tx, _named(rows))}
    calls = [row for row in rows if row["kind"] == "calls"]
    house = [row for row in rows if row["kind"] in _HOUSE]
    return {
        **_head(payer, month, currency, at),
        "lines": [_line(row, rates) for row in calls],
        "total": money.spell(sum(row["amount"] for row in calls)),
        "showback": {
            "lines": [_house_line(row, rates) for row in house],
            "total": money.spell(sum(row["amount"] for row in house)),
        },
    }


def _named(rows: list[dict[str, Any]]) -> set[str]:
    return {row["price"] for row in rows if row["price"]}


def _head(payer: str, month: str, currency: str, at: float) -> dict[str, Any]:
    return {
        "number": f"{month}-{payer}",
        "tenant": payer,
        "month": month,
        "status": periods.state(month, at),
        "closes": periods.ends(month) + periods.CLOSING_SECONDS,
        "currency": currency,
    }


def _line(row: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    line = {"owner": row["owner"], "endpoint": row["name"], "endpoint_id": row["endpoint"]}
    line |= {name: row[name] for name in ("model", "version", "price")}
    counts = {name: row[name] for name in ("requests", "errors", "rows", "tokens", "cached")}
    return {
        **line,
        "above": row["above"],
        "rates": _rates(rates.get(row["price"]), row["above"]),
        **counts,
        "compute_seconds": row["compute"] / 1e9,
        "amount": money.spell(row["amount"]),
    }


def _house_line(row: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    line = {"kind": row["kind"], "name": row["name"], "price": row["price"], "above": row["above"]}
    line["rates"] = _rates(rates.get(row["price"]), row["above"])
    if row["kind"] == "training":
        line |= {"job": row["endpoint"], "seconds": row["training"] / 1e9}
    else:
        line["byte_hours"] = row["storage"]
    return {**line, "amount": money.spell(row["amount"])}


def _rates(price: dict[str, Any] | None, above: int) -> dict[str, str]:
    """What a price asks in a tier."""
    if price is None:
        return {}
    if not above:
        return dict(price["rates"])
    return next((dict(tier["rates"]) for tier in price["tiers"] if tier["above"] == above), {})
