"""Whose a request is: where it is counted, who pays for it, and who looks at it."""

from collections.abc import Sequence
from typing import Protocol


class Together(Protocol):
    """Where those that have reserved from the same are settled together."""

    def served(self, bills: "list[Bill]", requests: int, rows: int, compute: int) -> None:
        """See Bill; of all of them."""
        ...


class Bill(Protocol):
    """Where it is counted what somebody has to pay for.

    `meters` are the limits that a request must be asked for before it runs, None if there are none.
    `till` is where it is settled what was reserved, None for those that reserve nothing.
    """

    @property
    def meters(self) -> object:
        """See above."""
        ...

    @property
    def till(self) -> Together | None:
        """See above."""
        ...

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """So many good answers; `compute` in nanoseconds, `cached` those that no model ran for."""
        ...

    def failed(self) -> None:
        """A request that got an error."""
        ...


class Nobody:
    """A Bill that nobody pays."""

    meters = None
    till = None

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """See Bill."""

    def failed(self) -> None:
        """See Bill."""


class Unbilled(Nobody):
    """The Bill of what runs besides the callers' own requests; nobody looks at it, either."""


class Counted(Protocol):
    """A request to be counted: where, at whose expense, how much it asked for, since when it
    waits (ns).
    """

    place: int
    account: Bill
    rows: int
    began: int


class Watched(Counted, Protocol):
    """A request that can be told from others."""

    def identify(self) -> str:
        """Its identifier, which its caller gets, too; made at first need."""
        ...


class Watch(Protocol):
    """Who looks at requests one by one, on the event loop: see `Region.watch`."""

    def served(self, requests: list[Watched], now: int, started: int, compute: int) -> None:
        """Good answers of a batch to one place; the times are those of `Region.served`."""
        ...

    def failed(self, request: Watched, status: int, error: Exception, elapsed: int) -> None:
        """A request that got an error; `elapsed` in nanoseconds."""
        ...


def by_place(requests: Sequence[Watched]) -> dict[int, Sequence[Watched]]:
    """Requests by where they are counted: nearly always at one place."""
    if len({request.place for request in requests}) == 1:
        return {requests[0].place: requests}
    places: dict[int, list[Watched]] = {}
    for request in requests:
        places.setdefault(request.place, []).append(request)
    return dict(places)


def charge(requests: Sequence[Watched], rows: int, compute: int) -> None:
    """Have everybody pay for their own of the requests that were answered together."""
    first = requests[0].account
    if first.till is None and len({request.account for request in requests}) == 1:
        first.served(len(requests), rows, compute)
        return
    payers: dict[object, list[Watched]] = {}
    for request in requests:
        payers.setdefault(request.account.till or request.account, []).append(request)
    for own in payers.values():
        payer = own[0].account
        theirs = sum([request.rows for request in own])
        share = compute * theirs // rows if rows else 0
        if payer.till is None:
            payer.served(len(own), theirs, share)
        else:
            payer.till.served([request.account for request in own], len(own), theirs, share)
