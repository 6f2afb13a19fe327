"""What the control plane tells the data plane (a plan, down) and hears from it (a report, up)."""

from typing import Final, Literal

import msgspec

from tapster.contract.usage import Metric, Period, UsageReport

# Upper bounds (seconds) of the histograms of latencies; one more bucket is beyond the last.
LATENCY_SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
)  # fmt: skip


class KeyGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key as the data plane knows it: the SHA-256 (hex) of the key, never the key.

    `endpoints` are the names that the key is for, as its holder calls them; empty for all.
    """

    id: str
    digest: str
    tenant: str
    rights: tuple[str, ...]
    expires: float | None = None
    endpoints: tuple[str, ...] = ()


class LimitGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A limit of a tenant: `amount` units (see `usage.UNITS`) of `metric` a `period`.

    `endpoint` and `key` (ids) narrow it to what is asked of that endpoint, or with that key. Of a
    rate `burst` is how many requests may come at once.
    """

    id: str
    metric: Metric
    amount: int
    period: Period = ""
    endpoint: str = ""
    key: str = ""
    burst: int = 0


class TenantGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant that is not as all others are: its weight when many wait, whether it is suspended,
    and its limits.
    """

    tenant: str
    weight: float = 1.0
    suspended: bool = False
    limits: tuple[LimitGrant, ...] = ()


class Price(msgspec.Struct, frozen=True):
    """What a call costs at most, in billionths of the currency: of `compute` a second of it.

    `tenant` is who calls, "" whoever has no price of its own. `id` is what `Line.price` names.
    """

    tenant: str = ""
    request: int = 0
    row: int = 0
    token: int = 0
    compute: int = 0
    id: str = ""


class PackageRef(msgspec.Struct, frozen=True):
    """A package to hold in memory: its digest and the blob key it lies under.

    `secret` is its tenant's data key as the master key has wrapped it, "" if nothing is encrypted;
    `former` are those that parts of it may still be sealed with.
    """

    digest: str
    key: str
    secret: str = ""
    former: tuple[str, ...] = ()


class Variant(msgspec.Struct, frozen=True):
    """A version of a model behind an endpoint, and its share of the traffic (0..1).

    A `shadow` is sent copies of requests; nobody is answered from it. A `canary` is asked for its
    recorded answers again whenever its share changes.
    """

    model: str
    version: int
    package: str
    weight: float = 1.0
    shadow: bool = False
    canary: bool = False


class Options(msgspec.Struct, frozen=True):
    """What an endpoint may ask of those who serve it.

    `deadline`: seconds a request may wait and run. `queue`: requests of a worker that may wait.
    `concurrency`: runs of the model at once in a worker. `window`: seconds that a request may wait
    for company, None when the worker chooses. `cache`: seconds for which an equal request is given
    the same answer, 0 for never. `idle`: seconds without a request after which the model leaves
    the memory, 0 for never. `memory`: bytes that a model in a process of its own may use, 0 for
    the installation's setting.
    """

    deadline: float = 30.0
    queue: int = 1024
    concurrency: int = 1
    window: float | None = None
    cache: float = 0.0
    idle: float = 0.0
    memory: int = 0


class PayloadRules(msgspec.Struct, frozen=True):
    """What of an endpoint's requests is written down, and what is taken out of it before.

    `sample`: the share of requests (0..1). `patterns` are names of `core.redaction.PATTERNS`,
    `expressions` one's own. Columns, or tensors, in `drop` are left out, of those in `mask` the
    values, and those in `hash` are told from others only, by a hash keyed with `salt` (hex). A
    payload takes at most `size` bytes. Of other tenants' requests only those of `consumers` are
    written down. `secret` is the owner's data key as the master key has wrapped it.
    """

    sample: float
    patterns: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    size: int = 16384
    salt: str = ""
    consumers: tuple[str, ...] = ()
    secret: str = ""


class EndpointPlan(msgspec.Struct, frozen=True):
    """An endpoint that takes traffic; `labels` are the model's aliases (alias -> version).

    Of a `split`, each request is answered by one variant, drawn by weight; of an `ensemble`, by
    the weighted mean of all, under the version `version`, which grows with every new set of them.
    `shared` are the tenants that it is published to, `*` for all. `payloads` says what is written
    down of its requests, None for nothing. `halted` is why it answers nobody and has no variants,
    "" when it is as usual.
    """

    id: str
    tenant: str
    name: str
    variants: tuple[Variant, ...]
    labels: dict[str, int] = {}
    kind: Literal["split", "ensemble"] = "split"
    options: Options = Options()
    version: int = 0
    shared: tuple[str, ...] = ()
    prices: tuple[Price, ...] = ()
    payloads: PayloadRules | None = None
    halted: str = ""


class Need(msgspec.Struct, frozen=True):
    """The packages (digests) that an endpoint (id) is served by now, or is to be next."""

    endpoint: str
    packages: tuple[str, ...]


class ServingPlan(msgspec.Struct, frozen=True):
    """Everything a data plane needs to know. `number` grows with every change.

    `packages` lists all that must be loaded: those that endpoints name and those being prepared.
    `signers` are the Ed25519 public keys (hex) whose signatures are trusted.
    `mark` tells histories apart that have the same number, such as before and after a backup was
    restored. `needs` says which endpoint each package is for; a package that is for none of them
    stays until the next whole plan.
    """

    number: int
    endpoints: tuple[EndpointPlan, ...] = ()
    packages: tuple[PackageRef, ...] = ()
    keys: tuple[KeyGrant, ...] = ()
    signers: tuple[str, ...] = ()
    tenants: tuple[TenantGrant, ...] = ()
    mark: str = ""
    needs: tuple[Need, ...] = ()


class PlanDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes of the plan `after`, whose mark is `base`, the plan `number`, with `mark`.

    What is named replaces what has the same id (a tenant: the same name); `gone_` are ids of what
    is there no more, and names of tenants that are as all others are. `packages` and `signers`
    come to those there are; a package that no endpoint needs any more goes.
    """

    after: int
    base: str
    number: int
    mark: str
    keys: tuple[KeyGrant, ...] = ()
    gone_keys: tuple[str, ...] = ()
    tenants: tuple[TenantGrant, ...] = ()
    gone_tenants: tuple[str, ...] = ()
    endpoints: tuple[EndpointPlan, ...] = ()
    gone_endpoints: tuple[str, ...] = ()
    packages: tuple[PackageRef, ...] = ()
    needs: tuple[Need, ...] = ()
    signers: tuple[str, ...] = ()


class PackageState(msgspec.Struct, frozen=True):
    """What became of a package in one worker: `state` is loading, ready, cold or failed.

    A cold one has been loaded and checked, and comes back into the memory when a request needs it.
    """

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


class VariantTotals(msgspec.Struct, frozen=True):
    """How a version has answered for an endpoint, since the machine's counters were made.

    `version` is `3`; `shadow:3` for what no caller waited for; `member:A:3` for version 3 of model
    A as a member of an ensemble. `buckets` counts answers by their time, from arrival to answer,
    within `LATENCY_SECONDS` and beyond the last. `same`, `different`, `broken` and `dropped` count
    a shadow's copies: answered as the caller was, otherwise, with an error, and not run because the
    worker was busy. `golden_same` and `golden_different` count a canary's recorded answers.
    """

    tenant: str
    endpoint: str
    version: str
    ok: int
    client_errors: int
    server_errors: int
    latency_ns: int
    buckets: tuple[int, ...]
    same: int = 0
    different: int = 0
    broken: int = 0
    dropped: int = 0
    golden_same: int = 0
    golden_different: int = 0


class UsageBatch(msgspec.Struct, frozen=True):
    """What an agent reports about its machine, which `agent` is the random id of; `ledger` is what
    it has counted for bills."""

    agent: str
    workers: tuple[WorkerState, ...]
    usage: tuple[Usage, ...] = ()
    variants: tuple[VariantTotals, ...] = ()
    ledger: UsageReport | None = None
