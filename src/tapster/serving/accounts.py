"""At whose expense a request is counted: one account for each key and version that it calls."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tapster.contract.errors import TapsterError
from tapster.contract.plan import LimitGrant, Price, TenantGrant
from tapster.core.telemetry import logger
from tapster.serving.endpoints import Endpoint, Target
from tapster.serving.gate import Pass
from tapster.serving.journal import Journal, Label, Record
from tapster.serving.limits import Limiter, Meters
from tapster.serving.slots import Region
from tapster.serving.tokens import Count
from tapster.serving.wallet import Wallet

log = logger(__name__)

FREE: Final = Price()


class Account:
    """What a key's requests to one version cost: where they are counted, which limits hold.

    `meters` is None when none do, and requests need no leave. A request with limits, or with
    tokens to be counted, is counted by its `Hold` instead.
    """

    till = None

    __slots__ = (
        "_journal", "_label", "_prices", "_record", "_standing", "_tokens", "meters", "price",
    )  # fmt: skip

    def __init__(self, journal: Journal, label: Label, tokens: Count | None = None) -> None:
        self._journal = journal
        self._label = label
        self._tokens = tokens
        self._record: Record | None = None
        self._standing: object = None
        self._prices: object = None
        self.meters: Meters | None = None
        self.price = FREE

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """See Bill."""
        record = self._record
        if record is None or record.segment.rolled:
            record = self.opened()
        record.served(requests, rows, compute, cached)

    def failed(self) -> None:
        """See Bill. Nobody pays for it: where there is no room, it is answered all the same."""
        with suppress(TapsterError):
            self.opened().failed()

    def opened(self) -> Record:
        """Where it is counted today. Raises TapsterError(unavailable) when there is no room.

        What was let in yesterday, and finds no room today, is counted yesterday.
        """
        record = self._record
        if record is not None and not record.segment.rolled:
            return record
        try:
            self._record = self._journal.record(self._label)
        except TapsterError:
            if record is None or record.segment.sealed:
                raise
            return record
        return self._record

    def asks(self, tenant: str, prices: tuple[Price, ...]) -> bool:
        """Whether its price is that of `prices`: who was let in by another still pays that."""
        return prices is self._prices or self.price == _price(prices, tenant)

    def agree(self, holder: Pass, prices: tuple[Price, ...], limiter: Limiter) -> None:
        """Take over the limits and prices that hold now."""
        if holder.standing is self._standing and prices is self._prices:
            return
        self._prices = prices
        self.price = _price(prices, holder.tenant)
        self._hold_to(holder.standing, limiter)

    def restand(self, standing: TenantGrant, limiter: Limiter) -> None:
        """Take over the limits that hold now, for those who wait; what they pay stays."""
        if standing != self._standing:
            self._hold_to(standing, limiter)

    def _hold_to(self, standing: TenantGrant, limiter: Limiter) -> None:
        self._standing = standing
        chosen = _chosen(standing.limits, self._label)
        self.meters = limiter.meters(chosen, self.price, self._tokens)
        budgets = self.meters.budgets if self.meters is not None else ()
        spent = tuple((limit.id, limit.metric) for limit in budgets)
        label = replace(self._label, budgets=spent, price=self.price.id)
        if label != self._label:
            self._label, self._record = label, None


class Accounts:
    """The accounts of one worker."""

    def __init__(self, journal: Journal, limiter: Limiter) -> None:
        self.journal = journal
        self.limiter = limiter

    def beat(self) -> bool:
        """Called a few times a second: counts on another day once it is one.

        Returns whether heads and repeats of requests seen before must be looked at again.
        """
        journal = self.journal
        rolled = journal.due() and journal.roll()
        journal.settle(time.monotonic())
        self.limiter.beat()
        return rolled

    def find(self, holder: Pass, target: Target) -> Account:
        """The account of a key's requests to a version.

        Raises TapsterError(unavailable) when there is no room to count them.
        """
        account, prices = holder.accounts.get(target.key), target.endpoint.plan.prices
        if account is None or not account.asks(holder.tenant, prices):
            tokens = target.model.tokens
            account = self._add(holder, target.endpoint, target.key, tokens)
        account.agree(holder, prices, self.limiter)
        account.opened()
        return account

    def unserved(self, holder: Pass, endpoint: Endpoint) -> Account:
        """The account of requests to an endpoint that find nothing there."""
        key = (endpoint.plan.id, "", "")
        return holder.accounts.get(key) or self._add(holder, endpoint, key)

    def _add(
        self,
        holder: Pass,
        endpoint: Endpoint,
        key: tuple[str, str, str],
        tokens: Count | None = None,
    ) -> Account:
        plan = endpoint.plan
        _, model, version = key
        label = Label(holder.tenant, holder.key, plan.tenant, plan.id, plan.name, model, version)
        account = holder.accounts[key] = Account(self.journal, label, tokens)
        return account


def opened(home: Path, worker: int, region: Region) -> Accounts:
    """The accounts of a worker that begins: it takes back what its predecessor left unspent."""
    wallet = Wallet(home)
    try:
        with wallet.lock:
            wallet.reclaim(worker)
    except OSError as error:
        log.error("the wallet cannot be read", reason=os.strerror(error.errno or 0))
    journal = Journal(home / "run", worker, wallet.lock, lambda: wallet.first_open)
    return Accounts(journal, Limiter(wallet, journal, region, worker))


def _chosen(limits: Iterable[LimitGrant], label: Label) -> list[LimitGrant]:
    """The limits of a tenant that hold for an account."""
    return [
        limit
        for limit in limits
        if limit.endpoint in {"", label.endpoint} and limit.key in {"", label.key}
    ]


def _price(prices: tuple[Price, ...], tenant: str) -> Price:
    """What a tenant pays at most: its own price, else everybody's."""
    known = {price.tenant: price for price in prices}
    return known.get(tenant) or known.get("") or FREE
