"""`tapster members` and `tapster roles`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, counted, emit, read_text
from tapster.contract.control import Member, Role

app = typer.Typer(help="The people of a tenant.")
roles = typer.Typer(help="Sets of rights with a name.")

Name = Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name.")]
Tenant = Annotated[str, typer.Option(metavar="T", help="The tenant; one's own by default.")]
PasswordFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File of the password; - is stdin.")
]
ActsFor = Annotated[
    list[str] | None,
    typer.Option(metavar="T", help="A tenant that the member may act for; '*' is all."),
]


@command(
    app,
    "add",
    "tapster members add ann@acme.example --tenant acme --role owner --password-file -",
    "tapster members add bob@acme.example --role developer",
)
def add(
    member: Name,
    *,
    role: Annotated[str, typer.Option(help="See `tapster roles list`.")],
    tenant: Tenant = "",
    password_file: PasswordFile = None,
    acts_for: ActsFor = None,
    as_json: Json = False,
) -> None:
    """Add a member; without a password they sign in by OpenID Connect."""
    password = _password(password_file)
    with client() as tapster:
        made = tapster.members_add(
            member, role, password=password, tenants=acts_for or (), tenant=tenant
        )
    emit(as_json, made, lambda: f"{made.name} is {made.role} of {made.tenant}")


@command(app, "list", "tapster members list --tenant acme")
def list_members(tenant: Tenant = "", as_json: Json = False) -> None:
    """List members."""
    with client() as tapster:
        found = tapster.members_list(tenant=tenant)
    emit(as_json, found, lambda: _table(found))


@command(app, "show", "tapster members show ann@acme.example")
def show(member: Name, tenant: Tenant = "", as_json: Json = False) -> None:
    """Show a member."""
    with client() as tapster:
        found = tapster.members_show(member, tenant=tenant)
    emit(as_json, found, lambda: _table([found]))


@command(app, "set", "tapster members set bob@acme.example --role operator")
def change(
    member: Name,
    role: Annotated[str, typer.Option(help="Another role, at once.")] = "",
    acts_for: ActsFor = None,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Give a member another role, or other tenants to act for."""
    with client() as tapster:
        found = tapster.members_set(member, role=role, tenants=acts_for, tenant=tenant)
    emit(as_json, found, lambda: f"{found.name} is {found.role} of {found.tenant}")


@command(app, "password", "tapster members password bob@acme.example --password-file new.txt")
def password(
    member: Name,
    password_file: Annotated[
        Path, typer.Option(metavar="FILE", help="File of the password; - is stdin.")
    ],
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Give a member another password, and end their sessions."""
    given = _password(password_file)
    with client() as tapster:
        found = tapster.members_password(member, given, tenant=tenant)
    emit(as_json, found, lambda: f"{found.name} has another password")


@command(app, "suspend", "tapster members suspend bob@acme.example")
def suspend(member: Name, tenant: Tenant = "", as_json: Json = False) -> None:
    """Keep a member out, and end their sessions at once."""
    with client() as tapster:
        found = tapster.members_suspend(member, tenant=tenant)
    emit(as_json, found, lambda: f"{found.name} is kept out")


@command(app, "resume", "tapster members resume bob@acme.example")
def resume(member: Name, tenant: Tenant = "", as_json: Json = False) -> None:
    """Let a suspended member in again."""
    with client() as tapster:
        found = tapster.members_resume(member, tenant=tenant)
    emit(as_json, found, lambda: f"{found.name} may sign in again")


@command(app, "remove", "tapster members remove bob@acme.example")
def remove(member: Name, tenant: Tenant = "", as_json: Json = False) -> None:
    """Forget a member, and end their sessions at once; keys that they made stay."""
    with client() as tapster:
        gone = tapster.members_remove(member, tenant=tenant)
    emit(as_json, gone, lambda: f"{gone.name} is no member of {gone.tenant} any more")


@command(app, "sessions", "tapster members sessions", "tapster members sessions --end ses_3f9a...")
def sessions(
    end: Annotated[str, typer.Option(metavar="SESSION", help="End this session.")] = "",
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """List who is signed in, or end a session."""
    from tapster.cli import tables

    with client() as tapster:
        if end:
            tapster.sessions_end(end, tenant=tenant)
        found = tapster.sessions_list(tenant=tenant)
    lines = (
        [s.id, s.name, s.how, s.address, tables.when(s.last_used), tables.when(s.expires)]
        for s in found
    )
    headers = ["SESSION", "MEMBER", "BY", "FROM", "LAST USED", "UNTIL"]
    emit(as_json, found, lambda: tables.table(headers, lines))


@command(roles, "list", "tapster roles list")
def list_roles(tenant: Tenant = "", as_json: Json = False) -> None:
    """List the roles that come along, and the tenant's own."""
    with client() as tapster:
        found = tapster.roles_list(tenant=tenant)
    emit(as_json, found, lambda: _roles(found))


@command(roles, "show", "tapster roles show developer")
def show_role(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role's name.")],
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Show what a role permits."""
    with client() as tapster:
        found = tapster.roles_show(role, tenant=tenant)
    emit(as_json, found, lambda: "\n".join(found.rights))


@command(roles, "set", "tapster roles set labeller datasets:read datasets:write uploads:write")
def set_role(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role's name.")],
    rights: Annotated[list[str], typer.Argument(metavar="RIGHT", help="See the reference.")],
    description: Annotated[str, typer.Option(help="Words for people.")] = "",
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Make a role of rights that one holds, or change it for all who have it."""
    with client() as tapster:
        made = tapster.roles_set(role, rights, description, tenant=tenant)
    emit(as_json, made, lambda: f"the role {made.name} has {counted(len(made.rights), 'right')}")


@command(roles, "delete", "tapster roles delete labeller")
def delete_role(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role's name.")],
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Delete a role that nobody has."""
    with client() as tapster:
        gone = tapster.roles_delete(role, tenant=tenant)
    emit(as_json, gone, lambda: f"the role {role} is gone")


def _password(file: Path | None) -> str:
    return "" if file is None else read_text(file).rstrip("\r\n")


def _table(found: list[Member]) -> Any:
    from tapster.cli import tables

    headers = ["MEMBER", "ROLE", "STATUS", "PASSWORD", "ACTS FOR", "LAST SEEN", "ID"]
    lines = (
        [m.name, m.role, m.status, m.password, " ".join(m.tenants), tables.when(m.last_seen), m.id]
        for m in found
    )
    return tables.table(headers, lines)


def _roles(found: list[Role]) -> Any:
    from tapster.cli import tables

    lines = ([r.name, r.description, " ".join(r.rights)] for r in found)
    return tables.table(["ROLE", "FOR", "RIGHTS"], lines, whole=["ROLE"])
