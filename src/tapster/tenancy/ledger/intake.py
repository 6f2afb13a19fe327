"""From totals that machines report to lines that are written once.

A report holds totals of records, so what counts is their growth since the last one that was taken:
a report that comes twice, late, or again after a crash adds nothing. Totals of which some shrink
while others grow, and records that change their label, are never billed.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.usage import Count, Line, Segment, UsageReceipt, UsageReport
from tapster.core.telemetry import logger
from tapster.tenancy.ledger import periods, posting, store, tariffs
from tapster.tenancy.ledger.posting import Growth

log = logger(__name__)

# Whoever is counted after its erasure.
GONE: Final = "erased:late"
_NEVER: Final = "9999-99-99"
_COUNTED: Final = tariffs.COUNTERS[:6]
_MOST: Final = 1 << 53
# Records that are taken in at once: about a fifth of a second of the database.
PORTION: Final = 2000
_MOST_TOLD: Final = 10_000
_ZERO: Final = (0,) * len(_COUNTED)
_LENGTHS: Final = (
    ("tenant", 64), ("key", 64), ("owner", 64), ("endpoint", 64), ("name", 128), ("model", 128),
    ("version", 128), ("price", 32),
)  # fmt: skip
# Refusals that have been told of already: a broken journal is reported every second.
_told: set[tuple[str, str]] = set()


class _Taking:
    """One report on its way into the ledger."""

    def __init__(self, tx: Connection, report: UsageReport) -> None:
        ids = {segment.id for segment in report.segments}
        self.machine = report.machine
        self.segments = store.known_segments(tx, report.machine, ids)
        records = [count.record for each in report.segments for count in each.counts]
        span = (min(records, default=0), max(records, default=0))
        self.totals = store.known_totals(tx, report.machine, ids, span)
        self.changed: dict[tuple[str, int], Count] = {}
        self.growth: list[Growth] = []
        self.rows: dict[str, dict[str, Any]] = {}

    def segment(self, segment: Segment, now: float) -> bool:
        """Take a segment's counts in; whether the segment is in the ledger whole."""
        day, state = self.segments.get(segment.id, (segment.day, ""))
        if state == "taken":
            return True
        if not _sound(segment) or day != segment.day:
            _tell(self.machine, segment.id, "a journal with an impossible id or day")
            return False
        counted = [self._count(segment, count) for count in segment.counts]
        whole = all(counted)
        became = "taken" if segment.sealed and whole else "sealed" if segment.sealed else "open"
        became = "sealed" if (state, became) == ("sealed", "open") else became
        if became != state:
            self.segments[segment.id] = (segment.day, became)
            self.rows[segment.id] = {
                "machine": self.machine,
                "segment": segment.id,
                "tenant": DEFAULT_TENANT,
                "day": segment.day,
                "state": became,
                "at": now,
            }
        return became == "taken"

    def _count(self, segment: Segment, count: Count) -> bool:
        """Take a record's totals in; False when they cannot be true."""
        place, now = (segment.id, count.record), _counters(count)
        label = _digest(count.line)
        known, before = self.totals.get(place, (label, _ZERO))
        if known != label or not _possible(segment, count):
            _tell(self.machine, segment.id, "a record that changed its label, or an odd one")
            return False
        grown = tuple([new - old for new, old in zip(now, before, strict=True)])
        if min(grown) < 0:
            if max(grown) > 0:
                _tell(self.machine, segment.id, "totals that shrink")
                return False
            # An older report, overtaken by a newer one; or the last of a machine whose power has
            # failed, and with it the newest that it had told.
            return True
        if max(grown) > 0:
            self.totals[place] = (label, now)
            self.changed[place] = count
            counts = dict(zip(_COUNTED, grown, strict=True))
            self.growth.append(Growth("calls", count.line, counts, self.machine))
        return True

    def erased(self, tx: Connection) -> dict[str, str]:
        """Whom the report names though they have been erased: the first day that can be that of
        another of the name."""
        lines = [each.line for each in self.growth]
        gone = store.erased(tx, {name for line in lines for name in (line.tenant, line.owner)})
        return {name: _NEVER if at is None else periods.day_of(at) for name, at in gone.items()}

    def totals_rows(self, gone: Mapping[str, str]) -> list[dict[str, Any]]:
        """What to remember of the records that grew."""
        return [
            {
                "machine": self.machine,
                "segment": segment,
                "record": record,
                "tenant": GONE if _late(count.line.tenant, count.line, gone) else count.line.tenant,
                "label": self.totals[segment, record][0],
                **dict(zip(_COUNTED, self.totals[segment, record][1], strict=True)),
            }
            for (segment, record), count in self.changed.items()
        ]


def news(tx: Connection, report: UsageReport) -> bool:
    """Whether a report has anything that is not in the ledger: most of an idle machine's do not."""
    if report.segments or _unknown(tx, report):
        return True
    return store.open_days(tx, report.machine) != _spelled(report.open_days)


def portions(report: UsageReport, most: int = PORTION) -> Iterator[UsageReport]:
    """A report in pieces that each take the database for a moment only, and then the whole.

    By then nothing in it is new, so that it costs little, and says what is sealed and complete.
    """
    if sum(len(segment.counts) for segment in report.segments) > most:
        for segment in report.segments:
            for start in range(0, len(segment.counts), most):
                counts = segment.counts[start : start + most]
                piece = replace(segment, sealed=False, counts=counts)
                yield replace(report, segments=(piece,))
    yield report


def take(tx: Connection, report: UsageReport, now: float | None = None) -> UsageReceipt:
    """Bring a machine's report into the ledger; which sealed segments are in it whole.

    Must run in one transaction: lines, sums and the totals that they came from stand or fall
    together.
    """
    at = time.time() if now is None else now
    store.lock(tx)
    again = _unknown(tx, report)
    taking = _Taking(tx, report)
    whole = [segment.id for segment in report.segments if taking.segment(segment, at)]
    gone = taking.erased(tx)
    posting.post(tx, [_nameless(each, gone) for each in taking.growth], at)
    store.keep_totals(tx, taking.totals_rows(gone))
    store.keep_segments(tx, list(taking.rows.values()))
    if len(report.machine) <= 255:
        store.keep_open_days(tx, report.machine, DEFAULT_TENANT, _spelled(report.open_days), at)
    return UsageReceipt(tuple(dict.fromkeys(whole)), store.mark(tx, report.machine), again)


def closed(tx: Connection, machine: str, day: str) -> bool:
    """Whether all that a machine counted on a day is in the ledger, and no more can come."""
    held = store.open_days(tx, machine)
    if held is None or day in held.split():
        return False
    return store.untaken(tx, machine, day) == 0


def _unknown(tx: Connection, report: UsageReport) -> bool:
    """Whether this is not the ledger that a machine's last report went into."""
    return bool(report.mark) and report.mark != store.mark(tx, report.machine)


def _spelled(days: Iterable[str]) -> str:
    return " ".join(sorted({day for day in days if periods.is_day(day)}))


def _counters(count: Count) -> tuple[int, ...]:
    return (count.requests, count.errors, count.rows, count.tokens, count.compute, count.cached)


def _digest(line: Line) -> str:
    return blake2b(msgspec.json.encode(line), digest_size=16).hexdigest()


def _sound(segment: Segment) -> bool:
    return 0 < len(segment.id) <= 64 and segment.id.isprintable() and periods.is_day(segment.day)


def _possible(segment: Segment, count: Count) -> bool:
    line, numbers = count.line, _counters(count)
    return (
        line.day == segment.day
        and min(numbers) >= 0
        and max(numbers) < _MOST
        and 0 <= count.record < _MOST
        and bool(line.tenant and line.owner)
        and all(_storable(getattr(line, name), most) for name, most in _LENGTHS)
    )


def _late(name: str, line: Line, gone: Mapping[str, str]) -> bool:
    """Whether a line means a tenant that has been erased, not another that has its name now."""
    return line.day < gone.get(name, "")


def _nameless(each: Growth, gone: Mapping[str, str]) -> Growth:
    """What is reported of an erased tenant after its end, without its name."""
    line = each.line
    if _late(line.owner, line, gone):
        line = replace(line, owner=GONE, endpoint="", name="", model="", version="")
    if _late(line.tenant, line, gone):
        line = replace(line, tenant=GONE, key="")
    return replace(each, line=line) if line is not each.line else each


def _storable(text: str, most: int) -> bool:
    return len(text) <= most and text.isprintable()


def _tell(machine: str, segment: str, what: str) -> None:
    """Say once of a segment that something in it is not billed."""
    if (machine, segment) not in _told:
        if len(_told) >= _MOST_TOLD:
            _told.clear()
        _told.add((machine, segment))
        log.error("usage is refused", machine=machine[:255], segment=segment[:64], what=what)
