"""Who asks, for tests of rules."""

from collections.abc import Iterable

from tapster.contract.control import DEFAULT_TENANT, Principal
from tapster.tenancy.rights import ROLES


def who(
    role: str = "owner",
    tenant: str = DEFAULT_TENANT,
    *,
    tenants: Iterable[str] = (),
    member: str = "",
) -> Principal:
    """Somebody with a role that comes along."""
    return Principal(tenant, f"key_{role}", ROLES[role], tenants=frozenset(tenants), member=member)


def holder(*rights: str, tenant: str = DEFAULT_TENANT) -> Principal:
    """Somebody with these rights."""
    return Principal(tenant, "key_of_rights", frozenset(rights))
