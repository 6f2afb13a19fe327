"""`tapster prices`."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from tapster.cli.output import Json, client, command, emit
from tapster.contract.errors import TapsterError

app = typer.Typer(help="What calls of your endpoints cost, and job time and storage.")
_VALUED: Final = frozenset({"--endpoint", "--tenant"})
_EXAMPLES: Final = (
    "tapster prices set --endpoint wine request=0.001 row=0.00001",
    "tapster prices set --endpoint wine --tenant acme row=0.00001 --above 1000000 row=0.000005",
    "tapster prices set training=0.00005 storage=0.00003",
)


class _Tiered(TyperCommand):
    """A command whose `--above N` is for the rates that come after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write `--above N row=P` as `row@N=P`, which no order can confuse."""
        return super().parse_args(ctx, list(placed(args)))


def placed(args: Sequence[str]) -> Iterator[str]:
    """Arguments whose rates name their tier."""
    above, words = "", iter(args)
    for word in words:
        option, sign, value = word.partition("=")
        if option == "--above":
            above = value if sign else next(words, "")
        elif word in _VALUED:
            yield from (word, *[each for each in [next(words, None)] if each is not None])
        elif sign and above and not word.startswith("-"):
            yield f"{option}@{above}={value}"
        else:
            yield word


@app.command("set", cls=_Tiered, epilog="Example: " + "\n\nExample: ".join(_EXAMPLES))
def set_price(
    rates: Annotated[
        list[str],
        typer.Argument(
            metavar="RATE=PRICE",
            help="request, row, token, compute (a second); without --endpoint training (a second)"
            " and storage (a GiB for an hour).",
        ),
    ],
    endpoint: Annotated[str, typer.Option(metavar="E", help="The endpoint.")] = "",
    tenant: Annotated[str, typer.Option(metavar="T", help="Who pays it; without, everybody.")] = "",
    above: Annotated[
        str,
        typer.Option(metavar="N", help="Rates after this are for what is above N in a month."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Ask a price from now on; the one before is kept for what was used under it."""
    from tapster.cli import bills

    base, tiers = split(rates)
    with client() as tapster:
        made = tapster.prices_set(endpoint, base, tenant=tenant, tiers=tiers)
    emit(as_json, made, lambda: bills.prices([made]))


@command(app, "list", "tapster prices list", "tapster prices list --ended")
def list_prices(
    ended: Annotated[bool, typer.Option("--ended", help="Also prices of former times.")] = False,
    as_json: Json = False,
) -> None:
    """List the prices of your endpoints, and those that others ask of you."""
    from tapster.cli import bills

    with client() as tapster:
        found = tapster.prices_list(ended=ended)
    emit(as_json, found, lambda: bills.prices(found))


@command(app, "delete", "tapster prices delete pri_1f0c9a3b")
def delete(
    price: Annotated[str, typer.Argument(metavar="PRICE", help="The price's id.")],
    as_json: Json = False,
) -> None:
    """Ask a price no longer; what was used under it stays billed."""
    with client() as tapster:
        done = tapster.prices_delete(price)
    emit(as_json, done, lambda: f"price {price} holds no longer")


def split(rates: Sequence[str]) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """Rates without a tier, and by tier, of `row=0.1` and `row@1000=0.05`.

    Raises TapsterError(invalid).
    """
    base: dict[str, str] = {}
    tiers: dict[int, dict[str, str]] = {}
    for text in rates:
        where, sign, price = text.partition("=")
        name, at, above = where.partition("@")
        if not sign or not name or (at and not above.isdecimal()):
            raise TapsterError(
                "invalid",
                f"{text[:100]!r} is not RATE=PRICE",
                hint="for example row=0.00001 --above 1000000 row=0.000005",
            )
        here = tiers.setdefault(int(above), {}) if at else base
        if name in here:
            raise TapsterError("invalid", f"{name!r} has two prices", field=name)
        here[name] = price
    return base, tiers
