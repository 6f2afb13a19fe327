"""`tapster keys`."""

from typing import Annotated, Any, Final

import typer

from tapster.cli.output import Json, client, command, emit, say
from tapster.contract.control import Key

app = typer.Typer(help="Keys that programs ask with.")
Identifier = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, not the secret.")]
Tenant = Annotated[str, typer.Option(metavar="T", help="The tenant; one's own by default.")]
Days = Annotated[
    float | None, typer.Option(metavar="DAYS", min=0, help="Days until it ends; never without.")
]
DAY: Final = 86400.0


@command(
    app,
    "create",
    "tapster keys create --tenant acme --role consumer --endpoint churn --expires 30 --json",
    "tapster keys create --right models:read --right models:write --name nightly",
)
def create(
    *,
    tenant: Tenant = "",
    role: Annotated[str, typer.Option(help="What it may; see `tapster roles list`.")] = "",
    right: Annotated[
        list[str] | None, typer.Option(metavar="RIGHT", help="A right, in place of a role.")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(metavar="E", help="Only for this endpoint.")
    ] = None,
    acts_for: Annotated[
        list[str] | None,
        typer.Option(metavar="T", help="A tenant that it may act for; '*' is all."),
    ] = None,
    name: Annotated[str, typer.Option(help="Words for people.")] = "",
    expires: Days = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print its secret, which nobody can see again. JSON: {"id", "key"}."""
    with client() as tapster:
        made = tapster.keys_create(
            role,
            rights=right or (),
            name=name,
            endpoints=endpoint or (),
            tenants=acts_for or (),
            expires_in=None if expires is None else expires * DAY,
            tenant=tenant,
        )
    _show(as_json, made)


@command(app, "list", "tapster keys list --tenant acme")
def list_keys(tenant: Tenant = "", as_json: Json = False) -> None:
    """List keys: what they may, until when, when they were last used."""
    with client() as tapster:
        found = tapster.keys_list(tenant=tenant)
    emit(as_json, found, lambda: _table(found))


@command(app, "rotate", "tapster keys rotate key_3f9a0c5d11e2b764 --overlap 3600")
def rotate(
    key: Identifier,
    overlap: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long the former is valid too.")
    ] = 0.0,
    expires: Days = None,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Give a key another secret, and print that. JSON: {"id", "key"}."""
    with client() as tapster:
        made = tapster.keys_rotate(
            key,
            overlap=overlap,
            expires_in=None if expires is None else expires * DAY,
            tenant=tenant,
        )
    _show(as_json, made)


@command(app, "revoke", "tapster keys revoke key_3f9a0c5d11e2b764")
def revoke(key: Identifier, tenant: Tenant = "", as_json: Json = False) -> None:
    """End a key now and for good."""
    with client() as tapster:
        gone = tapster.keys_revoke(key, tenant=tenant)
    emit(as_json, gone, lambda: f"key {gone.id} is revoked")


def _show(as_json: bool, made: Key) -> None:
    if not as_json:
        say(f"key {made.id}; keep what follows, it is not shown again:")
    emit(as_json, {"id": made.id, "key": made.key}, lambda: made.key)


def _table(found: list[Key]) -> Any:
    from tapster.cli import tables

    headers = ["KEY", "BEGINS", "NAME", "STATUS", "MAY", "ENDPOINTS", "LAST USED", "UNTIL"]
    lines = (
        [
            key.id,
            key.prefix,
            key.name,
            key.status,
            key.role or " ".join(key.rights),
            " ".join(key.endpoints),
            tables.when(key.last_used),
            tables.when(key.expires),
        ]
        for key in found
    )
    return tables.table(headers, lines, whole=["KEY", "BEGINS"])
