"""Payloads of requests, written down where an endpoint's rules ask for it; nothing without them.

The event loop only keeps references, of the share of requests that the rules say, within bounds;
beyond them a payload is dropped and counted. A thread, which takes no more than a share of the
time, takes out what nobody should read and writes the rest into the spool: sealed with the data key
of the endpoint's owner while there is a master key, and else not at all.
"""

import asyncio
import contextlib
import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, PayloadRules
from tapster.core.envelope import DataKey
from tapster.core.telemetry import logger
from tapster.serving.documents import Documents, Payload
from tapster.serving.noting import Noted
from tapster.serving.slots import PAYLOADS_DROPPED, PAYLOADS_KEPT, Region
from tapster.serving.spool import Spool
from tapster.serving.work import Answer, Inputs, Work

log = logger(__name__)

# Payloads of a worker that may wait, and bytes of theirs.
MOST: Final = 512
MOST_BYTES: Final = 32 << 20
BATCH: Final = 64
POLL_SECONDS: Final = 0.05
# What the thread rests for each second that it works, so that requests keep the interpreter.
REST: Final = 3.0
_SCALE: Final = 1.0 / 2**64

Unwrap = Callable[[str, str], DataKey | None]


class Logged:
    """An endpoint whose payloads are written down."""

    def __init__(self, plan: EndpointPlan, rules: PayloadRules) -> None:
        self.plan = plan
        self.rules = rules
        self.documents: Documents | None = None
        self.key: DataKey | None = None
        self.broken = False
        self._consumers = frozenset({plan.tenant, *rules.consumers})
        self._salt = bytes.fromhex(rules.salt)[:64]

    def wants(self, work: Any) -> bool:
        """Whether a request is of the share: the same for the same identifier, so that the same
        request sent again is written down again, or not again. Without one it is drawn."""
        if work.tenant not in self._consumers:
            return False
        sample = self.rules.sample
        if sample >= 1:
            return True
        identity: bytes = work.identity or work.tag
        if not identity:
            return random.random() < sample
        digest = hashlib.blake2b(identity, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") * _SCALE < sample


class Recorder:
    """What one worker writes down. Everything but the thread is on the event loop.

    `unwrap` opens a tenant's wrapped data key, and gives None where nothing is encrypted.
    """

    def __init__(self, home: Path, region: Region, unwrap: Unwrap) -> None:
        self._loop = asyncio.get_running_loop()
        self._region = region
        self._unwrap = unwrap
        self._spool = Spool(home)
        self._waiting: deque[tuple[Logged, int, Payload]] = deque()
        self._count = self._bytes = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def before(self, submit: Callable[[Work], None], logged: Logged) -> Callable[[Work], None]:
        """What runs requests by `submit` and remembers those that are wanted."""

        def answer(work: Work) -> None:
            submit(_Noted(self, logged, work) if logged.wants(work) else work)

        return answer

    def failed(self, request: Any, error: Exception, elapsed: int) -> None:
        """A request got an error; `elapsed` in nanoseconds."""
        target = getattr(request, "target", None)
        logged: Logged | None = target.endpoint.logged if target is not None else None
        if logged is None or not logged.wants(request):
            return
        known = error if isinstance(error, TapsterError) else TapsterError("internal", "")
        self.keep(logged, _payload(request, elapsed, error=known), request.place)

    def keep(self, logged: Logged, payload: Payload, place: int) -> None:
        """Have a payload written down, or drop it."""
        if self._count >= MOST or self._bytes + payload.size > MOST_BYTES:
            self._region.count(place, PAYLOADS_DROPPED)
            return
        self._count += 1
        self._bytes += payload.size
        self._waiting.append((logged, place, payload))
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="payloads", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, within a few seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)

    # -- the thread

    def _write_on(self) -> None:
        while True:
            stopping = self._stop.is_set()
            began = time.thread_time()
            while self._waiting:
                self._write(
                    [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                )
                if not stopping:
                    self._stop.wait(REST * (time.thread_time() - began))
                    began = time.thread_time()
            if stopping:
                self._spool.close()
                return
            self._spool.turn()
            self._stop.wait(POLL_SECONDS)

    def _write(self, batch: list[tuple[Logged, int, Payload]]) -> None:
        groups: dict[Logged, list[tuple[int, Payload]]] = {}
        for logged, place, payload in batch:
            groups.setdefault(logged, []).append((place, payload))
        for logged, each in groups.items():
            try:
                written = self._written(logged, [payload for _, payload in each])
            except Exception as error:
                written = False
                if not logged.broken:
                    log.failure("payloads cannot be written", error, endpoint=logged.plan.name)
                logged.broken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._done, each, written)

    def _written(self, logged: Logged, payloads: list[Payload]) -> bool:
        """Whether they lie in the spool."""
        plan, rules = logged.plan, logged.rules
        if logged.documents is None:
            logged.key = self._unwrap(plan.tenant, rules.secret)
            logged.documents = Documents(plan.name, rules, logged.key)
        documents = [logged.documents.spell(payload) for payload in payloads]
        return self._spool.append(plan.tenant, plan.id, documents, logged.key)

    def _done(self, payloads: list[tuple[int, Payload]], written: bool) -> None:
        for place, payload in payloads:
            self._count -= 1
            self._bytes -= payload.size
            self._region.count(place, PAYLOADS_KEPT if written else PAYLOADS_DROPPED)


class _Noted(Noted):
    """A request whose answer is written down; who watches failures tells of an error."""

    __slots__ = ("_logged", "_recorder")

    def __init__(self, recorder: Recorder, logged: Logged, work: Work) -> None:
        super().__init__(work)
        self._recorder = recorder
        self._logged = logged

    def succeed(self, body: bytes) -> None:
        """See Work. The caller first."""
        self._work.identify()
        self._work.succeed(body)
        elapsed = time.monotonic_ns() - self._work.began
        payload = _payload(self._work, elapsed, self._answer, self._first)
        self._recorder.keep(self._logged, payload, self._work.place)


def _payload(
    work: Any,
    elapsed: int,
    answer: Answer | None = None,
    first: int = 0,
    error: TapsterError | None = None,
) -> Payload:
    model = work.target.model
    outputs = answer.arrays if answer is not None else ()
    return Payload(
        identity=work.identify(),
        time=time.time(),
        seconds=elapsed / 1e9,
        tenant=work.tenant,
        version=work.target.version,
        wire="grpc" if hasattr(work, "exchange") else "rest",
        rows=work.rows,
        signature=model.signature,
        packed=model.packed,
        inputs=work.inputs,
        outputs=outputs,
        first=first,
        alone=answer is None or answer.alone,
        error=error,
        size=_size(work.inputs) + sum([array.nbytes for array in outputs]),
    )


def _size(inputs: Inputs) -> int:
    """Bytes that a payload holds; a text counts for what an average one takes."""
    if isinstance(inputs, bytes):
        return len(inputs)
    return sum([a.size * 100 if a.dtype == object else a.nbytes for a in inputs.values()])
