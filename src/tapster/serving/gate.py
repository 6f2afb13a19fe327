"""Who may call: a bearer key to the grant the plan holds for it, or to one refusal for all."""

import hashlib
import time
from collections.abc import Iterable
from typing import Final

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.plan import KeyGrant

PREDICT: Final = "predict"
METRICS: Final = "metrics:read"
MANAGE: Final = "endpoints:write"
UNAUTHENTICATED: Final = 401
FORBIDDEN: Final = 403
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

    What `METRICS` shows is of the whole installation, every tenant's names and requests among it,
    so only keys of the tenant that runs the installation have that right.
    """

    __slots__ = ("_rights", "expires", "key", "series", "tenant")

    def __init__(self, grant: KeyGrant) -> None:
        held = frozenset(grant.rights)
        self.key = grant.id
        self.tenant = grant.tenant
        self.expires = grant.expires
        self._rights = frozenset(
            right
            for right, enough in _ENOUGH.items()
            if held & enough and (right != METRICS or grant.tenant == DEFAULT_TENANT)
        )
        # Where the counters of this key lie, by endpoint id; filled at first use.
        self.series: dict[str, int] = {}

    def may(self, right: str) -> bool:
        """Whether `PREDICT`, `METRICS` or `MANAGE` is held."""
        return right in self._rights


class Gate:
    """The keys of the plan in force. `generation` grows when they change, to empty caches."""

    def __init__(self, no_auth: bool) -> None:
        self.generation = 0
        self._everybody = Pass(_ANYBODY) if no_auth else None
        self._passes: dict[str, Pass] = {}
        self._grants: dict[str, KeyGrant] = {}

    def apply(self, keys: Iterable[KeyGrant]) -> None:
        """Make these the only keys; a grant that has not changed keeps its pass."""
        grants = {grant.digest: grant for grant in keys}
        self._passes = {
            digest: self._passes[digest] if self._grants.get(digest) == grant else Pass(grant)
            for digest, grant in grants.items()
        }
        self._grants = grants
        self.generation += 1

    def admit(self, header: bytes) -> Pass | None:
        """The pass of an `Authorization` header's value; None for everything not valid now.

        Looked up by digest, so the time taken says nothing about any stored key.
        """
        if self._everybody is not None:
            return self._everybody
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > MAX_KEY:
            return None
        found = self._passes.get(hashlib.sha256(key.strip(b" ")).hexdigest())
        if found is not None and found.expires is not None and found.expires <= time.time():
            return None
        return found
