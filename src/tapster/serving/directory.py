"""Which endpoint a tenant means by a name, and which endpoints it sees.

A name means the tenant's own endpoint, else the one that is shared with it under that name;
`owner--name` always means the owner's. Where several owners share one name, it means none of them.
"""

from collections.abc import Iterator
from typing import Final

from tapster.serving.endpoints import Endpoint

ALL: Final = "*"
BETWEEN: Final = "--"


class Directory:
    """Endpoints by owner and name, and whom they are shared with."""

    def __init__(self) -> None:
        self._own: dict[str, dict[str, Endpoint]] = {}
        # By name, then by owner. A shared endpoint's name has no `--` in it.
        self._shared: dict[str, dict[str, frozenset[str]]] = {}

    def put(self, endpoint: Endpoint, shared: tuple[str, ...]) -> bool:
        """Add an endpoint, or share it otherwise; whether anything is different now."""
        owner, name = endpoint.plan.tenant, endpoint.plan.name
        named = self._own.setdefault(owner, {})
        consumers = frozenset(shared) if BETWEEN not in name else frozenset()
        before = self._shared.get(name, {}).get(owner, frozenset())
        if named.get(name) is endpoint and consumers == before:
            return False
        named[name] = endpoint
        self._share(owner, name, consumers)
        return True

    def drop(self, owner: str, name: str) -> None:
        """Forget an endpoint."""
        named = self._own.get(owner, {})
        named.pop(name, None)
        if not named:
            self._own.pop(owner, None)
        self._share(owner, name, frozenset())

    def own(self, owner: str, name: str) -> Endpoint | None:
        """A tenant's own endpoint."""
        return self._own.get(owner, {}).get(name)

    def find(self, tenant: str, name: str) -> Endpoint | None:
        """What a tenant means by a name."""
        found = self._own.get(tenant, {}).get(name)
        if found is not None:
            return found
        owner, between, bare = name.rpartition(BETWEEN)
        if between:
            visible = owner == tenant or self._sees(tenant, bare, owner)
            return self.own(owner, bare) if visible else None
        owners = self._owners(tenant, name)
        return self.own(owners[0], name) if len(owners) == 1 else None

    def instead(self, tenant: str, name: str) -> list[str]:
        """What to call those that share a name which therefore means none of them."""
        owners = self._owners(tenant, name)
        return [f"{owner}{BETWEEN}{name}" for owner in owners] if len(owners) > 1 else []

    def visible(self, tenant: str) -> list[tuple[str, Endpoint]]:
        """The endpoints that a tenant may call, by the names that it calls them."""
        own = self._own.get(tenant, {})
        found = dict(own)
        for name in self._shared:
            owners = self._owners(tenant, name)
            alone = len(owners) == 1 and name not in own
            for owner in owners:
                endpoint = self.own(owner, name)
                if endpoint is not None:
                    found.setdefault(name if alone else f"{owner}{BETWEEN}{name}", endpoint)
        return sorted(found.items())

    def mine(self, tenant: str) -> list[Endpoint]:
        """A tenant's own endpoints, by name."""
        return [endpoint for _, endpoint in sorted(self._own.get(tenant, {}).items())]

    def __iter__(self) -> Iterator[Endpoint]:
        for named in self._own.values():
            yield from named.values()

    def _owners(self, tenant: str, name: str) -> list[str]:
        """Who shares an endpoint of this name with a tenant."""
        shared = self._shared.get(name, {})
        return sorted(owner for owner in shared if self._sees(tenant, name, owner))

    def _sees(self, tenant: str, name: str, owner: str) -> bool:
        consumers = self._shared.get(name, {}).get(owner, frozenset())
        return owner != tenant and (tenant in consumers or ALL in consumers)

    def _share(self, owner: str, name: str, consumers: frozenset[str]) -> None:
        owners = self._shared.setdefault(name, {})
        owners.pop(owner, None)
        if consumers:
            owners[owner] = consumers
        if not owners:
            self._shared.pop(name, None)
