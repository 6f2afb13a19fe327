"""`tapster up`, `tapster doctor` and `tapster demo`."""

from pathlib import Path
from typing import Annotated

import typer

from tapster.cli.output import Json, command, emit, print_json, say

Home = Annotated[Path | None, typer.Option(help="Folder of the embedded state.")]


def add_to(root: typer.Typer) -> None:
    """Put the commands on the root."""
    root.callback()(_version_option)
    command(root, "up", "tapster up", "tapster up --port 9000 --rest-port 9501")(up)
    command(root, "demo", "tapster demo")(demo)
    command(root, "doctor", "tapster doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tapster import __version__

        typer.echo(f"tapster {__version__}")
        raise typer.Exit


def _version_option(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """From a data file to a model that many customers call."""


def up(
    *,
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to bind to.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Control API.")] = None,
    rest_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="REST inference; 0 picks a free one.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="gRPC inference; 0 picks a free one.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Data-plane processes.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="No keys; on loopback only.")] = False,
    as_json: Json = False,
) -> None:
    """Start the server and stay until it is told to stop (Ctrl-C)."""
    import os

    from tapster import supervisor
    from tapster.core import settings
    from tapster.core.settings import Settings

    def announce(bound: Settings) -> None:
        facts = {
            "url": bound.url,
            "rest_url": bound.rest_url,
            "grpc_url": bound.grpc_url,
            "home": str(bound.home),
        }
        if as_json:
            print_json({**facts, "pid": os.getpid()})
        else:
            say(_welcome(facts, bound.no_auth))

    chosen = settings.load(
        home=home,
        host=host,
        port=port,
        rest_port=rest_port,
        grpc_port=grpc_port,
        workers=workers,
        no_auth=no_auth or None,
    )
    raise typer.Exit(supervisor.run(chosen, announce))


def _welcome(facts: dict[str, str], no_auth: bool) -> str:
    key = "no key is asked for" if no_auth else f"the admin key is in {facts['home']}/admin.key"
    return (
        f"Tapster is up (Ctrl-C stops it)\n"
        f"  control API  {facts['url']}/api/v1\n"
        f"  inference    {facts['rest_url']}, gRPC {facts['grpc_url']}\n"
        f"  home         {facts['home']}; {key}\n"
        f"next, in another terminal:  tapster data add NAME FILE.csv"
    )


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary home there.")] = False,
    as_json: Json = False,
) -> None:
    """Go from a data file to a served model in a temporary home, and check every answer."""
    from tapster.cli import demo as script

    raise typer.Exit(script.run(as_json, keep=keep))


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Check the installation; say what is wrong and how to mend it."""
    from tapster.cli import doctor as checks

    found = checks.examine(home)
    emit(as_json, {"ok": checks.passed(found), "checks": found}, lambda: checks.view(found))
    raise typer.Exit(0 if checks.passed(found) else 1)
