"""Verbs over members: add, change, suspend, resume, remove; and whom a sign-in is about."""

import re
import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT, Member, Principal
from tapster.contract.errors import TapsterError
from tapster.core.crypto import new_id
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.members import store
from tapster.tenancy.roles import service as roles
from tapster.tenancy.tenants import service as tenants

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,199}")
_MOST: Final = 1000
OWNER: Final = "owner"


def add(
    tx: Connection,
    who: Principal,
    name: str,
    role: str,
    *,
    reach: Sequence[str] = (),
    password: str | None = None,
) -> Member:
    """Add a person to the caller's tenant; `password` is a hash, `reach` whom they may act for.

    Raises TapsterError(invalid) for a name or role that cannot be, (conflict) for a name that is
    taken, (forbidden) for more rights than the caller holds.
    """
    if not NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{name[:100]!r} cannot be the name of a member",
            hint="write an e-mail address, or small letters, digits and . _ - + @",
            field="name",
        )
    roles.check_role(tx, who, role)
    _check_reach(tx, who, reach)
    if store.named(tx, who.tenant, name) is not None:
        raise TapsterError("conflict", f"there is a member {name} already", field="name")
    identifier = new_id("mem")
    store.add(
        tx,
        who.tenant,
        identifier,
        name=name,
        role=role,
        tenants=sorted(set(reach)),
        password=password,
    )
    return show(tx, who.tenant, name)


def listing(tx: Connection, tenant: str) -> list[Member]:
    """A tenant's members, by name."""
    return [_member(row) for row in store.listing(tx, tenant)]


def show(tx: Connection, tenant: str, name: str) -> Member:
    """One member, by name or id. Raises TapsterError(not_found)."""
    return _member(_row(tx, tenant, name))


def change(
    tx: Connection,
    who: Principal,
    name: str,
    *,
    role: str | None = None,
    reach: Sequence[str] | None = None,
) -> Member:
    """Give a member another role, or other tenants to act for.

    Raises TapsterError(forbidden) when the caller holds less than the member has or will have,
    (conflict) for the tenant's last owner.
    """
    row = theirs(tx, who, name)
    values: dict[str, Any] = {}
    if role is not None:
        roles.check_role(tx, who, role)
        if role != OWNER:
            _check_last(tx, row)
        values["role"] = role
    if reach is not None:
        _check_reach(tx, who, reach)
        values["tenants"] = sorted(set(reach))
    if values:
        store.change(tx, who.tenant, row["id"], **values)
    return show(tx, who.tenant, row["id"])


def set_status(tx: Connection, who: Principal, name: str, status: str) -> Member:
    """Suspend a member (`suspended`), or let them in again (`active`).

    Raises TapsterError(conflict) when it is the tenant's last owner who is suspended.
    """
    row = theirs(tx, who, name)
    if status != "active":
        _check_last(tx, row)
    store.change(tx, who.tenant, row["id"], status=status)
    return show(tx, who.tenant, row["id"])


def set_password(tx: Connection, tenant: str, identifier: str, password: str) -> None:
    """Store the hash of a member's password."""
    store.change(tx, tenant, identifier, password=password)


def remove(tx: Connection, who: Principal, name: str) -> Member:
    """Forget a member; the name is free again, and whoever has it next is somebody else.

    Raises TapsterError(conflict) for the tenant's last owner.
    """
    row = theirs(tx, who, name)
    _check_last(tx, row)
    store.remove(tx, who.tenant, row["id"])
    return _member(row)


def theirs(tx: Connection, who: Principal, name: str) -> Any:
    """A member's row, for a caller who may do all that the member may.

    Raises TapsterError(not_found), (forbidden).
    """
    row = _row(tx, who.tenant, name)
    if row["id"] != who.member:
        roles.check_held(who, roles.rights_of(tx, who.tenant, row["role"]))
        roles.check_reach(who, row["tenants"])
    return row


def signing_in(tx: Connection, tenant: str, name: str) -> Any:
    """The row of a member who may sign in, or None."""
    if not NAME.fullmatch(name) or not tenants.proper(tenant) or not tenants.active(tx, tenant):
        return None
    return _active(store.named(tx, tenant, name))


def known_as(tx: Connection, tenant: str, subject: str, email: str) -> Any:
    """The row of a member who may sign in and whom a provider calls `subject`, or None.

    Whoever has not signed in so before is told by `email`, as the provider verified it, and is
    known by `subject` from then on. Names are ASCII: what becomes one by small letters only, such
    as the sign of the kelvin, is another's address.
    """
    if not tenants.proper(tenant) or not tenants.active(tx, tenant):
        return None
    row = store.of_subject(tx, tenant, subject)
    if row is None and email.isascii():
        row = store.named(tx, tenant, email.lower())
        if row is None or row["subject"] is not None:
            return None
        store.change(tx, tenant, row["id"], subject=subject)
    return _active(row)


def by_id(tx: Connection, tenant: str, identifier: str, *, lock: bool = False) -> Any:
    """The row of a member who may be signed in, or None; with `lock` theirs until `tx` ends."""
    return _active(store.get(tx, tenant, identifier, lock=lock))


def seen(tx: Connection, tenant: str, identifier: str) -> None:
    """Remember that a member signed in now."""
    store.change(tx, tenant, identifier, last_seen=time.time())


def forget_reach(tx: Connection, tenant: str) -> None:
    """Let no member act for a tenant that is no more: whoever has its name next is another."""
    for row in store.listing(tx, DEFAULT_TENANT):
        if tenant in row["tenants"]:
            left = [each for each in row["tenants"] if each != tenant]
            store.change(tx, DEFAULT_TENANT, row["id"], tenants=left)


def has_role(tx: Connection, tenant: str, role: str) -> bool:
    """Whether a member has a role."""
    return any(row["role"] == role for row in store.listing(tx, tenant))


def of_role(tx: Connection, tenant: str, role: str) -> list[str]:
    """Ids of the members who have a role."""
    return [row["id"] for row in store.listing(tx, tenant) if row["role"] == role]


def _active(row: Any) -> Any:
    return row if row is not None and row["status"] == "active" else None


def _check_last(tx: Connection, row: Any) -> None:
    """Raise TapsterError(conflict) if nobody but this member is an owner who may sign in.

    Two owners who are taken away at the same moment wait for one another.
    """
    tenant, name = row["tenant"], row["name"]
    if row["role"] != OWNER or row["status"] != "active" or erasures.ending(tx, tenant) is not None:
        return
    if store.locked(tx, tenant, OWNER) == [row["id"]]:
        raise TapsterError(
            "conflict",
            f"{name} is the last owner of {tenant}",
            hint="make somebody else an owner first",
        )


def _check_reach(tx: Connection, who: Principal, reach: Sequence[str]) -> None:
    if reach and (who.tenant != DEFAULT_TENANT or len(reach) > _MOST):
        raise TapsterError(
            "forbidden", "only the installation's own members can act for tenants", field="tenants"
        )
    roles.check_reach(who, reach)
    for each in reach:
        if each != "*":
            tenants.show(tx, each)


def _row(tx: Connection, tenant: str, name: str) -> Any:
    row = store.named(tx, tenant, name) or store.get(tx, tenant, name)
    if row is None:
        raise TapsterError(
            "not_found", f"there is no member {name[:100]!r}", hint="see `tapster members list`"
        )
    return row


def _member(row: Any) -> Member:
    return Member(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        role=row["role"],
        tenants=list(row["tenants"]),
        status=row["status"],
        password=row["password"] is not None,
        created=row["created"],
        last_seen=row["last_seen"],
    )
