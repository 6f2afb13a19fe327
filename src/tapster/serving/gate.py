"""Who may call: a bearer key to the grant the plan holds for it; all others hear the same."""

import hashlib
import time
from collections.abc import Collection, Iterable
from typing import Any, Final

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.errors import TapsterError
from tapster.contract.plan import KeyGrant, PlanDelta, ServingPlan, TenantGrant
from tapster.contract.snapshots import Snapshot, pack, unpack

PREDICT: Final = "predict"
METRICS: Final = "metrics:read"
MANAGE: Final = "endpoints:write"
REFUSAL: Final = "a key with the right to do this is needed"
REFUSAL_HINT: Final = "send `Authorization: Bearer KEY` with a valid key"
MAX_KEY: Final = 512

_ANYBODY: Final = KeyGrant(id="anonymous", digest="", tenant=DEFAULT_TENANT, rights=("*",))
_ENOUGH: Final[dict[str, frozenset[str]]] = {
    PREDICT: frozenset({"*", "predict", "predict:*", "predict:write", "predict:read"}),
    METRICS: frozenset({"*", "metrics:*", "metrics:read"}),
    MANAGE: frozenset({"*", "endpoints:*", "endpoints:write"}),
}


class Pass:
    """A grant worked out once: what its holder may do, until when (seconds since 1970).

    `standing` is how its tenant stands; when that or the grant changes, the pass has `ended` and
    another one is made. While the tenant is suspended it may do nothing. What `METRICS` shows is of
    the whole installation, every tenant's names and requests among it, so only keys of the tenant
    that runs the installation have that right.
    """

    __slots__ = (
        "_rights", "accounts", "ended", "endpoints", "expires", "grant", "key", "standing",
        "tenant",
    )  # fmt: skip

    def __init__(self, grant: KeyGrant, standing: TenantGrant) -> None:
        held = frozenset(() if standing.suspended else grant.rights)
        self.grant = grant
        self.standing = standing
        self.ended = False
        self.key = grant.id
        self.tenant = grant.tenant
        self.expires = grant.expires
        # The names that the key is for, as its holder calls them; empty for all.
        self.endpoints = frozenset(grant.endpoints)
        self._rights = frozenset(
            right
            for right, enough in _ENOUGH.items()
            if held & enough and (right != METRICS or grant.tenant == DEFAULT_TENANT)
        )
        # At whose expense requests are counted, by endpoint id, model and version; see `accounts`.
        self.accounts: dict[tuple[str, str, str], Any] = {}

    def may(self, right: str) -> bool:
        """Whether `PREDICT`, `METRICS` or `MANAGE` is held."""
        return right in self._rights

    def names(self, endpoint: str) -> bool:
        """Whether the key is for what its holder calls so."""
        return not self.endpoints or endpoint in self.endpoints


def denial(holder: Pass | None) -> TapsterError:
    """What whoever may not do something is told; who has no valid key, always the same."""
    if holder is None:
        return TapsterError("unauthenticated", REFUSAL, hint=REFUSAL_HINT)
    if holder.standing.suspended:
        return suspension(holder.tenant)
    return TapsterError("forbidden", REFUSAL, hint=REFUSAL_HINT)


def suspension(tenant: str) -> TapsterError:
    """What callers of a tenant that is suspended are told."""
    return TapsterError(
        "forbidden",
        f"the tenant {tenant} is suspended",
        hint="whoever runs this server can resume it",
    )


class Gate:
    """The keys of the plan in force.

    A pass that was found before holds until it has `ended` or `generation` grows, which it does
    with whole plans only: a change of one key is felt by nobody else.
    """

    def __init__(self, no_auth: bool) -> None:
        self.generation = 0
        # Made at first use, by the key's SHA-256; those of an earlier snapshot, to be looked at.
        self._passes: dict[bytes, Pass] = {}
        self._former: dict[bytes, Pass] = {}
        self._of_tenant: dict[str, set[bytes]] = {}
        self._digests: dict[str, set[bytes]] = {}
        self._snapshot: Snapshot = unpack(pack(ServingPlan(number=-1)))
        self._news = _News()
        self._cut: frozenset[str] = frozenset()
        self._weights: dict[str, float] = {}
        self._everybody = Pass(_ANYBODY, TenantGrant(DEFAULT_TENANT)) if no_auth else None

    def apply(self, keys: Iterable[KeyGrant], tenants: Iterable[TenantGrant] = ()) -> None:
        """Make these the only keys."""
        self.renew(unpack(pack(ServingPlan(number=-1), keys, tenants)))

    def renew(self, snapshot: Snapshot) -> None:
        """Make the snapshot's keys the only ones. What has not changed keeps its pass."""
        self._snapshot = snapshot
        self._news = _News()
        self._weights = {}
        self._former, self._passes = self._passes, {}
        self._of_tenant, self._digests = {}, {}
        self._renew_everybody()
        self.generation += 1

    def change(self, delta: PlanDelta) -> None:
        """Take what a delta says of keys and tenants."""
        # A key that was rotated has a grant for each of its secrets.
        grants: dict[str, list[KeyGrant]] = {key: [] for key in delta.gone_keys}
        for grant in delta.keys:
            grants.setdefault(grant.id, []).append(grant)
        for key, found in grants.items():
            self._replace(key, found)
        for tenant in delta.gone_tenants:
            self._restand(tenant, None)
        for standing in delta.tenants:
            self._restand(standing.tenant, standing)

    def cut(self, keys: Collection[str]) -> None:
        """Let nobody in by the keys with these ids, whatever plans say."""
        self._cut = frozenset(keys)
        for key in keys:
            for digest in list(self._digests.get(key, ())):
                self._end(digest)

    def standing(self, tenant: str) -> TenantGrant:
        """How a tenant stands."""
        found = self._news.tenants.get(tenant)
        if found is None and tenant not in self._news.tenants:
            found = self._snapshot.tenant(tenant)
        return found or TenantGrant(tenant)

    def weight(self, tenant: str) -> float:
        """How much a tenant is served while others wait, in shares of one that is as all are."""
        weight = self._weights.get(tenant)
        if weight is None:
            weight = self._weights[tenant] = self.standing(tenant).weight
        return weight

    def admit(self, header: bytes) -> Pass | None:
        """The pass of an `Authorization` header's value; None for everything not valid now.

        Looked up by digest, so the time taken says nothing about any stored key.
        """
        if self._everybody is not None:
            return self._everybody
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > MAX_KEY:
            return None
        digest = hashlib.sha256(key.strip(b" ")).digest()
        found = self._passes.get(digest) or self._made(digest)
        if found is not None and found.expires is not None and found.expires <= time.time():
            return None
        return found

    def _made(self, digest: bytes) -> Pass | None:
        grant = self._news.keys.get(digest)
        if grant is None:
            grant = self._snapshot.key(digest)
            if grant is not None and grant.id in self._news.changed:
                return None
        if grant is None or grant.id in self._cut:
            return None
        standing = self.standing(grant.tenant)
        found = self._former.pop(digest, None)
        if found is None or (found.grant, found.standing) != (grant, standing):
            found = Pass(grant, standing)
        self._passes[digest] = found
        self._digests.setdefault(grant.id, set()).add(digest)
        self._of_tenant.setdefault(grant.tenant, set()).add(digest)
        return found

    def _end(self, digest: bytes) -> None:
        found = self._passes.pop(digest, None)
        if found is None:
            return
        found.ended = True
        self._of_tenant[found.tenant].discard(digest)
        left = self._digests[found.key]
        left.discard(digest)
        if not left:
            del self._digests[found.key]

    def _replace(self, key: str, grants: list[KeyGrant]) -> None:
        known = {bytes.fromhex(grant.digest): grant for grant in grants}
        self._news.replace(key, known)
        for digest in self._digests.get(key, set()) | known.keys():
            held = self._passes.get(digest)
            if held is not None and held.grant != known.get(digest):
                self._end(digest)

    def _restand(self, tenant: str, standing: TenantGrant | None) -> None:
        before = self.standing(tenant)
        self._news.tenants[tenant] = standing
        self._weights.pop(tenant, None)
        if self.standing(tenant) != before:
            for digest in list(self._of_tenant.get(tenant, ())):
                self._end(digest)
            self._renew_everybody()

    def _renew_everybody(self) -> None:
        """Without keys, everybody stands as the tenant that runs the installation does."""
        standing = self.standing(DEFAULT_TENANT)
        if self._everybody is not None and self._everybody.standing != standing:
            self._everybody.ended = True
            self._everybody = Pass(_ANYBODY, standing)


class _News:
    """What deltas have said since the snapshot: keys by digest, and those that are others or gone
    by id; tenants, None for those that are as all others are."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyGrant] = {}
        self.changed: dict[str, tuple[bytes, ...]] = {}
        self.tenants: dict[str, TenantGrant | None] = {}

    def replace(self, key: str, grants: dict[bytes, KeyGrant]) -> None:
        """Take all the grants of a key, by digest; none for a key that is gone."""
        for digest in self.changed.get(key, ()):
            self.keys.pop(digest, None)
        self.changed[key] = tuple(grants)
        self.keys.update(grants)
