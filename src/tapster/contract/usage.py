"""What the data plane has used, and may use: counts up, grants down.

Amounts are whole numbers in the units of `UNITS`. Days are UTC dates such as `2026-11-21`.
"""

from typing import Final, Literal

import msgspec

Metric = Literal[
    "requests", "rows", "tokens", "compute", "money", "rate", "concurrency",
    "storage", "training", "jobs", "models",
]  # fmt: skip
Period = Literal["", "day", "month"]

# What one unit of a metric is. Of a rate it is a thousandth of a request a second.
UNITS: Final[dict[str, str]] = {
    "requests": "good answers",
    "rows": "rows",
    "tokens": "tokens",
    "compute": "nanoseconds of model time",
    "money": "billionths of the currency",
    "rate": "thousandths of a request a second",
    "concurrency": "requests at once",
    "storage": "bytes",
    "training": "nanoseconds of job time",
    "jobs": "jobs at once",
    "models": "versions behind endpoints",
}
# A limit allows no more units, and no more are asked for.
LARGEST: Final = 1 << 62
# What a line names that was asked no price.
FREE: Final = "free"
# Metrics that the data plane spends from grants, and those that it holds to by itself.
BUDGETED: Final = frozenset({"requests", "rows", "tokens", "compute", "money"})
HELD: Final = frozenset({"rate", "concurrency"})


class Line(msgspec.Struct, frozen=True):
    """What is counted together: who asked (`tenant`, by `key`) whose endpoint (`owner`).

    `price` is the id of the price that was reserved with, `FREE` where there was none, "" where the
    data plane does not say.
    """

    day: str
    tenant: str
    key: str
    owner: str
    endpoint: str
    name: str
    model: str
    version: str
    price: str = ""


class Count(msgspec.Struct, frozen=True):
    """Totals of record `record` of a journal since the record was made, never since a report.

    `requests` counts good answers, `cached` those among them that no model ran for.
    """

    record: int
    line: Line
    requests: int = 0
    errors: int = 0
    rows: int = 0
    tokens: int = 0
    compute: int = 0
    cached: int = 0


class Segment(msgspec.Struct, frozen=True):
    """A journal of one worker and day; once `sealed`, no count in it grows any more.

    `counts` are those that have grown since they were last acknowledged; with `sealed`, all.
    """

    id: str
    day: str
    sealed: bool
    counts: tuple[Count, ...] = ()


class UsageReport(msgspec.Struct, frozen=True):
    """What a machine has counted. `open_days`: those of which a segment may still be to come.

    `mark` is of the ledger as it was after the last report that the machine knows to be in it.
    """

    machine: str
    segments: tuple[Segment, ...] = ()
    open_days: tuple[str, ...] = ()
    mark: str = ""


class UsageReceipt(msgspec.Struct, frozen=True):
    """The ids of sealed segments that are in the ledger whole: their files may go.

    `mark` is of the ledger with this report. `again`: it was not the ledger that the machine knew,
    but one put back from a backup, say; all that is still there is to be told once more.
    """

    taken: tuple[str, ...] = ()
    mark: str = ""
    again: bool = False


class Ask(msgspec.Struct, frozen=True):
    """A machine wants `total` units of a limit granted, counted from the beginning of `day`."""

    limit: str
    day: str
    total: int


class Grant(msgspec.Struct, frozen=True):
    """What a machine may spend of a limit in all on `day`: `total` units, never fewer than before.

    `spent` says that the ledger has no more to give now; `resets` is when its period ends (seconds
    since 1970), `left` what the ledger itself has left to give to anybody.
    """

    limit: str
    day: str
    total: int
    spent: bool = False
    resets: float = 0.0
    left: int = 0


class GrantRequest(msgspec.Struct, frozen=True):
    """What a machine asks of the ledger."""

    machine: str
    asks: tuple[Ask, ...]


class GrantAnswer(msgspec.Struct, frozen=True):
    """An answer to each ask whose limit exists."""

    grants: tuple[Grant, ...]
