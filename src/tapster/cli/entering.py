"""`tapster login`, `tapster logout` and `tapster whoami`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, read_text, say
from tapster.client import remembered
from tapster.client.transport import home_folder
from tapster.contract.errors import TapsterError


def add_to(root: typer.Typer) -> None:
    """Put the commands on the root."""
    command(
        root,
        "login",
        "tapster login ann@acme.example --tenant acme",
        "tapster login --tenant acme --browser",
    )(login)
    command(root, "logout", "tapster logout")(logout)
    command(root, "whoami", "tapster whoami")(whoami)


def login(
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name.")] = "",
    tenant: Annotated[str, typer.Option(metavar="T", help="The tenant.")] = "default",
    browser: Annotated[
        bool, typer.Option("--browser", help="By OpenID Connect, in a browser on this machine.")
    ] = False,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of the password; - is stdin.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign in; commands ask as that member until `tapster logout`, or for some hours."""
    if bool(member) == browser:
        raise TapsterError(
            "invalid", "name a member, or sign in with --browser", hint="tapster login --help"
        )
    with client() as tapster:
        if browser:
            session = tapster.login_in_browser(_open, tenant=tenant)
        else:
            session = tapster.login(member, _password(password_file), tenant=tenant)
        remembered.remember(home_folder(), tapster.address.url, session.token, session.expires)
    shown = {"tenant": session.tenant, "member": session.name, "expires": session.expires}
    emit(as_json, shown, lambda: f"signed in as {session.name} of {session.tenant}")


def logout(as_json: Json = False) -> None:
    """End the session of `tapster login`."""
    with client() as tapster:
        try:
            ended = tapster.logout()
        finally:
            remembered.forget(home_folder(), tapster.address.url)
    emit(as_json, {"ended": ended.id}, lambda: f"{ended.name} is signed out")


def whoami(as_json: Json = False) -> None:
    """Show whom commands ask as, and what that may."""
    with client() as tapster:
        found = tapster.whoami()
    emit(as_json, found, lambda: _who(found))


def _who(found: dict[str, Any]) -> Any:
    from tapster.cli import tables

    return tables.facts({**found, "rights": " ".join(found["rights"])})


def _password(file: Path | None) -> str:
    if file is not None:
        return read_text(file).rstrip("\r\n")
    import getpass
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass("password: ")
        except getpass.GetPassWarning:
            raise TapsterError(
                "invalid",
                "there is no terminal to ask for the password on",
                hint="give it in a file: --password-file FILE; - is stdin",
            ) from None


def _open(url: str) -> None:
    import webbrowser

    say(f"sign in there, on this machine:\n{url}")
    webbrowser.open(url)
