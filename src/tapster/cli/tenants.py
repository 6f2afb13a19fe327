"""`tapster tenants`."""

from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit
from tapster.contract.control import Tenant

app = typer.Typer(help="Who has data, models, keys and bills of its own.")
Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


@command(app, "add", "tapster tenants add acme --title 'Acme Ltd'")
def add(
    tenant: Name,
    title: Annotated[str, typer.Option(help="Words for people.")] = "",
    as_json: Json = False,
) -> None:
    """Make a tenant. The name stays: small letters, digits, single hyphens."""
    with client() as tapster:
        made = tapster.tenants_add(tenant, title)
    emit(as_json, made, lambda: f"tenant {made.name} is there; give it a member or a key next")


@command(app, "list", "tapster tenants list")
def list_tenants(as_json: Json = False) -> None:
    """List tenants."""
    with client() as tapster:
        found = tapster.tenants_list()
    emit(as_json, found, lambda: _table(found))


@command(app, "show", "tapster tenants show acme")
def show(tenant: Name, as_json: Json = False) -> None:
    """Show a tenant."""
    with client() as tapster:
        found = tapster.tenants_show(tenant)
    emit(as_json, found, lambda: _table([found]))


@command(app, "suspend", "tapster tenants suspend acme")
def suspend(tenant: Name, as_json: Json = False) -> None:
    """Turn a tenant's keys and members away at once; everything of its stays."""
    with client() as tapster:
        found = tapster.tenants_suspend(tenant)
    emit(as_json, found, lambda: f"tenant {found.name} is suspended")


@command(app, "resume", "tapster tenants resume acme")
def resume(tenant: Name, as_json: Json = False) -> None:
    """Let a suspended tenant's keys and members in again."""
    with client() as tapster:
        found = tapster.tenants_resume(tenant)
    emit(as_json, found, lambda: f"tenant {found.name} is active")


def _table(found: list[Tenant]) -> Any:
    from tapster.cli import tables

    lines = ([each.name, each.status, each.title, tables.when(each.created)] for each in found)
    return tables.table(["TENANT", "STATUS", "TITLE", "CREATED"], lines)
