"""Verbs over roles, and the rule that nobody gives a right that they do not hold."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Connection

from tapster.contract.control import Principal, Role
from tapster.contract.errors import TapsterError
from tapster.tenancy.rights import ROLES, covers, known
from tapster.tenancy.roles import store

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
ABOUT: Final = {
    "owner": "everything",
    "admin": "people, keys, limits, and all work",
    "developer": "data, training, models",
    "operator": "endpoints, monitoring",
    "consumer": "asking endpoints",
    "auditor": "reading everything",
}
_DESCRIPTION: Final = 300
_MOST: Final = 200


def rights_of(tx: Connection, tenant: str, role: str) -> frozenset[str]:
    """What a role permits; nothing if there is none of this name."""
    if role in ROLES:
        return ROLES[role]
    found = store.get(tx, tenant, role)
    return frozenset(found.rights if found else ())


def everywhere(tx: Connection) -> dict[tuple[str, str], list[str]]:
    """Rights by tenant and role, of the roles that tenants made."""
    return store.everywhere(tx)


def listing(tx: Connection, tenant: str) -> list[Role]:
    """The roles that come along, then the tenant's own."""
    given = [Role(name, sorted(ROLES[name]), ABOUT[name], custom=False) for name in ROLES]
    return given + store.listing(tx, tenant)


def show(tx: Connection, tenant: str, name: str) -> Role:
    """One role. Raises TapsterError(not_found)."""
    for role in listing(tx, tenant):
        if role.name == name:
            return role
    raise TapsterError(
        "not_found", f"there is no role {name[:100]!r}", hint="see `tapster roles list`"
    )


def put(tx: Connection, who: Principal, name: str, rights: Sequence[str], description: str) -> Role:
    """Make a role, or change it for everybody who has it.

    Raises TapsterError(invalid) for a name or right that cannot be, and (forbidden) unless the
    caller holds every right that it has or had.
    """
    if name in ROLES or not NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{name[:100]!r} cannot be the name of a role",
            hint=f"use small letters, digits and hyphens; not {', '.join(ROLES)}",
            field="name",
        )
    check_rights(rights)
    if len(description) > _DESCRIPTION:
        raise TapsterError("invalid", "the description is too long", field="description")
    former = store.get(tx, who.tenant, name)
    check_held(who, [*rights, *(former.rights if former else ())])
    store.put(tx, who.tenant, name, sorted(set(rights)), description)
    return show(tx, who.tenant, name)


def remove(tx: Connection, tenant: str, name: str) -> None:
    """Delete a role that nobody has. Raises TapsterError(not_found), (conflict) for ours."""
    if name in ROLES:
        raise TapsterError("conflict", f"the role {name} comes along and stays")
    if not store.remove(tx, tenant, name):
        show(tx, tenant, name)


def check_rights(rights: Collection[str]) -> None:
    """Raise TapsterError(invalid) unless these are rights that there are, and a few at least."""
    strange = [right for right in rights if not known(right)]
    if strange:
        raise TapsterError(
            "invalid",
            f"{strange[0][:100]!r} is no right",
            hint="the reference of rights lists them; AREA:* is all of an area",
            field="rights",
        )
    if not 0 < len(rights) <= _MOST:
        raise TapsterError("invalid", "name one right at least", field="rights")


def check_held(who: Principal, rights: Collection[str]) -> None:
    """Raise TapsterError(forbidden) unless the caller holds all of these rights."""
    if not covers(who.rights, rights):
        raise TapsterError(
            "forbidden", "nobody can give or change rights that they do not hold", field="rights"
        )


def check_role(tx: Connection, who: Principal, name: str) -> None:
    """Raise TapsterError(invalid) unless there is such a role, (forbidden) if it permits more

    than the caller may.
    """
    if name not in ROLES and store.get(tx, who.tenant, name) is None:
        raise TapsterError(
            "invalid",
            f"there is no role {name[:100]!r}",
            hint="see `tapster roles list`",
            field="role",
        )
    check_held(who, rights_of(tx, who.tenant, name))


def check_reach(who: Principal, tenants: Collection[str]) -> None:
    """Raise TapsterError unless the caller may act for all of these tenants, and give that on."""
    if tenants and "*" not in who.tenants and not set(tenants) <= who.tenants:
        raise TapsterError(
            "forbidden", "nobody can let others act for a tenant that they may not", field="tenants"
        )
