"""What the control plane tells the data plane (a plan, down) and hears from it (a report, up)."""

import msgspec


class KeyGrant(msgspec.Struct, frozen=True):
    """An API key as the data plane knows it: the SHA-256 (hex) of the key, never the key."""

    id: str
    digest: str
    tenant: str
    rights: tuple[str, ...]
    expires: float | None = None


class PackageRef(msgspec.Struct, frozen=True):
    """A package to hold in memory: its digest and the blob key it lies under."""

    digest: str
    key: str


class Variant(msgspec.Struct, frozen=True):
    """A version of a model behind an endpoint, and its share of the traffic (0..1)."""

    model: str
    version: int
    package: str
    weight: float = 1.0


class EndpointPlan(msgspec.Struct, frozen=True):
    """An endpoint that takes traffic; `labels` are the model's aliases (alias -> version).

    `deadline` is how long a request may wait and run, in seconds.
    """

    id: str
    tenant: str
    name: str
    variants: tuple[Variant, ...]
    labels: dict[str, int] = {}
    deadline: float = 30.0


class ServingPlan(msgspec.Struct, frozen=True):
    """Everything a data plane needs to know. `number` grows with every change.

    `packages` lists all that must be loaded: those that endpoints name and those being prepared.
    `signers` are the Ed25519 public keys (hex) whose signatures are trusted.
    """

    number: int
    endpoints: tuple[EndpointPlan, ...] = ()
    packages: tuple[PackageRef, ...] = ()
    keys: tuple[KeyGrant, ...] = ()
    signers: tuple[str, ...] = ()


class PackageState(msgspec.Struct, frozen=True):
    """What became of a package in one worker: `state` is loading, ready or failed."""

    digest: str
    state: str
    error: str = ""


class WorkerState(msgspec.Struct, frozen=True):
    """One worker's view: which plan it has applied, and its packages."""

    worker: int
    pid: int
    plan: int
    packages: tuple[PackageState, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """Totals since the machine's counters were made (never since the last report)."""

    endpoint: str
    key: str
    requests: int
    rows: int
    errors: int


class UsageBatch(msgspec.Struct, frozen=True):
    """What an agent reports about its machine."""

    agent: str
    workers: tuple[WorkerState, ...]
    usage: tuple[Usage, ...] = ()
