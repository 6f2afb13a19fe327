"""A limit as the control API, the client and the services pass it about."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """How much a tenant may use of something: `amount` of `metric` a `period` (day, month or "").

    Of requests, rows and tokens an amount is a number, of compute and training seconds, of spend
    the currency, of rate requests a second, of storage bytes. `endpoint` (as the tenant calls it)
    and `key` narrow it. `set_by` is the tenant that made it.

    `used` is what is known to be used, `held` what machines have been given besides and may yet
    use, `left` the rest, `resets` the end of the period (seconds since 1970); None where nothing
    is added up.
    """

    id: str
    tenant: str
    metric: str
    period: str
    amount: float
    burst: int
    endpoint: str
    key: str
    set_by: str
    created: float
    updated: float
    used: float | None = None
    held: float | None = None
    left: float | None = None
    resets: float | None = None
