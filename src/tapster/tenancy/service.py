"""Who is asking, what the data plane must know of keys, and verbs that touch several rooms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Member, Principal, Role, Session, Tenant
from tapster.contract.errors import TapsterError
from tapster.contract.plan import KeyGrant
from tapster.core.blobs import write_atomically
from tapster.core.crypto import SESSION_PREFIX, new_key
from tapster.tenancy.audit.acts import about
from tapster.tenancy.keys import service as keys
from tapster.tenancy.members import service as members
from tapster.tenancy.revisions import revise, revision
from tapster.tenancy.roles import service as roles
from tapster.tenancy.sessions import service as sessions
from tapster.tenancy.tenants import service as tenants

__all__ = ["authenticate", "ensure_admin", "ensure_key_file", "grants", "revise", "revision"]

ADMIN_KEY: Final = "key_admin"


def ensure_key_file(path: Path) -> str:
    """The key in `path`, made at first use (mode 0600)."""
    if not path.exists():
        write_atomically(path, new_key().encode() + b"\n")
    return path.read_text().strip()


def ensure_admin(tx: Connection, key: str) -> None:
    """Make the default tenant and let `key` administer it, instead of any former admin key."""
    tenants.ensure(tx, DEFAULT_TENANT)
    keys.administer(tx, ADMIN_KEY, key)


def authenticate(tx: Connection, secret: str) -> Principal | None:
    """Whose key or session this is; None for everything that is not valid now."""
    if secret.startswith(SESSION_PREFIX):
        return sessions.authenticate(tx, secret)
    return keys.authenticate(tx, secret)


def suspended(tx: Connection, secret: str) -> str:
    """The suspended tenant that this is a valid key of; "" for everything else."""
    return keys.suspended(tx, secret)


def grants(tx: Connection, only: Sequence[str] = ()) -> tuple[KeyGrant, ...]:
    """Every key and session as the data plane must know it; `only` those with these ids.

    Two have the same id while a key that was rotated is valid in both its forms.
    """
    return (*keys.grants(tx, only), *sessions.grants(tx, only))


def grants_beyond(tx: Connection, after: str, most: int) -> list[KeyGrant]:
    """Of all those, so many keys with the next ids beyond one; two or none of some ids."""
    return keys.grants(tx, after=after, most=most)


def session_grants(tx: Connection) -> list[KeyGrant]:
    """Of all those, the sessions."""
    return sessions.grants(tx)


def used(tx: Connection, times: dict[str, float]) -> None:
    """Remember when keys and sessions (ids) were last used (seconds since 1970)."""
    keys.used(tx, {each: at for each, at in times.items() if each.startswith("key_")})
    sessions.used(tx, {each: at for each, at in times.items() if each.startswith("ses_")})


def acting_for(tx: Connection, who: Principal, tenant: str) -> None:
    """Raise TapsterError(not_found) unless the caller may act for another tenant that there is."""
    may = who.tenant == DEFAULT_TENANT and bool(who.tenants & {tenant, "*"})
    if not may:
        raise tenants.missing(tenant)
    tenants.show(tx, tenant)


def forget_reach(tx: Connection, tenant: str) -> None:
    """Let nobody of the installation's act any longer for a tenant that is no more."""
    keys.forget_reach(tx, tenant)
    members.forget_reach(tx, tenant)


def suspend_tenant(tx: Connection, name: str) -> Tenant:
    """Turn a tenant's keys and members away, and end its sessions."""
    found = tenants.suspend(tx, name)
    for member in members.listing(tx, name):
        sessions.end_all(tx, name, member.id)
    return found


def sign_in(
    tx: Connection,
    tenant: str,
    member: str,
    *,
    how: str,
    address: str,
    seconds: float,
    proved: str | None = None,
) -> Session:
    """A session of `seconds` for a member (id), who `proved` to know the password of this hash.

    Raises TapsterError(unauthenticated) if they are gone by now, or have another password.
    """
    row = members.by_id(tx, tenant, member, lock=True)
    gone = row is None or not tenants.active(tx, tenant)
    if gone or (proved is not None and row["password"] != proved):
        raise TapsterError("unauthenticated", "this member cannot sign in")
    about(f"member={member}", tenant, member)
    return sessions.start(tx, row, how, address, seconds)


def change_member(
    tx: Connection,
    who: Principal,
    name: str,
    role: str | None = None,
    reach: Sequence[str] | None = None,
) -> Member:
    """Give a member another role or reach, in the sessions they have too."""
    found = members.change(tx, who, name, role=role, reach=reach)
    sessions.member_changed(tx, who.tenant, found.id)
    return found


def suspend_member(tx: Connection, who: Principal, name: str) -> Member:
    """Keep a member out, and end their sessions."""
    found = members.set_status(tx, who, name, "suspended")
    sessions.end_all(tx, who.tenant, found.id)
    return found


def remove_member(tx: Connection, who: Principal, name: str) -> Member:
    """Forget a member, and end their sessions; keys that they made stay."""
    found = members.remove(tx, who, name)
    sessions.end_all(tx, who.tenant, found.id)
    return found


def set_password(tx: Connection, who: Principal, name: str, stored: str) -> Member:
    """Give a member another password (its hash), and end their sessions."""
    row = members.theirs(tx, who, name)
    members.set_password(tx, who.tenant, row["id"], stored)
    sessions.end_all(tx, who.tenant, row["id"])
    return members.show(tx, who.tenant, row["id"])


def set_own_password(tx: Connection, who: Principal, stored: str, *, proved: str) -> None:
    """Give the caller another password (its hash), and end their other sessions.

    Raises TapsterError(forbidden) if the former one is not that of the hash `proved` any more.
    """
    row = members.by_id(tx, who.tenant, who.member)
    if row is None or row["password"] != proved:
        raise TapsterError("forbidden", "the former password is another", field="former")
    members.set_password(tx, who.tenant, who.member, stored)
    sessions.end_all(tx, who.tenant, who.member, but=who.key_id)


def put_role(
    tx: Connection, who: Principal, name: str, rights: Sequence[str], description: str
) -> Role:
    """Make a role, or change it for every member and key that has it."""
    found = roles.put(tx, who, name, rights, description)
    keys.role_changed(tx, who.tenant, name)
    sessions.role_changed(tx, who.tenant, name)
    return found


def remove_role(tx: Connection, who: Principal, name: str) -> None:
    """Delete a role. Raises TapsterError(conflict) while a member or a key has it."""
    roles.show(tx, who.tenant, name)
    if members.has_role(tx, who.tenant, name) or keys.has_role(tx, who.tenant, name):
        raise TapsterError(
            "conflict",
            f"the role {name} is in use",
            hint="give its members another, and revoke its keys, first",
        )
    roles.remove(tx, who.tenant, name)
