"""What a worker notices about requests: the slowest, those that fail, those that are logged.

Almost every request costs nothing here: the counters ask for a look at a batch only when one of
it was slower than what is looked for, and at failures. What is refused in numbers is read from
the counters every few seconds and logged as one line an endpoint.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tapster.contract.errors import HTTP_STATUS, TapsterError
from tapster.contract.plan import WorkerState
from tapster.core.settings import Settings
from tapster.core.telemetry import logger
from tapster.serving import slots as layout
from tapster.serving import slowest, tables
from tapster.serving.bills import Unbilled, Watched
from tapster.serving.model import COLD, FAILED
from tapster.serving.payloads import Recorder
from tapster.serving.slots import NEVER, Region, Slots
from tapster.serving.slowest import Phases, Request, Slowest
from tapster.serving.tracing import Tracer

log = logger(__name__)

TICK_SECONDS: Final = 1.0
SUMMARY_TICKS: Final = 5
# Lines about single requests, of each kind: so many at once, and so many a second.
BURST: Final = 20
LINES_A_SECOND: Final = 5.0
MOST_ENDPOINTS: Final = 20
MOST_CHANGES: Final = 20
_SUMMED: Final = {
    "client_errors": layout.CLIENT_ERRORS,
    "server_errors": layout.SERVER_ERRORS,
    "queue_full": layout.QUEUE_FULL,
    "expired": layout.EXPIRED,
    "limited": layout.LIMITED,
    "cancelled": layout.CANCELLED,
    "unavailable": layout.UNAVAILABLE,
}
_OURS: Final = ("server_errors", "queue_full", "expired", "unavailable")


class Allowance:
    """How many lines may still be written: some at once, then so many a second."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = time.monotonic()
        self.refused = 0

    def take(self) -> bool:
        """Whether one more may be written now."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * LINES_A_SECOND, BURST)
        self._at = now
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True

    def forgive(self) -> int:
        """How many were refused since this was last asked."""
        count, self.refused = self.refused, 0
        return count


class Watcher:
    """See Watch. Everything but publishing happens on the worker's event loop."""

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        region: Region,
        worker: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = settings.home / "run"
        self._slots = slots
        self._region = region
        self._worker = worker
        self._slow = int(settings.slow_request * 1e9) or NEVER
        self._share = settings.access_log
        self._due = 0.0
        self._tracer = tracer
        self._slowest = Slowest()
        self._failures = Allowance()
        self._slowness = Allowance()
        self._ticks = 0
        # The counters of all places when last looked at, and the numbers of the places then.
        self._seen: Any = np.zeros((0, layout.CHANGED), np.uint64)
        self._numbers: Any = None
        self._refused = region.words[region.offset + layout.REFUSED]
        self._publishing: asyncio.Future[None] | None = None
        # Told of failures, too.
        self.recorder: Recorder | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._region.watch = self
        self._aim()
        self._summarise()
        self._loop.call_later(TICK_SECONDS, self._tick)

    # -- single requests

    def served(self, requests: Sequence[Watched], now: int, started: int, compute: int) -> None:
        """See Watch. What is on nobody's bill was asked by the server itself."""
        if isinstance(requests[0].account, Unbilled):
            return
        logged = self._drawn(requests) if self._share else ()
        least = now - min(self._slowest.floor + 1, self._slow)
        traced = self._tracer.among(requests) if self._tracer is not None else ()
        chosen = [each for each in requests if each.began <= least]
        if not (chosen or logged or traced):
            return
        for request in {each.began: each for each in (*chosen, *logged, *traced)}.values():
            elapsed = now - request.began
            found = self._described(request, now, started, compute)
            if elapsed > self._slowest.floor:
                self._slowest.add(found)
            if elapsed >= self._slow and self._slowness.take():
                log.warning("slow request", **_fields(found))
            if request in logged:
                log.info("request", **_fields(found))
            if request in traced and self._tracer is not None:
                self._tracer.end(request, found, now, None)
        self._aim()

    def failed(self, request: Watched, status: int, error: Exception, elapsed: int) -> None:
        """See Watch."""
        if self.recorder is not None:
            self.recorder.failed(request, error, elapsed)
        asked = not isinstance(request.account, Unbilled)
        slow = asked and elapsed > self._slowest.floor
        logged = bool(asked and self._share and self._drawn([request]))
        traced = self._tracer is not None and request in self._tracer
        told = status >= 500 and self._failures.take()
        if not (slow or logged or traced or told):
            return
        found = self._request(request, status, elapsed)
        if slow:
            self._slowest.add(found)
            self._aim()
        if logged:
            log.info("request", **_fields(found))
        if traced and self._tracer is not None:
            self._tracer.end(request, found, request.began + elapsed, error)
        if told:
            _log_failure(found, error)

    def _aim(self) -> None:
        """Ask the counters for requests that take so long, or for all."""
        everything = self._share or self._tracer is not None
        self._region.least = 0 if everything else min(self._slowest.floor + 1, self._slow)

    def _drawn(self, requests: Sequence[Watched]) -> list[Watched]:
        """The share of requests that are logged: evenly, so many of any number."""
        self._due += len(requests) * self._share
        count = min(int(self._due), len(requests))
        self._due -= count
        return list(requests[:count])

    def _described(self, request: Watched, now: int, started: int, compute: int) -> Request:
        ready = getattr(request, "ready", 0) or request.began
        phases = Phases(
            read=(ready - request.began) / 1e9,
            wait=(started - ready) / 1e9,
            run=compute / 1e9,
            write=max(now - started - compute, 0) / 1e9,
        )
        return self._request(request, 200, now - request.began, phases)

    def _request(
        self, request: Watched, status: int, elapsed: int, phases: Phases | None = None
    ) -> Request:
        number = (request.place - self._region.place(0)) // layout.PLACE_WORDS
        tenant, endpoint, version = self._slots.name(number)
        return Request(
            ended=time.time(),
            seconds=elapsed / 1e9,
            request_id=request.identify(),
            tenant=tenant,
            endpoint=endpoint,
            version=version,
            worker=self._worker,
            status=status,
            rows=request.rows,
            phases=phases,
        )

    # -- now and then

    def _tick(self) -> None:
        self._ticks += 1
        if self._tracer is not None:
            self._end_abandoned(self._tracer)
        self._slowest.turn()
        self._aim()
        if self._slowest.changed and (self._publishing is None or self._publishing.done()):
            self._slowest.changed = False
            self._publishing = self._loop.run_in_executor(
                None, slowest.publish, self._folder, self._worker, self._slowest.all()
            )
            self._publishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._ticks % SUMMARY_TICKS == 0:
            self._summarise()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _end_abandoned(self, tracer: Tracer) -> None:
        """End the traces of requests whose callers have gone."""
        now = time.monotonic_ns()
        gone = TapsterError("cancelled", "its caller has gone")
        for request in tracer.abandoned():
            found = self._request(request, HTTP_STATUS[gone.code], now - request.began)
            tracer.end(request, found, now, gone)

    def _summarise(self) -> None:
        """Note which places changed since the last time, and log what was refused at each."""
        numbers, now = tables.read(self._slots, [self._region.offset], _copied)
        before, known = self._seen, self._numbers
        self._seen, self._numbers = now, numbers
        if known is not None:
            more = now - _matched(before, known, numbers)
            more[1:][numbers[1:] == 0] = 0
            changed = np.flatnonzero(more.any(axis=1)).tolist()
            for number in changed:
                place = self._region.place(number)
                self._region.words[place + layout.CHANGED] = int(time.time())
            self._log_refusals({number: more[number] for number in changed})
        for event, allowance in (
            ("a request failed", self._failures),
            ("slow request", self._slowness),
        ):
            if count := allowance.forgive():
                log.warning("lines were left out", about=event, count=count)

    def _log_refusals(self, more: dict[int, Any]) -> None:
        """One line for each place whose refusals have become more, for so many places."""
        seconds = TICK_SECONDS * SUMMARY_TICKS
        lines = []
        for number, words in more.items():
            counts = {name: int(words[word]) for name, word in _SUMMED.items() if words[word]}
            if counts:
                lines.append((sum(counts.values()), number, counts))
        lines.sort(key=lambda line: -line[0])
        for _, number, counts in lines[:MOST_ENDPOINTS]:
            tenant, endpoint, version = self._slots.name(number)
            say = log.warning if counts.keys() & _OURS else log.info
            names = {"tenant": tenant, "endpoint": endpoint, "version": version}
            say("requests were not served", **names, **counts, seconds=seconds)
        if len(lines) > MOST_ENDPOINTS:
            rest = lines[MOST_ENDPOINTS:]
            count = sum(line[0] for line in rest)
            log.warning(
                "requests were not served", endpoints=len(rest), count=count, seconds=seconds
            )
        refused = self._region.words[self._region.offset + layout.REFUSED]
        if refused > self._refused:
            log.info("requests without a valid key", count=refused - self._refused, seconds=seconds)
        self._refused = refused


def changes(before: WorkerState | None, after: WorkerState) -> None:
    """Log what has become of the plan and its packages in this worker.

    Packages that leave the memory and come back are news for developers only.
    """
    known = {each.digest: each.state for each in before.packages} if before else {}
    new = [each for each in after.packages if known.get(each.digest) != each.state]
    moved = [each for each in new if COLD in {each.state, known.get(each.digest)}]
    for package in moved[:MOST_CHANGES]:
        log.debug("a package moved", package=package.digest[:12], state=package.state)
    told = [each for each in new if each not in moved]
    for package in told[:MOST_CHANGES]:
        if package.state == FAILED:
            log.error("a package is refused", package=package.digest[:12], reason=package.error)
        else:
            log.info("a package changed", package=package.digest[:12], state=package.state)
    gone = len(known.keys() - {each.digest for each in after.packages})
    if len(told) > MOST_CHANGES or gone:
        more = max(len(told) - MOST_CHANGES, 0)
        log.info("packages changed", more=more, unloaded=gone, packages=len(after.packages))
    if after.plan >= 0 and (before is None or after.plan != before.plan):
        log.info("the plan is applied", plan=after.plan)


def _copied(views: list[Any]) -> Any:
    """A copy of this worker's counters of all places, up to `CHANGED`."""
    return views[0][:, : layout.CHANGED].copy()


def _matched(before: Any, known: Any, numbers: Any) -> Any:
    """What the counters of places were, as far as these were given by the same numbers then."""
    found = np.zeros((len(numbers), layout.CHANGED), np.uint64)
    count = min(len(known), len(numbers))
    same = np.flatnonzero(known[:count] == numbers[:count])
    found[same] = before[same]
    return found


def _log_failure(request: Request, error: Exception) -> None:
    code = error.code if isinstance(error, TapsterError) else "internal"
    if code == "internal":
        log.failure("a request failed", error.__cause__ or error, code=code, **_fields(request))
    else:
        log.warning("a request failed", code=code, reason=str(error), **_fields(request))


def _fields(request: Request) -> dict[str, object]:
    """A request as a log line has it."""
    found: dict[str, object] = {
        "request_id": request.request_id,
        "tenant": request.tenant,
        "endpoint": request.endpoint,
        "version": request.version,
        "status": request.status,
        "seconds": round(request.seconds, 6),
        "rows": request.rows,
    }
    if request.phases is not None:
        for name in ("read", "wait", "run", "write"):
            found[name] = round(getattr(request.phases, name), 6)
    return found
