"""What a machine has counted, for whoever bills: by the agent, in a thread of its own.

Totals are sent, so a report that comes twice counts once. A segment's file goes when all of it has
been taken; one that was spent from budgets stays until its day is complete, because the workers'
successors find out from it what was spent.
"""

import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from tapster.contract.usage import Count, Segment, UsageReceipt, UsageReport
from tapster.core.blobs import write_atomically
from tapster.core.telemetry import logger
from tapster.serving.journal import COUNTER_WORDS, FOLDER, spelled, today
from tapster.serving.segments import Found, Words
from tapster.serving.wallet import Wallet

log = logger(__name__)

# Counts of a report at most, but for those of one sealed segment, which come all at once.
MOST: Final = 10_000
# A sealed segment that is not taken is sent again after so long (seconds), then twice that ...
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# A record that never rests is sent after so long (seconds), then twice that ...: whoever bills
# writes a line each time.
SHORTEST_PACE, LONGEST_PACE = 1.0, 8.0
_RESTED: Final = 2.0
# A day is complete when the clock has said for so long (seconds) that it is over.
COMPLETE_SECONDS: Final = 600.0
_STALE_SECONDS: Final = 60.0
# Two threads of the one agent ask at its start.
_naming: Final = threading.Lock()


def machine_id(home: Path) -> str:
    """Who this machine is to those who bill: random, made at first use. Raises OSError.

    It lies beside the journals and the wallet, and is lost with them: who no longer knows what was
    spent of its grants is another machine, to which they were not given.
    """
    path, former = home / "run" / "machine.id", home / "machine.id"
    with _naming:
        if former.exists():  # of a home of earlier, whose journals are known by it
            former.replace(path)
        if not path.exists():
            write_atomically(path, secrets.token_hex(16).encode() + b"\n")
        return path.read_text().strip()


class _Known:
    """A segment, and what of it was acknowledged."""

    def __init__(self, segment: Found) -> None:
        self.segment = segment
        self.acknowledged: Words = np.zeros((0, COUNTER_WORDS), np.uint64)
        self.sent: list[tuple[int, Words]] = []
        self.orphaned = False
        # Of one whose worker has died: whether it has no records, and whether any spent a budget.
        self.empty = self.spent = False
        self.due = 0.0
        self.pause = FIRST_PAUSE
        self.paces: dict[int, tuple[float, float]] = {}
        self.looked: Words = np.zeros((0, COUNTER_WORDS), np.uint64)

    def changed(self, totals: Words) -> list[int]:
        """The numbers of the records that have counted since."""
        before = np.zeros_like(totals)
        before[: len(self.acknowledged)] = self.acknowledged
        return [int(number) for number in np.flatnonzero((before != totals).any(axis=1))]

    def ripe(self, totals: Words, numbers: list[int], now: float) -> list[int]:
        """Those of some records that are to be sent: they are due, or have come to rest."""
        before, self.looked = self.looked, totals
        return [
            number
            for number in numbers
            if self.paces.get(number, (0.0, 0.0))[0] <= now
            or (number < len(before) and bool((before[number] == totals[number]).all()))
        ]

    def _pace(self, number: int, now: float) -> None:
        """A record was sent: when it may be again."""
        due, pace = self.paces.get(number, (0.0, 0.0))
        rested = now < due or now - due > _RESTED
        pace = SHORTEST_PACE if rested else min(2 * pace, LONGEST_PACE)
        self.paces[number] = now + pace, pace

    def postpone(self) -> None:
        """It arrived sealed, and is not in the ledger whole: it is sent again later and later."""
        self.due, self.pause = time.monotonic() + self.pause, min(2 * self.pause, LONGEST_PAUSE)

    def acknowledge(self) -> None:
        """What was sent has been taken in."""
        size = max([number + 1 for number, _ in self.sent], default=0)
        if size > len(self.acknowledged):
            grown = np.zeros((size, COUNTER_WORDS), np.uint64)
            grown[: len(self.acknowledged)] = self.acknowledged
            self.acknowledged = grown
        now = time.monotonic()
        for number, counters in self.sent:
            self.acknowledged[number] = counters
            self._pace(number, now)
        self.sent = []


class Collector:
    """The journals of one machine, as its agent reads them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "run" / FOLDER
        self._wallet = Wallet(home)
        self._known: dict[str, _Known] = {}
        self._over: dict[int, float] = {}
        self._mark = ""
        self.machine = machine_id(home)
        self.begin_again()  # whether the ledger is the one that a predecessor knew, nobody knows

    def report(self, everything: bool = False) -> UsageReport:
        """What is new since it was last acknowledged; usually, what changes often waits."""
        self._look()
        segments: list[Segment] = []
        room = MOST
        for known in sorted(self._known.values(), key=lambda each: each.segment.day):
            segment = self._segment(known, room, everything)
            if segment is not None:
                segments.append(segment)
                room -= len(segment.counts)
            if room <= 0:
                break
        return UsageReport(self.machine, tuple(segments), self._open_days(), self._mark)

    def acknowledge(self, report: UsageReport, receipt: UsageReceipt) -> None:
        """The report has arrived, and these sealed segments are in the ledger whole."""
        for segment in report.segments:
            known = self._known.get(segment.id)
            if known is not None:
                known.acknowledge()
                if segment.sealed and segment.id not in receipt.taken:
                    known.postpone()
        for each in receipt.taken:
            known = self._known.get(each)
            if known is not None and known.orphaned:
                known.segment.take()
        self._mark = receipt.mark or self._mark
        if receipt.again:
            self.begin_again()
        self._clear_up()

    def begin_again(self) -> None:
        """Whoever bills may have an earlier ledger: all that is still here is told once more."""
        self._look()
        for known in self._known.values():
            known.acknowledged = np.zeros((0, COUNTER_WORDS), np.uint64)
            known.paces, known.due = {}, 0.0
            known.segment.offer()

    def _segment(self, known: _Known, room: int, everything: bool) -> Segment | None:
        """What there is to say of a segment, if anything."""
        segment = known.segment
        sealed, now = known.orphaned, time.monotonic()
        if segment.taken or (sealed and now < known.due):
            return None
        totals = segment.totals()
        chosen = known.changed(totals)
        if sealed and len(chosen) <= room:
            chosen = list(range(len(totals)))
            known.due = now + FIRST_PAUSE
        else:
            chosen = chosen if sealed or everything else known.ripe(totals, chosen, now)
            sealed, chosen = False, chosen[:room]
            if not chosen:
                return None
        known.sent = [(number, totals[number]) for number in chosen]
        counts: tuple[Count, ...] = segment.counts(totals, chosen)
        return Segment(segment.id, spelled(segment.day), sealed, counts)

    def _look(self) -> None:
        """Find new segments, and those whose worker has died."""
        for path in self._files():
            if path.name not in self._known:
                try:
                    self._known[path.name] = _Known(Found(path))
                except (OSError, ValueError) as error:
                    log.debug("no segment", reason=str(error))
        for known in list(self._known.values()):
            if not (known.orphaned or known.segment.owned):
                known.orphaned = True
                known.empty = not len(known.segment.totals())
                known.spent = bool(known.segment.spent())
                if known.spent:
                    with self._wallet.lock:
                        self._wallet.reclaim(known.segment.worker)
        self._clear_up()

    def _files(self) -> Iterable[Path]:
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return
        for path in paths:
            if not path.name.startswith("."):
                yield path
            elif time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)  # of a worker that died as it made it

    def _clear_up(self) -> None:
        """Delete what nobody needs any more."""
        first_open = self._wallet.first_open
        for name, known in list(self._known.items()):
            segment = known.segment
            needed = known.spent and segment.day >= first_open
            if known.orphaned and (known.empty or (segment.taken and not needed)):
                segment.path.unlink(missing_ok=True)
                segment.close()
                del self._known[name]

    def _open_days(self) -> tuple[str, ...]:
        """The days on which something may still be counted; others are complete from now on."""
        now, moment = today(), time.monotonic()
        days = {known.segment.day for known in self._known.values()} | set(self._wallet.days())
        live = [each.segment.day for each in self._known.values() if not each.orphaned]
        for day in days:
            if day >= now:
                self._over.pop(day, None)
            else:
                self._over.setdefault(day, moment)
        over = [day for day in days if moment - self._over.get(day, moment) > COMPLETE_SECONDS]
        over = [day for day in over if day < min(live, default=now)]
        if over and max(over) >= self._wallet.first_open:
            self._complete(max(over) + 1)
        days = {day for day in {*days, now} if day >= self._wallet.first_open}
        return tuple(spelled(day) for day in sorted(days))

    def _complete(self, day: int) -> None:
        if all(known.segment.taken or known.segment.day >= day for known in self._known.values()):
            self._wallet.complete(day)
