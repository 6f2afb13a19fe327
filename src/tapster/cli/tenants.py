"""`tapster tenants`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli import rekeying
from tapster.cli.output import Json, client, command, emit, read_text
from tapster.contract.control import Tenant
from tapster.contract.errors import TapsterError

app = typer.Typer(help="Who has data, models, keys and bills of its own.")
rekeying.register(app)
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


@command(app, "weigh", "tapster tenants weigh acme 2")
def weigh(
    tenant: Name,
    weight: Annotated[float, typer.Argument(metavar="WEIGHT", help="1 is what all have at first.")],
    as_json: Json = False,
) -> None:
    """Say how much of the turns a tenant gets when several wait for a model."""
    with client() as tapster:
        found = tapster.tenants_weigh(tenant, weight)
    emit(as_json, found, lambda: f"tenant {found.name} weighs {found.weight:g}")


@command(app, "erase", "tapster tenants erase acme --yes --json > acme-receipt.json")
def erase(
    tenant: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Destroy a tenant: its keys, data, models, members, for good; print the signed receipt."""
    if not yes and (as_json or not typer.confirm(f"Destroy all that {tenant} has, for good?")):
        raise TapsterError("invalid", "nothing was erased", hint="say --yes if you mean it")
    with client() as tapster:
        done = tapster.tenants_erase(tenant)
    receipt = done.receipt or {}
    emit(as_json, receipt, lambda: _erased(receipt))


@command(app, "verify", "tapster tenants verify acme-receipt.json --key 3b6a27bc...")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt; - is stdin.")],
    key: Annotated[str, typer.Option(help="The installation's public key, if you know it.")] = "",
    as_json: Json = False,
) -> None:
    """Check the signature of an erasure's receipt; needs no server."""
    from tapster.cli.receipts import check

    receipt = check(read_text(file), key)
    signer = receipt["public_key"]
    emit(as_json, {"valid": True, "public_key": signer}, lambda: f"valid, signed by {signer}")


def _erased(receipt: dict[str, Any]) -> str:
    rows = sum(receipt["rows"].values())
    return (
        f"tenant {receipt['tenant']} is erased: {len(receipt['objects'])} objects,"
        f" {receipt['bytes']} bytes, {rows} rows; receipt {receipt['id']}"
    )


def _table(found: list[Tenant]) -> Any:
    from tapster.cli import tables

    lines = ([each.name, each.status, each.title, tables.when(each.created)] for each in found)
    return tables.table(["TENANT", "STATUS", "TITLE", "CREATED"], lines)
