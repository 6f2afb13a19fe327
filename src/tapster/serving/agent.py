"""The machine's agent: pulls the plan down, sends usage and workers' states up.

Every worker offers itself; the one that holds the lock is the agent until it dies. It runs in
threads of its own, so neither a slow nor a dead control plane is felt by a request.
"""

import fcntl
import http.client
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.plan import Usage, UsageBatch, VariantTotals, WorkerState
from tapster.core.blobs import write_atomically
from tapster.core.settings import Settings
from tapster.serving import controlling, planfile
from tapster.serving import slots as layout
from tapster.serving.planfile import Book
from tapster.serving.slots import PID, WORKERS, Slots

log = logging.getLogger(__name__)

ELECTION_SECONDS: Final = 0.5
POLL_SECONDS: Final = 20.0
REPORT_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 5.0
MAX_PLAN: Final = 256 << 20
# A delta rather than a whole plan (RFC 3229: what was asked for, as a difference).
DELTA: Final = 226


_STATES: Final = msgspec.json.Decoder(WorkerState)


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
        status, body = self._ask("GET", path, b"", wait + ANSWER_SECONDS)
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
            states = self.workers()
            if states == sent and time.monotonic() < due:
                continue
            batch = UsageBatch(
                agent=socket.gethostname(),
                workers=states,
                usage=self.usage(),
                variants=self.variants(),
            )
            try:
                status, _ = self._ask(
                    "POST", "/internal/report", msgspec.json.encode(batch), ANSWER_SECONDS
                )
                sent = states if status in {200, 204} else None
            except (OSError, http.client.HTTPException):
                sent = None
            due = time.monotonic() + (REPORT_SECONDS if sent is not None else RETRY_SECONDS)
            if sent is None:
                self._stop.wait(RETRY_SECONDS)

    def workers(self) -> tuple[WorkerState, ...]:
        """The state of every living worker of this machine."""
        return published(self._folder, self._slots, min(self._settings.workers, WORKERS))

    def usage(self) -> tuple[Usage, ...]:
        """What was used since the machine's counters were made."""
        return tuple(Usage(*line) for line in self._slots.usage())

    def variants(self) -> tuple[VariantTotals, ...]:
        """How every version has answered since the machine's counters were made."""
        found = []
        for number, tenant, endpoint, version in self._slots.places():
            if version:
                counts = self._slots.totals(number)
                found.append(VariantTotals(tenant, endpoint, version, **_totals(counts)))
        return tuple(found)

    def _ask(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
        connection = controlling.connect(self._settings, timeout)
        key = planfile.read_key(self._settings.home).decode("latin-1")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_PLAN)
        finally:
            connection.close()


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
