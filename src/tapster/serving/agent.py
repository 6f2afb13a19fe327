"""The machine's agent: pulls the plan and grants down, sends usage and workers' states up.

Every worker offers itself; the one that holds the lock is the agent until it dies. It runs in
threads of its own, so neither a slow nor a dead control plane is felt by a request.
"""

import fcntl
import http.client
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.plan import UsageBatch, VariantTotals, WorkerState
from tapster.contract.usage import UsageReceipt
from tapster.core.blobs import write_atomically
from tapster.core.settings import Settings
from tapster.serving import controlling, granting, planfile, spool
from tapster.serving import slots as layout
from tapster.serving.collecting import Collector, machine_id
from tapster.serving.granting import Granting
from tapster.serving.planfile import Book
from tapster.serving.slots import PID, WORKERS, Slots
from tapster.serving.wallet import Wallet

log = logging.getLogger(__name__)

ELECTION_SECONDS: Final = 0.5
POLL_SECONDS: Final = 20.0
REPORT_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 5.0
# A report of all is answered, or given up, within this time.
REPORTED_SECONDS: Final = 30.0
# A whole plan of very many keys is not made in a moment.
PLAN_SECONDS: Final = 60.0
# Bytes a second that a report is taken in at least.
SLOWEST: Final = 1 << 20
MAX_PLAN: Final = 256 << 20
# A delta rather than a whole plan (RFC 3229: what was asked for, as a difference).
DELTA: Final = 226


_STATES: Final = msgspec.json.Decoder(WorkerState)
_RECEIPTS: Final = msgspec.json.Decoder(UsageReceipt)


def publish(folder: Path, state: WorkerState) -> None:
    """Write a worker's state where whichever worker is the agent finds it."""
    write_atomically(folder / f"worker-{state.worker}.json", msgspec.json.encode(state))


def published(folder: Path, slots: Slots, workers: int = WORKERS) -> tuple[WorkerState, ...]:
    """What every living worker of this machine, of the first so many, has last published."""
    found = []
    for index in range(workers):
        try:
            data = (folder / f"worker-{index}.json").read_bytes()
            state = _STATES.decode(data)
        except (OSError, msgspec.MsgspecError):
            continue
        if state.pid == slots.state(index, PID) and _alive(state.pid):
            found.append(state)
    return tuple(found)


class Agent:
    """The threads of one worker that act once the agent's lock is held."""

    def __init__(self, settings: Settings, slots: Slots) -> None:
        self._settings = settings
        self._folder = settings.home / "run"
        self._slots = slots
        self._stop = threading.Event()
        self._lock = -1
        self._book: Book | None = None
        self._collector: Collector | None = None
        # Who waits for a report of all that was counted until now, and whether it was taken in.
        self._waiting: deque[Future[bool]] = deque()

    def start(self) -> None:
        """Begin to stand for election."""
        path = self._folder / "agent.lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        threading.Thread(target=self._stand, name="agent", daemon=True).start()

    def stop(self) -> None:
        """Stop acting; the lock goes with the process."""
        self._stop.set()

    def _stand(self) -> None:
        while not self._stop.is_set():
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._stop.wait(ELECTION_SECONDS)
            else:
                break
        else:
            return
        threading.Thread(target=self._report_on, name="report", daemon=True).start()
        threading.Thread(target=self._grant_on, name="grants", daemon=True).start()
        shipping = partial(spool.ship, self._settings.home, self._ask, self._stop)
        threading.Thread(target=shipping, name="payloads-up", daemon=True).start()
        self._pull_on()

    # -- down

    def _pull_on(self) -> None:
        whole, wait = False, 0.0
        while not self._stop.is_set():
            try:
                self._pull(whole, wait)
                whole, wait = False, POLL_SECONDS
            except ValueError as error:
                # What came does not go on from what is held.
                log.warning("the plan is asked for as a whole: %s", error)
                whole, wait = True, 0.0
                self._stop.wait(RETRY_SECONDS)
            except (OSError, http.client.HTTPException, TapsterError) as error:
                wait = 0.0
                log.debug("no plan: %s", error)
                self._stop.wait(RETRY_SECONDS)

    def _pull(self, whole: bool, wait: float) -> None:
        """Ask for what is new. Raises ValueError for what cannot be added to what is held.

        A number is told with its mark: a control plane with another history, such as one restored
        from a backup, does not know it, and answers with a whole plan.
        """
        book = self._opened()
        after = -1 if whole or book.long else book.number
        path = f"/internal/plan?after={after}&mark={book.mark}&wait={wait:g}"
        status, body = self._ask("GET", path, b"", wait + PLAN_SECONDS)
        if status == DELTA:
            book.append(body)
        elif status == 200:
            book.replace(body)
        elif status != 204:
            raise http.client.HTTPException(f"the control plane answered {status}")

    def _opened(self) -> Book:
        """The saved plan, read again when somebody else has touched it, or under another key."""
        key = planfile.read_key(self._settings.home)
        book = self._book
        if book is None or book.key != key or not book.intact():
            if book is not None:
                book.close()
            book = self._book = Book(self._folder, key)
        return book

    # -- up

    def _report_on(self) -> None:
        sent: tuple[WorkerState, ...] | None = None
        due = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            states, waiting = self.workers(), len(self._waiting)
            if states == sent and not waiting and time.monotonic() < due:
                continue
            try:
                counts = bool(waiting) or time.monotonic() >= due
                sent = states if self._report(states, counts, bool(waiting)) else None
            except (OSError, http.client.HTTPException):
                sent = None
            for _ in range(waiting):
                self._waiting.popleft().set_result(sent is not None)
            due = time.monotonic() + (REPORT_SECONDS if sent is not None else RETRY_SECONDS)
            if sent is None:
                self._stop.wait(RETRY_SECONDS)

    def _report_all(self) -> bool:
        """Have all reported that was counted until now; whether it was taken in."""
        done: Future[bool] = Future()
        self._waiting.append(done)
        try:
            return done.result(REPORTED_SECONDS)
        except TimeoutError:
            return False

    def _report(self, states: tuple[WorkerState, ...], counts: bool, everything: bool) -> bool:
        """Send a report, with what was counted or without; whether it was taken in."""
        collector = self._collecting() if counts else None
        ledger = collector.report(everything) if collector is not None else None
        machine = machine_id(self._settings.home)  # host names are not everybody's own
        batch = UsageBatch(machine, states, variants=self.variants(), ledger=ledger)
        body = msgspec.json.encode(batch)
        timeout = ANSWER_SECONDS + len(body) / SLOWEST
        status, answer = self._ask("POST", "/internal/report", body, timeout)
        if status not in {200, 204}:
            return False
        if collector is not None and ledger is not None:
            collector.acknowledge(ledger, _receipt(answer))
        return True

    def _collecting(self) -> Collector | None:
        """The journals of this machine; None while there is no room to begin."""
        if self._collector is None:
            try:
                self._collector = Collector(self._settings.home)
            except (OSError, TapsterError) as error:
                log.error("usage cannot be reported: %s", error)
        return self._collector

    def _grant_on(self) -> None:
        """Keep the wallet filled."""
        while not self._stop.is_set():
            try:
                home = self._settings.home
                wallet, machine = Wallet(home), machine_id(home)
                filling = Granting(wallet, machine, self._ask_for_grants, self._report_all)
            except (OSError, TapsterError) as error:
                log.error("budgets cannot be refilled: %s", error)
                self._stop.wait(ANSWER_SECONDS)
            else:
                filling.run(self._stop)

    def _ask_for_grants(self, body: bytes) -> tuple[int, bytes]:
        return self._ask("POST", "/internal/grants", body, granting.ANSWER_SECONDS)

    def workers(self) -> tuple[WorkerState, ...]:
        """The state of every living worker of this machine."""
        return published(self._folder, self._slots, min(self._settings.workers, WORKERS))

    def variants(self) -> tuple[VariantTotals, ...]:
        """How every version has answered since the machine's counters were made."""
        found = []
        slots = self._slots
        for number, given, tenant, endpoint, version in slots.places():
            if version:
                counts = slots.totals(number)
                if slots.labels.number(number) == given:
                    found.append(VariantTotals(tenant, endpoint, version, **_totals(counts)))
        return tuple(found)

    def _ask(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
        key = planfile.read_key(self._settings.home).decode("latin-1")
        if not key:
            raise http.client.HTTPException("the control plane has made no key yet")
        connection = controlling.connect(self._settings, timeout)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_PLAN)
        finally:
            connection.close()


def _receipt(answer: bytes) -> UsageReceipt:
    try:
        return _RECEIPTS.decode(answer)
    except msgspec.MsgspecError:
        return UsageReceipt()


def _totals(counts: list[int]) -> dict[str, Any]:
    """The counters of a place by the names that a report gives them."""
    buckets = counts[layout.LATENCY_BUCKETS :][: len(layout.LATENCY_BOUNDS) + 1]
    return {
        "ok": counts[layout.OK],
        "client_errors": counts[layout.CLIENT_ERRORS],
        "server_errors": counts[layout.SERVER_ERRORS],
        "latency_ns": counts[layout.LATENCY_SUM],
        "buckets": tuple(buckets),
        "same": counts[layout.SHADOW_SAME],
        "different": counts[layout.SHADOW_DIFFERENT],
        "broken": counts[layout.SHADOW_BROKEN],
        "dropped": counts[layout.SHADOW_DROPPED],
        "golden_same": counts[layout.GOLDEN_SAME],
        "golden_different": counts[layout.GOLDEN_DIFFERENT],
    }


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
