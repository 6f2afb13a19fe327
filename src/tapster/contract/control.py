"""The control plane's nouns, as the API, the client and the services pass them about.

Times are seconds since 1970-01-01 UTC. Digests are SHA-256 in hex.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

DEFAULT_TENANT: Final = "default"
# Rights over the whole installation: they count only in the tenant that runs it.
INSTALLATION: Final = frozenset({"metrics:read", "tenants:read", "tenants:write"})
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: Final[frozenset[str]] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Principal:
    """Who is asking: a tenant's key or member, and the rights that carries (`*` is every right).

    `home` is the tenant that it belongs to, when that is not the one it acts for; `tenants` are
    those it may act for besides its own, `*` for all. `endpoints` are the only names that a key is
    for, empty for all. `member` (id) is who signed in, if somebody did; `name` what people call
    the key or the member.
    """

    tenant: str
    key_id: str
    rights: frozenset[str]
    home: str = ""
    tenants: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    member: str = ""
    name: str = ""

    def may(self, right: str) -> bool:
        """Whether the right is held; `area:*` holds every verb of an area."""
        if right in INSTALLATION and self.tenant != DEFAULT_TENANT:
            return False
        area = right.partition(":")[0]
        return bool(self.rights & {"*", right, f"{area}:*"})


@dataclass(frozen=True)
class Job:
    """A durable piece of work. `progress` is 0..1; `error` has the parts of a TapsterError."""

    id: str
    tenant: str
    kind: str
    status: JobStatus
    spec: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    time_limit: float | None
    memory_limit: int | None
    progress: float
    phase: str
    message: str
    created: float
    started: float | None
    finished: float | None
    result: dict[str, Any] | None
    error: dict[str, str] | None
    cancel_requested: bool = False
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetVersion:
    """An immutable table. `columns` holds {"name", "type"} in order."""

    name: str
    version: int
    digest: str
    rows: int
    bytes: int
    columns: list[dict[str, Any]]
    source: dict[str, Any]
    parents: list[dict[str, Any]]
    created: float
    job: str = ""


@dataclass(frozen=True)
class Split:
    """A recorded division of a version's rows into train, validation and test."""

    name: str
    dataset: str
    version: int
    kind: str
    seed: int
    fractions: list[float]
    column: str
    rows: list[int]
    created: float


@dataclass(frozen=True)
class ModelVersion:
    """A registered package and what is known of it.

    `unvetted` says why it runs isolated, in a process of its own; empty if it need not. `shared`
    are the tenants that the model is shared with, `*` for all. Of another tenant's, `owner` is that
    tenant, `model` what the caller calls it, and nothing is told of what it was made from.
    """

    model: str
    version: int
    digest: str
    task: str
    runtime: str
    bytes: int
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    signature: dict[str, Any]
    signer: str
    aliases: list[str]
    description: str
    tags: dict[str, str]
    created: float
    job: str = ""
    unvetted: list[str] = field(default_factory=list)
    owner: str = ""
    shared: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Endpoint:
    """A name that callers use. `status` is loading, live, failed or idle (nothing deployed yet).

    `serving`, `pending` and `previous` are None, or {"model", "version", "alias", "digest"} of the
    version with the largest share, "kind" (split or ensemble) and "variants": all of them, each
    with "weight" (percent; a factor in an ensemble) and "shadow". `options` are those in force,
    `rollout` is the canary that is under way or was last, `traffic` has what each version has
    answered: requests, errors, p50, p95 and p99 (seconds), and a shadow's comparisons. `shared`
    are the tenants that it is shared with, `*` for all; `logging` is what of its payloads is
    written down, None for nothing. Of another tenant's, `name` is what the
    caller calls it, and there is no more to see than that.
    """

    name: str
    tenant: str
    status: str
    serving: dict[str, Any] | None
    pending: dict[str, Any] | None
    previous: dict[str, Any] | None
    error: dict[str, str] | None
    created: float
    updated: float
    usage: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] | None = None
    traffic: list[dict[str, Any]] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    logging: dict[str, Any] | None = None


@dataclass(frozen=True)
class Tenant:
    """Somebody with data, models, keys and bills of its own. `status`: active or suspended.

    `weight` is its share when several wait for a model: of one with 2, twice as many rows go first.
    """

    name: str
    title: str
    status: str
    created: float
    weight: float = 1.0


@dataclass(frozen=True)
class Erasure:
    """The end of a tenant. `status`: running or ended, and then `receipt` says what was destroyed.

    The receipt's `signature` (Ed25519, hex, by `public_key`) is over its other members as JSON
    with sorted keys and no spaces.
    """

    id: str
    tenant: str
    status: str
    began: float
    ended: float | None
    receipt: dict[str, Any] | None


@dataclass(frozen=True)
class Role:
    """A set of rights with a name; `custom` if a tenant made it."""

    name: str
    rights: list[str]
    description: str
    custom: bool


@dataclass(frozen=True)
class Member:
    """A person in a tenant. `status`: active or suspended; `password`: whether there is one.

    `tenants` are those that a member of the installation's tenant may act for, `*` for all.
    """

    id: str
    tenant: str
    name: str
    role: str
    tenants: list[str]
    status: str
    password: bool
    created: float
    last_seen: float | None


@dataclass(frozen=True)
class Session:
    """A member signed in: `how` (password or oidc), from which address, until when.

    `token` is shown once, to who signs in.
    """

    id: str
    tenant: str
    member: str
    name: str
    how: str
    address: str
    created: float
    expires: float
    last_used: float | None = None
    token: str = ""


@dataclass(frozen=True)
class Key:
    """An API key without its secret: `prefix` is how that begins, and `key` all of it, shown once.

    It has the rights of `role`, if it has one, else `rights`. `endpoints` are the only names that
    it is for, empty for all; `tenants` those that it may act for, `*` for all. `status`: active,
    expired or revoked. Until `overlap` its former secret is valid too.
    """

    id: str
    tenant: str
    name: str
    prefix: str
    role: str
    rights: list[str]
    endpoints: list[str]
    tenants: list[str]
    status: str
    made_by: str
    created: float
    expires: float | None
    last_used: float | None
    overlap: float | None = None
    key: str = ""
