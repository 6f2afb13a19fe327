"""Lines: growth, priced, cut at the edges of tiers, appended, and added to the sums."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from tapster.contract.usage import Line
from tapster.tenancy.ledger import periods, store
from tapster.tenancy.ledger.prices.service import Book
from tapster.tenancy.ledger.tariffs import CEILING, Counts, Piece, charge

_NOTHING: Final = dict.fromkeys(store.AMOUNTS, 0)


class Growth(msgspec.Struct, frozen=True):
    """What a line is to be written of: `kind` is calls, training or storage."""

    kind: str
    line: Line
    counts: Counts
    machine: str = ""


def post(tx: Connection, growth: Sequence[Growth], at: float) -> None:
    """Append the lines of growth, each with the price in force, and add them to the sums."""
    if not growth:
        return
    rows = _priced(tx, growth, at)
    store.add_lines(tx, rows)
    add_up(tx, rows)


def add_up(tx: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to the sums by hour and by day."""
    hours: dict[tuple[str, str], dict[str, Any]] = {}
    days: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        label = {name: row[name] for name in store.LABEL}
        series = _series(label.values())
        for sums, period in ((hours, row["hour"]), (days, row["day"])):
            held = sums.get((period, series))
            if held is None:
                fresh = {"period": period, "series": series, **label, **_NOTHING}
                held = sums[period, series] = fresh
            for name in store.AMOUNTS:
                held[name] += row[name]
    for table, sums in ((store.hours, hours), (store.days, days)):
        store.add_sums(tx, table, [sums[key] for key in sorted(sums)])


def _priced(tx: Connection, growth: Sequence[Growth], at: float) -> list[dict[str, Any]]:
    owners = {each.line.owner for each in growth}
    named = {each.line.price for each in growth if each.line.price}
    book = Book(tx, owners, min(periods.begins(each.line.day) for each in growth), named)
    found = [(each, _price(book, each, at)) for each in growth]
    payers = {each.line.tenant for each, price in found if price}
    meters = store.metered(tx, payers, {price.id for _, price in found if price})
    months = {each.line.day: periods.bill_month(each.line.day, at) for each in growth}
    due = store.due(tx, payers, set(months.values()))
    used: dict[store.Key, dict[str, int]] = {}
    rows = []
    for each, price in found:
        month = months[each.line.day]
        fixed = _fixed(each, month, price.id if price else "", at)
        if price is None:
            pieces = charge((), {}, each.counts)
        else:
            key = (each.line.tenant, price.id, month)
            meter = used.setdefault(key, dict(meters.get(key, _NOTHING)))
            pieces = charge(price.tariff, meter, each.counts)
            before = due.get((each.line.tenant, month), 0)
            pieces = [_count(meter, piece) for piece in _held(pieces, CEILING - before)]
            due[each.line.tenant, month] = before + sum(piece.amount for piece in pieces)
        rows += [
            {**fixed, **_NOTHING, **piece.counts, "above": piece.above, "amount": piece.amount}
            for piece in pieces
        ]
    store.keep_meters(tx, used)
    return rows


def _price(book: Book, each: Growth, at: float) -> Any:
    line = each.line
    if each.kind == "calls" and not line.name:
        return None
    endpoint = line.name if each.kind == "calls" else ""
    moment = periods.priced_at(line.day, at)
    return book.price(line.owner, endpoint, line.tenant, moment, line.price)


def _held(pieces: Iterable[Piece], left: int) -> Iterator[Piece]:
    """Pieces whose amounts are held to what is left of what a month may come to."""
    for piece in pieces:
        amount = min(piece.amount, max(left, 0))
        left -= amount
        yield Piece(piece.above, piece.counts, amount)


def _count(meter: dict[str, int], piece: Piece) -> Piece:
    """Move the meter on by a piece."""
    for name, number in piece.counts.items():
        meter[name] += number
    meter["amount"] += piece.amount
    return piece


def _fixed(each: Growth, month: str, price: str, at: float) -> dict[str, Any]:
    line = each.line
    return {
        "at": at,
        "hour": periods.hour_within(line.day, at),
        "day": line.day,
        "kind": each.kind,
        "month": month,
        "tenant": line.tenant,
        "key": line.key,
        "owner": line.owner,
        "endpoint": line.endpoint,
        "name": line.name,
        "model": line.model,
        "version": line.version,
        "machine": each.machine,
        "price": price,
    }


def _series(label: Iterable[Any]) -> str:
    """A short name of a label, the same for the same label."""
    return blake2b("\0".join(map(str, label)).encode(), digest_size=16).hexdigest()
