"""`tapster trust`: whose packages may be imported."""

from pathlib import Path
from typing import Annotated

import typer

from tapster.cli.output import Json, client, command, emit, read_text
from tapster.contract.errors import TapsterError

app = typer.Typer(help="Keys of installations whose packages may be imported.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name for the key.")]


@command(app, "list", "tapster trust list")
def list_keys(as_json: Json = False) -> None:
    """List trusted keys."""
    from tapster.cli import tables

    with client() as tapster:
        found = tapster.trust_list()
    emit(as_json, found, lambda: tables.rows(found, ["name", "public_key"]))


@command(app, "add", "tapster trust add berlin 3b6a27bc...", "tapster trust add berlin berlin.pub")
def add(
    name: Name,
    key: Annotated[str, typer.Argument(metavar="KEY|FILE", help="Public key, or its file.")],
    as_json: Json = False,
) -> None:
    """Trust packages signed by a key."""
    path = Path(key)
    try:
        public = read_text(path).strip() if path.is_file() else key
    except OSError as error:  # a key can be longer than a path may be
        raise TapsterError("invalid", f"{key!r} is neither a key nor a file") from error
    with client() as tapster:
        document = tapster.trust_add(name, public)
    emit(as_json, document, lambda: f"packages signed by {name} are trusted")


@command(app, "remove", "tapster trust remove berlin")
def remove(name: Name, as_json: Json = False) -> None:
    """Trust a key no longer; models imported already stay."""
    with client() as tapster:
        document = tapster.trust_remove(name)
    emit(as_json, document, lambda: f"packages signed by {name} are trusted no longer")
