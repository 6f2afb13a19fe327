"""`tapster tenants rekey` and `rekeyings`."""

from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, say
from tapster.contract.encryption import Rekeying

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


class Lines:
    """A line on stderr a tenth of the way, and one for each problem."""

    def __init__(self) -> None:
        self._last: tuple[int, str] = (-1, "")

    def __call__(self, seen: Rekeying) -> None:
        """Where it is now."""
        tenths = 10 * seen.resealed // max(seen.objects, 1)
        state = (tenths, seen.problem)
        if state != self._last and seen.status == "running":
            self._last = state
            say(f"{seen.tenant}: {_how_far(seen)}" + (f"; {seen.problem}" if seen.problem else ""))


def register(app: typer.Typer) -> None:
    """Add the commands to `tapster tenants`."""
    command(app, "rekey", "tapster tenants rekey acme")(rekey)
    command(app, "rekeyings", "tapster tenants rekeyings acme")(rekeyings)


def rekey(
    tenant: Name,
    wait: Annotated[bool, typer.Option(help="Return once all is under the new key.")] = True,
    as_json: Json = False,
) -> None:
    """Give a tenant another data key: seal anew what lies sealed, and destroy the former key."""
    with client() as tapster:
        done = tapster.tenants_rekey(tenant, wait=wait, on_progress=Lines())
    ended = f"tenant {tenant} has the data key {done.key}; the former one is destroyed"
    begun = f"tenant {tenant} has the data key {done.key}; what lies there is being sealed anew"
    emit(as_json, done, lambda: ended if done.status == "ended" else begun)


def rekeyings(tenant: Name, as_json: Json = False) -> None:
    """Show how a tenant was given other data keys, newest first."""
    with client() as tapster:
        found = tapster.tenants_rekeyings(tenant)
    emit(as_json, found, lambda: _table(found))


def _how_far(seen: Rekeying) -> str:
    return f"{seen.resealed} of {seen.objects} objects are under {seen.key}"


def _table(found: list[Rekeying]) -> Any:
    from tapster.cli import tables

    names = ["KEY", "STATUS", "BEGAN", "OBJECTS", "UNDER IT", "PROBLEM"]
    lines = (
        [each.key, each.status, tables.when(each.began), each.objects, each.resealed, each.problem]
        for each in found
    )
    return tables.table(names, [[str(cell) for cell in line] for line in lines])
