"""`tapster limits`."""

from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit
from tapster.contract.limits import Limit

app = typer.Typer(help="How much tenants, their keys and endpoints may use.")
Tenant = Annotated[str, typer.Option(metavar="T", help="The tenant; one's own by default.")]


@command(
    app,
    "set",
    "tapster limits set --tenant acme requests=500/day tokens=1e6/month spend=5.00/month",
    "tapster limits set --tenant acme --endpoint wine rate=100/s burst=200 concurrency=16",
    "tapster limits set --tenant acme storage=10GB training=10h/month jobs=2 models=20",
    "tapster limits set --tenant acme requests=none",
)
def set_limits(
    limits: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=AMOUNT",
            help="requests, rows, tokens, compute (seconds), spend or training (seconds) a day or"
            " month; rate a second, with burst; concurrency, storage, jobs, models."
            " NAME=none removes one.",
        ),
    ],
    tenant: Tenant = "",
    endpoint: Annotated[
        str, typer.Option(metavar="E", help="Only what is asked of this endpoint.")
    ] = "",
    key: Annotated[str, typer.Option(metavar="K", help="Only what is asked with this key.")] = "",
    as_json: Json = False,
) -> None:
    """Set limits; each takes the place of the one with its name, period and scope."""
    with client() as tapster:
        found = tapster.limits_set(*limits, tenant=tenant, endpoint=endpoint, key=key)
    emit(as_json, found, lambda: _set(found))


@command(app, "show", "tapster limits show --tenant acme")
def show(tenant: Tenant = "", as_json: Json = False) -> None:
    """Show limits, and what is used and left of them."""
    with client() as tapster:
        found = tapster.limits_show(tenant)
    emit(as_json, found, lambda: _shown(found))


@command(app, "delete", "tapster limits delete lim_3f9a0c5d11e2b764")
def delete(
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="The limit's id.")],
    as_json: Json = False,
) -> None:
    """Remove a limit."""
    with client() as tapster:
        gone = tapster.limits_delete(limit)
    emit(as_json, gone, lambda: f"{_name(gone)} of {gone.tenant} is gone")


def _set(found: list[Limit]) -> Any:
    from tapster.cli import tables

    headers = ["ID", "LIMIT", "AMOUNT", "FOR", "SET BY"]
    lines = ([one.id, _name(one), _amount(one), _scope(one), one.set_by] for one in found)
    return tables.table(headers, lines, whole=headers)


def _shown(found: list[Limit]) -> Any:
    from tapster.cli import tables

    headers = ["ID", "LIMIT", "AMOUNT", "FOR", "USED", "HELD", "LEFT", "RESETS", "SET BY"]
    lines = (
        [
            one.id,
            _name(one),
            _amount(one),
            _scope(one),
            *(_number(one, value) for value in (one.used, one.held or None, one.left)),
            tables.when(one.resets),
            one.set_by,
        ]
        for one in found
    )
    return tables.table(headers, lines, whole=headers)


def _name(one: Limit) -> str:
    return f"{one.metric} a {one.period}" if one.period else one.metric


def _scope(one: Limit) -> str:
    parts = (
        f"endpoint {one.endpoint}" if one.endpoint else "",
        f"key {one.key}" if one.key else "",
    )
    return ", ".join(part for part in parts if part) or "all"


def _amount(one: Limit) -> str:
    burst = f", at once {one.burst}" if one.burst else ""
    return _number(one, one.amount) + burst


def _number(one: Limit, value: float | None) -> str:
    """An amount as people read it."""
    from tapster.cli import tables

    if value is None:
        return "-"
    if one.metric == "storage":
        return tables.size(value)
    seconds = " s" if one.metric in {"compute", "training"} else ""
    spelled = f"{value:,.9f}".rstrip("0").rstrip(".")
    return f"{spelled}{'/s' if one.metric == 'rate' else seconds}"
