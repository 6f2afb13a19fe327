"""One process of a model, seen from the worker: from its start to its end."""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.runtimes import Description, Stop
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.frames import (
    WORDS,
    Boot,
    Garbled,
    Hello,
    Line,
    Lost,
    Refusal,
    Silence,
)
from tapster.runtimes.isolated.runs import GRACE, Runs, short
from tapster.runtimes.isolated.surroundings import Folder, Talk, environment
from tapster.runtimes.isolated.usage import children, memory

log = logging.getLogger(__name__)

# An overdue run may go on as long as the longest good one took, at most so many seconds: a caller
# in a hurry shall not be able to end a model's process.
PATIENCE: Final = 4.0
TICK: Final = 0.1
# A process that says no more is given so many seconds to end by itself, and tell by its exit code
# why: an interpreter's end takes a while on a busy machine.
ENDING_SECONDS: Final = 2.0
OUT_OF_MEMORY: Final = 86
_FULL: Final = 0.9
_GROWN: Final = 1.5
_FAMILY_TICKS: Final = 10
_GONE_SECONDS: Final = 5.0


class Died(Exception):  # noqa: N818 - named for what happened
    """The process ended before it answered; str() is why, as in "it died of signal 11".

    `asked`: it may have begun to run the request.
    """

    def __init__(self, cause: str, *, asked: bool = True) -> None:
        super().__init__(cause)
        self.asked = asked


class Left(Exception):  # noqa: N818 - named for what happened
    """Nobody waits for the run any more, for which `error` is the reason: the keeper has it now."""

    def __init__(self, error: TapsterError) -> None:
        super().__init__()
        self.error = error


class Process:
    """A model's process. `ask` is for whoever has it to itself, the rest for its keeper.

    The keeper is one thread, which must outlive the process: see die_with_parent. `base`: bytes
    that it used when the model had been loaded.
    """

    def __init__(self, boot: Boot, limits: Limits, label: str) -> None:
        """Start it. Raises OSError."""
        self._limits = limits
        self._cause = ""
        self._closed = False
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._reaped = threading.Event()
        self._longest = 0.0
        self._overdue_until: float | None = None
        self._ticks = 0
        self.base = 0
        self._family = 0
        self._boot = boot
        self._folder = Folder()
        ours, theirs = socket.socketpair()
        printed, printing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = _spawn(theirs, printing, self._folder.path, limits.threads)
        except BaseException:
            ours.close()
            os.close(printed)
            self._folder.remove()
            raise
        finally:
            theirs.close()
            os.close(printing)
        self.pid = self._process.pid
        self._ended = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        self._line = Line(ours, WORDS, self._ended)
        self._runs = Runs(self._line, limits)
        self._talk = Talk(printed, log, label)

    # -- for the keeper

    def greet(self) -> Description | None:
        """Wait until the model is loaded; what a draft says of itself.

        Raises TapsterError(unprocessable) when the model is refused, and Died.
        """
        until = time.monotonic() + self._limits.start
        try:
            self._line.say(self._boot, until)
            while not self._line.spoken():
                if time.monotonic() > until:
                    raise Silence
                if self._wait(True) and not self._line.spoken():
                    raise Lost
            word, _ = self._line.hear(until)
        except Silence:
            raise Died(f"it was not loaded within {self._limits.start:g} s") from None
        except Lost:
            raise Died(self.end()) from None
        except Garbled:
            raise Died("it said something that is no answer") from None
        if isinstance(word, Hello):
            self.base = memory(self.pid)[0]
            return word.description
        if isinstance(word, Refusal) and not word.memory:
            raise TapsterError.from_dict(word.error)
        raise Died(short(self._limits))

    def tend(self) -> bool:
        """Wait a moment, pass on what it printed, hold it to its limits; False once it has ended.

        Raises nothing.
        """
        if self._wait(self._overdue_until is not None):
            return False
        self._ticks += 1
        private, _, shared = memory(self.pid)
        private += max(0, shared - self._runs.shared)
        if self._ticks % _FAMILY_TICKS == 0:
            self._family = sum(memory(child)[0] for child in children(self.pid))
        if private + self._family > self._limits.memory:
            self.kill(short(self._limits))
        if self._overdue_until is not None and time.monotonic() > self._overdue_until:
            self.kill("it did not stop at its deadline")
        return True

    def settled(self) -> bool:
        """Whether an overdue run has been answered, so that the process is free again."""
        if self._overdue_until is None or not self._line.spoken():
            return False
        try:
            if not self._runs.over(time.monotonic() + GRACE):
                return False
        except Lost:
            return False
        except (Silence, Garbled):
            self.kill("it said something that is no answer")
            return False
        self._overdue_until = None
        self._runs.give_back_large()
        return True

    def full(self) -> bool:
        """Whether it has grown so near its limit of memory that it is better replaced now."""
        private, asked, _ = memory(self.pid)
        return asked > _FULL * self._limits.memory and private > _GROWN * self.base

    def kill(self, cause: str) -> None:
        """End it and its children; `cause` is kept if it is the first."""
        with self._lock:
            if not self._reaped.is_set():
                self._cause = self._cause or cause
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """End it if it lives, and collect what is left of it, once; why it ended."""
        with self._lock:
            if not self._reaped.is_set():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)  # its children, and it if it lives
                code = self._process.wait()
                self._cause = self._cause or self._explain(code)
                self._reaped.set()
        with self._asking:
            if not self._closed:
                self._closed = True
                self._close()
        return self._cause

    # -- for whoever runs the model

    def ask(
        self, inputs: dict[str, Array], outputs: Sequence[str], deadline: float, stop: Stop | None
    ) -> dict[str, Array]:
        """Run the model. Raises what it raises, TapsterError(invalid, too_large), Died, Left."""
        with self._asking:  # what it reads from is not closed under its hands
            self._line.stop = stop
            try:
                return self._ask(inputs, outputs, deadline)
            except Silence:
                raise Left(self._left_alone(deadline, stop)) from None
            finally:
                self._line.stop = None

    def _ask(
        self, inputs: dict[str, Array], outputs: Sequence[str], deadline: float
    ) -> dict[str, Array]:
        began = time.monotonic()
        try:
            answers = self._runs.ask(inputs, outputs, deadline)
        except Lost as loss:
            raise Died(self._epitaph(), asked=not loss.unread) from None
        except (Garbled, ValueError):
            self.kill("it said something that is no answer")
            raise Died(self._epitaph()) from None
        self._longest = max(self._longest, time.monotonic() - began)
        return answers

    def _left_alone(self, deadline: float, stop: Stop | None) -> TapsterError:
        """Leave it to its keeper, with some time to end by itself; what to tell the caller."""
        now = time.monotonic()
        if stop is not None and stop.called:
            self._overdue_until = min(deadline, now + self._longest)
            return TapsterError("cancelled", "nobody waits for the answer any more")
        self._overdue_until = now + min(self._longest, PATIENCE)
        return late()

    @property
    def alive(self) -> bool:
        """Whether nothing has ended it yet."""
        return not self._cause

    # -- its life and its end

    def _wait(self, listen: bool) -> bool:
        """Up to a tick, or until it speaks (if we `listen`), prints or ends: whether it ended."""
        poll = select.poll()
        if self._talk.open:
            poll.register(self._talk.descriptor, select.POLLIN)
        if self._ended >= 0:
            poll.register(self._ended, select.POLLIN)
        if listen:
            poll.register(self._line, select.POLLIN)
        if self._talk.descriptor in dict(poll.poll(TICK * 1000)):
            self._talk.read()
        return self._has_ended()

    def _has_ended(self) -> bool:
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, options) is not None
        except ChildProcessError:
            return True

    def _epitaph(self) -> str:
        """Why it ended, from the keeper who sees to its end."""
        if not self._reaped.wait(ENDING_SECONDS) and not self._has_ended():
            self.kill("it hung up")
        self._reaped.wait(_GONE_SECONDS)
        return self._cause or "it ended"

    def _explain(self, code: int) -> str:
        if code == OUT_OF_MEMORY:
            return short(self._limits)
        if code == -signal.SIGKILL:
            return "it was killed (signal 9), as the system does when its memory runs out"
        if code < 0:
            return f"it died of signal {-code} ({signal.Signals(-code).name})"
        return f"it ended by itself with exit code {code}"

    def _close(self) -> None:
        self._line.close()
        self._talk.close()
        if self._ended >= 0:
            os.close(self._ended)
        self._runs.close()
        self._folder.remove()


def late() -> TapsterError:
    """The error of a run that did not end in time."""
    return TapsterError(
        "deadline", "the model did not finish in time", hint="send fewer rows, or allow more time"
    )


def _spawn(
    end: socket.socket, printing: int, folder: Path, threads: int
) -> subprocess.Popen[bytes]:
    name = "tapster.runtimes.isolated.child"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", name, str(end.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=printing,
        stderr=printing,
        pass_fds=[end.fileno()],
        cwd=folder,
        env=environment(folder, threads),
        start_new_session=True,
    )
