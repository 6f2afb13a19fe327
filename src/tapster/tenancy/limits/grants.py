"""Grants: how many units of a limit a machine may spend on a day.

An answer is a total, so asking twice grants once. Whoever asks says which day it is, and lines say
which day they are of: the clock of this machine is only asked whether a day is plausible.
"""

from typing import Final

from sqlalchemy import Connection

from tapster.contract.errors import TapsterError
from tapster.contract.usage import BUDGETED, LARGEST, Ask, Grant, GrantAnswer, GrantRequest
from tapster.core.telemetry import logger
from tapster.tenancy.ledger import periods
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.ledger import store as ledger_rows
from tapster.tenancy.limits import account, spans, store
from tapster.tenancy.limits.account import Place
from tapster.tenancy.limits.spans import Span
from tapster.tenancy.limits.store import Held, Row

log = logger(__name__)

# How many days a machine's date may be away from ours: a clock may be wrong by a day, and the day
# may change in between. Else a wrong date would be a fresh budget.
DAYS_APART: Final = 2
_LONGEST: Final = 255


def answer(tx: Connection, request: GrantRequest) -> GrantAnswer:
    """Grant what the accounts of the limits allow, each limit's rows locked until the end of `tx`.

    Raises TapsterError(invalid) for asks that no machine of ours sends.
    """
    _check(request)
    limits = store.locked(tx, {ask.limit for ask in request.asks})
    known = [ask for ask in request.asks if ask.limit in limits]
    return GrantAnswer(
        tuple(
            _grant(tx, limits[ask.limit], request.machine, ask)
            for ask in known
            if limits[ask.limit].metric in BUDGETED
        )
    )


def standing(tx: Connection, limit: Row, day: str) -> tuple[int, int, Span]:
    """What is used of a limit in the period that `day` is in, what is held besides, the period."""
    period = spans.span(limit.period, day)
    books = _books(tx, limit, period, write=False)
    counted = store.counted(tx, limit, period.first, period.last)
    used = sum(counted.values())
    return used, account.held(_usable(books), counted) - used, period


def _grant(tx: Connection, limit: Row, machine: str, ask: Ask) -> Grant:
    """Answer one ask. A day that the machine has closed is granted nothing."""
    if spans.apart(ask.day, spans.today()) > DAYS_APART:
        log.error("a machine's date is wrong", machine=machine, day=ask.day)
        return Grant(ask.limit, ask.day, 0, spent=True)
    place, period = (machine, ask.day), spans.span(limit.period, ask.day)
    books = _books(tx, limit, period, write=True)
    counted = store.counted(tx, limit, period.first, period.last)
    held = books.get(place) or Held(counted.get(place, 0))
    closed = held.closed or _closed(tx, place)
    wanted = 0 if closed else held.before + ask.total
    usable, left = account.grown(place, wanted, limit.amount, _usable(books), counted)
    granted = usable - held.before
    if granted > held.granted:
        store.grant(tx, limit.tenant, limit.id, place, Held(held.before, granted))
        _forget(tx, limit, period, fresh=place not in books)
    spent = left == 0 and not closed
    total = 0 if closed else granted
    return Grant(ask.limit, ask.day, total, spent=spent, resets=period.end, left=left)


def _usable(books: dict[Place, Held]) -> dict[Place, int]:
    return {place: held.usable for place, held in books.items()}


def _books(tx: Connection, limit: Row, period: Span, *, write: bool) -> dict[Place, Held]:
    """What machines were granted in a period; of days that are closed, only what they counted.

    With `write` this is written down, so that what is given to others stays theirs even if a
    machine goes back to a day that it had closed.
    """
    books = store.granted(tx, limit.tenant, limit.id, period.first, period.last)
    closed = [place for place, held in books.items() if not held.closed and _closed(tx, place)]
    if not closed:
        return books
    # Read only now: what is closed has been counted, all of it.
    counted = store.counted(tx, limit, period.first, period.last)
    for place in closed:
        before, used = books[place].before, counted.get(place, 0)
        granted = min(books[place].granted, max(0, used - before))
        books[place] = Held(before, granted, True)
        if write:
            store.grant(tx, limit.tenant, limit.id, place, books[place])
    return books


def _closed(tx: Connection, place: Place) -> bool:
    """Whether all that a machine counted on a day is in the ledger, and no more can come.

    A day that a machine has not begun to count is not closed, though no journal of it is open.
    """
    machine, day = place
    latest = max((ledger_rows.open_days(tx, machine) or "").split(), default="")
    return latest > day and ledger.closed(tx, machine, day)


def _forget(tx: Connection, limit: Row, period: Span, *, fresh: bool) -> None:
    """Delete what was granted in periods that are over for every clock."""
    if fresh:
        earliest = spans.before(period.first, 2 * DAYS_APART)  # two machines' dates apart
        store.forget(tx, limit.tenant, limit.id, spans.span("month", earliest).first)


def _check(request: GrantRequest) -> None:
    for ask in request.asks:
        if not periods.is_day(ask.day) or not 0 <= ask.total <= LARGEST:
            raise TapsterError("invalid", "an ask names no day, or an impossible total")
    if not 0 < len(request.machine) <= _LONGEST or not request.machine.isprintable():
        raise TapsterError("invalid", "this is no machine's name", field="machine")
