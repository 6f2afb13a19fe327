"""Requests as OpenTelemetry traces, sent to a collector over OTLP/HTTP by a thread.

A request is traced when its caller's `traceparent` says so, or, when there is none, by chance. Its
times are those that every request has; nothing is measured anew. At most `MAX_QUEUE` requests
wait to be sent: more are dropped and counted. Source: W3C Trace Context, level 1.
"""

import http.client
import math
import os
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

from tapster.contract.errors import GRPC_STATUS, TapsterError
from tapster.core.settings import Settings
from tapster.core.telemetry import logger
from tapster.serving import conventions as names
from tapster.serving import otlp
from tapster.serving.bills import Watched
from tapster.serving.otlp import Sender
from tapster.serving.slots import NEVER
from tapster.serving.slowest import Request

log = logger(__name__)

MAX_OPEN: Final = 4096
MAX_QUEUE: Final = 2048
BATCH: Final = 128
EVERY_SECONDS: Final = 1.0
ATTEMPTS: Final = 3
FLUSH_SECONDS: Final = 3.0
_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent:
    """What a `traceparent` says: the trace, the caller's span, whether it is sampled."""

    __slots__ = ("sampled", "span", "trace")

    def __init__(self, trace: int, span: int, sampled: bool) -> None:
        self.trace = trace
        self.span = span
        self.sampled = sampled


def parse(header: bytes) -> Parent | None:
    """The parent that a `traceparent` names; None for one that is not valid."""
    found = _PARENT.fullmatch(header) if len(header) <= 512 else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace, span = int(found[2], 16), int(found[3], 16)
    return Parent(trace, span, bool(int(found[4], 16) & 1)) if trace and span else None


class Operation:
    """A kind of request: the name of its span, what its status is called, and what is the same
    for all of them, spelled."""

    __slots__ = ("attributes", "name", "status")

    def __init__(self, name: str, status: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.status = status
        self.attributes = _spelled(attributes)


def over_http(method: str, route: str) -> Operation:
    """An operation of HTTP; `route` names no endpoint."""
    attributes = {names.HTTP_METHOD: method, names.HTTP_ROUTE: route, names.URL_SCHEME: "http"}
    return Operation(f"{method} {route}", names.HTTP_STATUS, attributes)


def over_grpc(method: str) -> Operation:
    """An operation of gRPC by its full name, `package.Service/Method`."""
    return Operation(method, names.RPC_STATUS, {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: method})


class _Done:
    """A traced request that has been answered; times in monotonic nanoseconds."""

    __slots__ = ("began", "code", "ended", "operation", "parent", "request", "trace")

    def __init__(
        self, opened: "_Open", request: Request, began: int, ended: int, code: str
    ) -> None:
        self.trace = opened.trace
        self.parent = opened.parent
        self.operation = opened.operation
        self.request = request
        self.began = began
        self.ended = ended
        self.code = code


class _Open:
    """A traced request that waits for its answer."""

    __slots__ = ("operation", "parent", "trace", "work")

    def __init__(self, work: Watched, trace: int, parent: int, operation: Operation) -> None:
        self.work = work
        self.trace = trace
        self.parent = parent
        self.operation = operation


class Tracer:
    """Chooses requests, and hands those that were answered to a thread that sends them."""

    def __init__(self, exporter: "Exporter", share: float) -> None:
        self._exporter = exporter
        self._share = share
        self._open: dict[int, _Open] = {}
        # Whether the next request to begin is chosen, where that is known already.
        self.chosen: bool | None = None

    def gap(self) -> int:
        """How many requests from now on the next one is that is chosen, if each is by chance."""
        if self._share <= 0:
            return NEVER
        if self._share >= 1:
            return 1
        return 1 + int(math.log(1 - random.random()) / math.log(1 - self._share))

    def begin(self, work: Watched, header: bytes, operation: Operation) -> None:
        """Trace a request if its `traceparent` (b"" for none), or a draw, says so."""
        parent = parse(header) if header else None
        drawn, self.chosen = self.chosen, None
        if parent is None:
            if not (random.random() < self._share if drawn is None else drawn):
                return
            parent = Parent(random.getrandbits(128) | 1, 0, True)
        if parent.sampled and len(self._open) < MAX_OPEN:
            self._open[work.began] = _Open(work, parent.trace, parent.span, operation)

    def __contains__(self, work: Watched) -> bool:
        """Whether a request is traced, itself or in the guise of what has been put around it."""
        return work.began in self._open

    def among(self, works: Sequence[Watched]) -> list[Watched]:
        """Those that are traced."""
        return [work for work in works if work.began in self._open] if self._open else []

    def end(self, work: Watched, request: Request, now: int, error: Exception | None) -> None:
        """Send a request that was traced and is answered."""
        opened = self._open.pop(work.began)
        code = error.code if isinstance(error, TapsterError) else "internal" if error else ""
        self._exporter.add(_Done(opened, request, work.began, now, code))

    def abandoned(self) -> list[Watched]:
        """Requests that nobody waits for any more, to be ended; to be called now and then."""
        return [each.work for each in self._open.values() if getattr(each.work, "done", False)]

    def stop(self) -> None:
        """Send what waits, within a few seconds."""
        self._exporter.stop()


class Exporter:
    """A bounded queue, and the thread that turns it into spans and sends them."""

    def __init__(self, sender: Sender, resource: dict[str, str | int]) -> None:
        self._sender = sender
        self._resource = resource
        self._queue: deque[_Done] = deque()
        self._dropped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_on, name="traces", daemon=True)
        self._thread.start()

    def add(self, done: _Done) -> None:
        """Queue a request."""
        if len(self._queue) < MAX_QUEUE:
            self._queue.append(done)
        else:
            self._dropped += 1

    def stop(self) -> None:
        """Send what waits, within a few seconds."""
        self._stop.set()
        self._thread.join(FLUSH_SECONDS)

    def _send_on(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(EVERY_SECONDS)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._send(batch)
            if self._dropped:
                count, self._dropped = self._dropped, 0
                log.warning("traces were dropped", count=count)

    def _send(self, batch: list[_Done]) -> None:
        offset = time.time_ns() - time.monotonic_ns()
        spans = [span for done in batch for span in _spans(done, offset)]
        data = otlp.request(self._resource, "tapster", spans)
        for attempt in range(ATTEMPTS):
            try:
                status = self._sender.send(data)
            except (OSError, http.client.HTTPException) as error:
                status, problem = 503, str(error) or type(error).__name__
            else:
                problem = f"the collector answered {status}"
            if status < 300:
                return
            if status not in otlp.AGAIN or attempt == ATTEMPTS - 1 or self._stop.wait(attempt + 1):
                break
        log.warning("traces cannot be sent", requests=len(batch), reason=problem)


def tracer(settings: Settings, worker: int) -> Tracer | None:
    """The tracer that settings ask for; None when they ask for none."""
    if not settings.otel_endpoint:
        return None
    sender = Sender(settings.otel_endpoint, os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    resource: dict[str, str | int] = {
        names.SERVICE_NAME: "tapster",
        names.SERVICE_VERSION: version("tapster"),
        names.SERVICE_INSTANCE: f"{socket.gethostname()}/{worker}",
    }
    return Tracer(Exporter(sender, resource), settings.otel_sample)


def _spans(done: _Done, offset: int) -> list[bytes]:
    """The span of a request, and those of its phases; `offset` leads to ns since 1970."""
    trace = done.trace.to_bytes(16, "big")
    own = _new_id()
    spans = [
        otlp.span(
            trace,
            own,
            done.parent.to_bytes(8, "big") if done.parent else b"",
            done.operation.name,
            (done.began + offset, done.ended + offset),
            kind=otlp.SERVER,
            attributes=done.operation.attributes + _spelled(_attributes(done)),
            failed=done.request.status >= 500,
        )
    ]
    for name, start, end in _phases(done):
        spans.append(otlp.span(trace, _new_id(), own, name, (start + offset, end + offset)))
    return spans


def _new_id() -> bytes:
    return (random.getrandbits(64) | 1).to_bytes(8, "big")


def _spelled(attributes: Mapping[str, str | int | float]) -> bytes:
    return b"".join([otlp.attribute(name, value) for name, value in attributes.items()])


def _attributes(done: _Done) -> dict[str, str | int | float]:
    request = done.request
    found: dict[str, str | int | float] = {
        names.REQUEST_ID: request.request_id,
        names.TENANT: request.tenant,
        names.ENDPOINT: request.endpoint,
        names.VERSION: request.version,
        names.ROWS: request.rows,
    }
    rpc = done.operation.status == names.RPC_STATUS
    found[done.operation.status] = _grpc_status(done.code) if rpc else request.status
    if done.code:
        found[names.ERROR_TYPE] = done.code
    if request.phases is not None:
        found[names.QUEUE_SECONDS] = request.phases.wait
        found[names.RUN_SECONDS] = request.phases.run
    return found


def _grpc_status(code: str) -> str:
    return next((status for known, status in GRPC_STATUS.items() if known == code), "OK")


def _phases(done: _Done) -> list[tuple[str, int, int]]:
    """Name, start and end of each phase of a request."""
    if done.request.phases is None:
        return []
    found = []
    at = done.began
    phases = done.request.phases
    for name, seconds in (
        (names.READ, phases.read),
        (names.QUEUE, phases.wait),
        (names.RUN, phases.run),
        (names.WRITE, phases.write),
    ):
        end = at + int(seconds * 1e9)
        if end > at:
            found.append((name, at, min(end, done.ended)))
        at = end
    return found
