"""Usage, prices and invoices over HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy import Connection

from tapster.contract.control import Principal
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.tenancy.access import need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.ledger import invoices, papers, service
from tapster.tenancy.ledger.prices import service as prices

# (tx, tenant, name) -> owner and name of the endpoint that a tenant calls so, None if none.
Resolve = Callable[[Connection, str, str], tuple[str, str] | None]
_Reader = Annotated[Principal, Depends(need("usage:read"))]
_PriceReader = Annotated[Principal, Depends(need("prices:read"))]
_PriceWriter = Annotated[Principal, Depends(need("prices:write"))]
_InvoiceReader = Annotated[Principal, Depends(need("invoices:read"))]
_PAPERS = {"csv": (papers.as_csv, "text/csv"), "html": (papers.as_html, "text/html")}

_FORMS: dict[str, dict[str, Any]] = {
    "application/json": {"schema": {"type": "object"}},
    "text/csv": {"schema": {"type": "string"}},
    "text/html": {"schema": {"type": "string"}},
}


@dataclass
class PriceTier:
    """What is above `above` units in a month costs this: decimal strings by rate."""

    above: int
    rates: dict[str, str]
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class SetPrice:
    """What to ask for an endpoint's calls: `rates` of request, row, token and compute (a second).

    `tenant` pays it, everybody without a price of their own when it is empty. Without `endpoint` it
    is the installation's price of training (a second) and storage (a GiB for an hour).
    """

    rates: dict[str, str] = field(default_factory=dict)
    endpoint: str = ""
    tenant: str = ""
    tiers: list[PriceTier] = field(default_factory=list)
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts, resolve: Resolve) -> list[APIRouter]:
    """The routes under /usage, /prices and /invoices."""
    return [_usage(parts), _prices(parts, resolve), _invoices(parts)]


def _usage(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/usage", tags=["usage"])

    @router.get("")
    def show_usage(
        who: _Reader,
        *,
        by: str = "day",
        tenant: str = "",
        first: Annotated[str, Query(alias="from")] = "",
        last: Annotated[str, Query(alias="to")] = "",
        limit: Annotated[int, Query(ge=1, le=service.MOST_GROUPS)] = 1000,
    ) -> dict[str, Any]:
        """What was used, by tenant, key, endpoint, model, hour or day; both dates included."""
        with parts.db.read() as tx:
            return service.usage(
                tx,
                who,
                by=by,
                tenant=tenant,
                first=first,
                last=last,
                limit=limit,
                currency=parts.settings.currency,
            )

    @router.get("/check")
    def check_usage(who: _Reader) -> dict[str, Any]:
        """Compare the sums that answers are made from with the ledger's lines."""
        if not service.sees_all(who):
            raise TapsterError("forbidden", "only the installation checks the whole ledger")
        with parts.db.read() as tx:
            found = service.check(tx)
        return {"ok": not found, "differences": found[:1000]}

    return router


def _prices(parts: Parts, resolve: Resolve) -> APIRouter:
    router = APIRouter(prefix="/prices", tags=["prices"], route_class=InForce)

    @router.get("")
    def list_prices(who: _PriceReader, ended: bool = False) -> list[dict[str, Any]]:
        """The prices that the caller asks for, and those that others ask of it."""
        with parts.db.read() as tx:
            rows = prices.listing(tx, who.tenant, ended=ended)
        return [{**prices.shown(row), "currency": parts.settings.currency} for row in rows]

    @router.post("", status_code=201)
    def set_price(who: _PriceWriter, body: SetPrice) -> dict[str, Any]:
        """Ask a price from now on; the one before is kept, and lines go on naming it."""
        if not body.endpoint and not service.sees_all(who):
            raise TapsterError(
                "forbidden",
                "only the installation says what training and storage cost",
                hint="name one of your endpoints",
                field="endpoint",
            )
        tiers = [(tier.above, tier.rates) for tier in body.tiers]
        tariff = prices.tariff(body.rates, tiers, house=not body.endpoint)
        with parts.db.write() as tx:
            name = _own(tx, who.tenant, body.endpoint, resolve) if body.endpoint else ""
            row = prices.put(tx, who.tenant, name, body.tenant, tariff)
        return {**prices.shown(row), "currency": parts.settings.currency}

    @router.delete("/{price}")
    def delete_price(who: _PriceWriter, price: str) -> dict[str, str]:
        """Ask a price no longer."""
        with parts.db.write() as tx:
            prices.delete(tx, who.tenant, price)
        return {"deleted": price}

    return router


def _own(tx: Connection, tenant: str, called: str, resolve: Resolve) -> str:
    """The name of an endpoint of the caller's. Raises TapsterError(not_found) for another's."""
    owner, name = resolve(tx, tenant, called) or ("", "")
    if owner != tenant:
        raise TapsterError(
            "not_found",
            f"there is no endpoint {called[:100]!r} of yours",
            hint="see `tapster endpoints list`",
            field="endpoint",
        )
    return name


def _invoices(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/invoices", tags=["invoices"])

    @router.get("")
    def list_invoices(who: _InvoiceReader, tenant: str = "") -> list[dict[str, Any]]:
        """A tenant's invoices, the newest month first."""
        with parts.db.read() as tx:
            return invoices.listing(tx, who, tenant, parts.settings.currency)

    @router.get("/{month}", response_model=None, responses={200: {"content": _FORMS}})
    def show_invoice(
        who: _InvoiceReader,
        month: str,
        tenant: str = "",
        format: Literal["json", "csv", "html"] = "json",
    ) -> dict[str, Any] | Response:
        """A month's invoice (2026-11): as JSON, CSV, or a page to print."""
        with parts.db.read() as tx:
            found = invoices.invoice(
                tx, who, month, tenant, currency=parts.settings.currency, now=time.time()
            )
        if format == "json":
            return found
        spell, kind = _PAPERS[format]
        return Response(spell(found), media_type=f"{kind}; charset=utf-8")

    return router
