"""Encryption at rest as the installation's own people see it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rekeying:
    """A tenant is given another data key (`key` is its id). `status`: running or ended.

    Of `objects` that lie sealed, `resealed` are under the new key; once all are, the former one is
    destroyed. `problem`: what keeps one from being sealed anew; it is tried again.
    """

    id: str
    tenant: str
    status: str
    began: float
    ended: float | None
    key: str
    objects: int
    resealed: int
    problem: str
