"""`tapster usage` and `tapster invoices`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tapster.cli.output import Json, client, command, emit

app = typer.Typer(help="What a month comes to.")
Tenant = Annotated[str, typer.Option(metavar="T", help="A tenant; see the guide for whose.")]
Month = Annotated[
    str, typer.Argument(metavar="MONTH", help="Such as 2026-11; this month by default.")
]


def add_to(root: typer.Typer) -> None:
    """Put `usage` on the root."""
    command(
        root,
        "usage",
        "tapster usage --by endpoint",
        "tapster usage --tenant acme --by day --from 2026-11-01 --to 2026-11-21",
    )(usage)


def usage(
    *,
    tenant: Tenant = "",
    by: Annotated[
        str, typer.Option(metavar="WHAT", help="tenant, key, endpoint, model, hour or day.")
    ] = "day",
    first: Annotated[
        str, typer.Option("--from", metavar="DAY", help="First day; the month's by default.")
    ] = "",
    last: Annotated[
        str, typer.Option("--to", metavar="DAY", help="Last day; today by default.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many groups at most.")] = 1000,
    check: Annotated[
        bool, typer.Option("--check", help="Compare all sums with the ledger's lines.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what was used, and what it costs."""
    from tapster.cli import bills

    with client() as tapster:
        if check:
            found = tapster.usage_check()
            emit(as_json, found, lambda: bills.checked(found))
            raise typer.Exit(0 if found["ok"] else 1)
        found = tapster.usage(by, tenant=tenant, first=first, last=last, limit=limit)
    emit(as_json, found, lambda: bills.usage(found))


@command(app, "list", "tapster invoices list")
def list_invoices(tenant: Tenant = "", as_json: Json = False) -> None:
    """List invoices, the newest month first."""
    from tapster.cli import bills

    with client() as tapster:
        found = tapster.invoices(tenant)
    emit(as_json, found, lambda: bills.invoices(found))


@command(app, "show", "tapster invoices show 2026-11 --tenant acme")
def show(month: Month = "", tenant: Tenant = "", as_json: Json = False) -> None:
    """Show a month's invoice."""
    from tapster.cli import bills

    with client() as tapster:
        found = tapster.invoice(month or _this_month(), tenant)
    emit(as_json, found, lambda: bills.invoice(found))


@command(
    app,
    "export",
    "tapster invoices export 2026-11 november.html --tenant acme",
    "tapster invoices export 2026-11 november.csv",
)
def export(
    month: Month,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    format: Annotated[
        str, typer.Option(metavar="json|csv|html", help="By default as the file's name ends.")
    ] = "",
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Write a month's invoice to a file: JSON, CSV, or a page to print."""
    with client() as tapster:
        written = tapster.invoice_export(month, file, format=format, tenant=tenant)
    emit(as_json, {"month": month, "file": str(written)}, lambda: f"{month} is in {written}")


def _this_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())
