"""`tapster data`: datasets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, read_recipe
from tapster.contract.errors import TapsterError

app = typer.Typer(help="Import, look at, clean, split and delete datasets.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A dataset, or a version.")]


@command(
    app,
    "add",
    "tapster data add wine wine.csv",
    "tapster data add orders sqlite:///shop.db --table orders",
)
def add(
    name: Name,
    source: Annotated[str, typer.Argument(metavar="PATH|URL", help="File, folder or URL.")],
    *,
    table: Annotated[str, typer.Option(help="Table to read from a database URL.")] = "",
    query: Annotated[str, typer.Option(help="Query to run on a database URL.")] = "",
    column: Annotated[
        list[str] | None, typer.Option("--type", metavar="COL=TYPE", help="Override a type.")
    ] = None,
    format: Annotated[str, typer.Option(help="csv, tsv, parquet, jsonl or arrow.")] = "",
    infinities: Annotated[str, typer.Option(help="refuse them, or take them as missing.")] = "",
    as_json: Json = False,
) -> None:
    """Import data as a new version of a dataset; the same bytes again make no new one."""
    from tapster.cli import tables
    from tapster.cli.progress import shown

    schema = _schema(column or [])
    with client() as tapster, shown(f"import {name}") as bar:
        made = tapster.data_add(
            name,
            source,
            table=table,
            query=query,
            schema=schema,
            format=format,
            infinities=infinities,
            on_send=bar.send,
            on_progress=bar.job,
        )
    emit(as_json, made, lambda: tables.dataset(made))


@command(app, "list", "tapster data list")
def list_datasets(as_json: Json = False) -> None:
    """List datasets, each with its newest version."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.data_list()
    emit(as_json, found, lambda: tables.datasets(found))


@command(app, "show", "tapster data show wine", "tapster data show wine@2 --target quality")
def show(
    ref: Ref,
    target: Annotated[str, typer.Option(help="Column to relate the others to.")] = "",
    as_json: Json = False,
) -> None:
    """Show a version's profile: types, missing values, distributions, warnings."""
    from tapster.cli import profiles

    with client() as tapster:
        version = tapster.data_show(ref)
        profile = tapster.data_profile(ref, target)
        splits = tapster.data_splits(ref)
    document = {"dataset": version, "profile": profile, "splits": splits}
    emit(as_json, document, lambda: profiles.view(version, profile, splits))


@command(app, "clean", "tapster data clean wine --recipe recipe.json")
def clean(
    ref: Ref,
    recipe: Annotated[Path, typer.Option(help="JSON or TOML file of steps.")],
    as_json: Json = False,
) -> None:
    """Apply a recipe of cleaning and transform steps; the outcome is a new version."""
    from tapster.cli import tables
    from tapster.cli.progress import shown

    steps = read_recipe(recipe) or {}
    with client() as tapster, shown(f"clean {ref}") as bar:
        made = tapster.data_clean(ref, steps, on_progress=bar.job)
    emit(as_json, made, lambda: tables.dataset(made))


@command(app, "split", "tapster data split wine --kind stratified --column quality")
def split(
    ref: Ref,
    *,
    name: Annotated[str, typer.Option(help="Name of the split.")] = "default",
    kind: Annotated[str, typer.Option(help="random, stratified, time or group.")] = "random",
    fractions: Annotated[
        str, typer.Option(metavar="A,B,C", help="Shares of train, validation and test.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Repeats the same split.")] = 0,
    column: Annotated[str, typer.Option(help="Classes, time or group column.")] = "",
    as_json: Json = False,
) -> None:
    """Divide the rows into train, validation and test, and record how."""
    from tapster.cli import tables
    from tapster.cli.progress import shown

    shares = _fractions(fractions)
    options: dict[str, Any] = {"kind": kind, "seed": seed, "column": column}
    with client() as tapster, shown(f"split {ref}") as bar:
        made = tapster.data_split(ref, name, fractions=shares, on_progress=bar.job, **options)
    emit(as_json, made, lambda: tables.split(made))


@command(app, "delete", "tapster data delete wine@1")
def delete(ref: Ref, as_json: Json = False) -> None:
    """Delete a dataset, or one version of it, and free its storage."""
    from tapster.cli import tables

    with client() as tapster:
        freed = tapster.data_delete(ref)
    emit(as_json, freed, lambda: f"deleted {ref}, freed {tables.size(freed['freed'])}")


def _schema(pairs: list[str]) -> dict[str, str]:
    schema = {}
    for pair in pairs:
        name, equals, kind = pair.rpartition("=")
        if not equals or not name or not kind:
            raise TapsterError(
                "invalid", f"--type {pair!r} is not COL=TYPE", hint="for example --type zip=text"
            )
        schema[name] = kind
    return schema


def _fractions(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise TapsterError(
            "invalid", f"--fractions {text!r} are not numbers", hint="for example 0.7,0.15,0.15"
        ) from None
