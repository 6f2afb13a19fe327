"""Quotas that the control plane keeps itself: storage, training time, jobs, models.

The service that owns the thing asks here, in the transaction that makes it: whoever asks holds the
limit until that transaction ends, so that two cannot both take the last of it.
"""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.contract.usage import Metric
from tapster.tenancy.limits import spans, store, units
from tapster.tenancy.limits.store import Row

# (tx, tenant) -> units that the tenant uses now.
Measure = Callable[[Connection, str], int]
_NANO: Final = 10**9
_HINTS: Final[dict[str, str]] = {
    "storage": "delete datasets or model versions that nobody needs",
    "jobs": "wait until a job has ended, or cancel one",
    "models": "delete an endpoint, or deploy in place of a version",
    "training": "give a smaller --time-limit, or wait for a training or the period to end",
}


def check(
    tx: Connection,
    tenant: str,
    metric: Metric,
    used: Callable[[], int],
    more: int = 1,
) -> None:
    """Raise TapsterError(exhausted), naming the limit, if `more` units do not fit beside `used`.

    `used` is asked only if there is a limit, and after its row is locked.
    """
    limits = store.of_metric(tx, tenant, metric)
    if not limits:
        return
    now = used()
    for limit in limits:
        if now + more > limit.amount:
            raise refusal(limit, now, more)


def refusal(limit: Row, used: int, more: int, *, resets: float = 0.0) -> TapsterError:
    """The refusal of `more` that names a limit and what is used of it.

    `resets`: seconds until the limit's period ends.
    """
    name = units.name_of(limit.metric)
    amount = units.spelled(limit.metric, limit.amount, limit.period)
    return TapsterError(
        "exhausted",
        f"tenant {limit.tenant} has reached its limit of {name}: "
        f"{units.number(limit.metric, used)} of {amount} are used, "
        f"and this takes {units.number(limit.metric, more)} more",
        hint=_HINTS.get(limit.metric, "see `tapster limits show`"),
        field=name,
        retry_after=resets,
    )


# -- training time: set aside by a job's time limit when it is submitted, settled when it ends


def allowance(tx: Connection, tenant: str, least: float, most: float) -> float | None:
    """Seconds of job time that a new training may take, at most `most`; None without a limit.

    Raises TapsterError(exhausted), naming the limit, if that is not at least `least`.
    """
    granted: float | None = None
    for limit in store.of_metric(tx, tenant, "training"):
        period = spans.span(limit.period, spans.today())
        taken = sum(store.trained(tx, tenant, period.first, period.last))
        left = (limit.amount - taken) / _NANO
        if left < least:
            raise refusal(limit, taken, int(least * _NANO), resets=spans.until(period.end))
        granted = min(left, most if granted is None else granted)
    return granted


def reserve(tx: Connection, tenant: str, job: str, seconds: float | None) -> None:
    """Set a training job's time aside; its use is added up whether or not there is a limit."""
    store.reserve(tx, tenant, job, spans.today(), int((seconds or 0.0) * _NANO))


def spend(tx: Connection, tenant: str, job: str, seconds: float, *, ended: bool) -> float | None:
    """Count what an attempt of a job took; seconds that it may yet take, None for any number.

    A job that nothing was set aside for, such as an import, is not counted. Never counts more than
    was set aside: the job is stopped there.
    """
    held = store.reservation(tx, tenant, job)
    if held is None:
        return None
    used = held.used + max(0, int(seconds * _NANO))
    if held.reserved:
        used = min(used, held.reserved)
    store.use(tx, tenant, job, used, ended)
    return (held.reserved - used) / _NANO if held.reserved else None
