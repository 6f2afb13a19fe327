"""A model whose runs happen in processes of its own: `Isolated`, a LoadedModel.

Each process has a keeper: a thread that starts it, watches it, and starts another when it ends. The
first death is made good at once; further ones wait longer and longer, until one has lived well.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final
from weakref import WeakSet

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Manifest, Signature
from tapster.runtimes import Description, Stop
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.frames import Boot
from tapster.runtimes.isolated.process import Died, Left, Process, late
from tapster.runtimes.isolated.surroundings import sweep
from tapster.runtimes.onnx import check_inputs

log = logging.getLogger(__name__)

HEALTHY: Final = 10.0
FIRST_REST: Final = 0.5
LONGEST_REST: Final = 30.0
# Requests wait for a process that is started again so soon.
_SOON: Final = 1.0
_END_SECONDS: Final = 10.0

_open: Final["WeakSet[Isolated]"] = WeakSet()


class Isolated:
    """A LoadedModel in `limits.instances` processes; so many threads may `run` it at once.

    `memory`: bytes that they used together when the model had been loaded. `examples`: rows by
    input that a draft gave.

    A run past its deadline raises TapsterError(deadline) shortly after it, whatever the model
    does. A run whose process ends raises TapsterError(unavailable) that says why.
    """

    signature: Signature

    def __init__(self, boot: Boot, limits: Limits, label: str, signature: Signature | None) -> None:
        """Start the processes and wait until each has loaded the model.

        Raises TapsterError(unprocessable) when it cannot be loaded. See `of_package`, `of_draft`.
        """
        sweep()
        self._boot = boot
        self._limits = limits
        self._label = label
        self._changed = threading.Condition()
        self._free: list[Process] = []
        self._processes: set[Process] = set()
        self._loaded = 0
        # Keepers that have a process, or start one; the others wait before they do.
        self._coming = limits.instances
        self._refused: TapsterError | None = None
        self._found: Description | None = None
        self._closed = False
        self._rest = Rest()
        self._keepers = [
            threading.Thread(target=self._keep, name="keeper", daemon=True)
            for _ in range(limits.instances)
        ]
        _open.add(self)
        for keeper in self._keepers:
            keeper.start()
        self._await_first()
        self.concurrency = limits.instances
        with self._changed:
            self.memory = sum(process.base for process in self._processes)
        described = self._found or Description(signature or Signature((), ()))
        found = self.signature = described.signature
        self.examples = described.examples
        self._names = tuple(spec.name for spec in found.outputs)
        self._specs = {spec.name: spec for spec in found.outputs}

    @classmethod
    def of_package(
        cls, folder: Path, digest: str, manifest: Manifest, limits: Limits
    ) -> "Isolated":
        """The package in `folder`, which each process opens and checks by itself."""
        boot = Boot(str(folder), digest, manifest.runtime, "", limits.threads, limits.memory)
        label = f"model {manifest.name[:100]!r} ({digest[:12]})"
        return cls(boot, limits, label, manifest.signature)

    @classmethod
    def of_draft(cls, folder: Path, runtime: str, model_file: str, limits: Limits) -> "Isolated":
        """Files that are no package yet; `signature` and `examples` are what they say."""
        boot = Boot(str(folder), "", runtime, model_file, limits.threads, limits.memory)
        return cls(boot, limits, f"draft {model_file[:100]!r}", None)

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        self.join()

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str] = (),
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """See LoadedModel. Without a deadline it may take as long as loading may.

        Raises TapsterError(unavailable) also while the model's processes are not started again
        yet, and TapsterError(too_large, internal) for answers that cannot be given.
        """
        names = outputs or self._names
        self._check(inputs, names)
        until = time.monotonic() + self._limits.start if deadline is None else deadline
        if until <= time.monotonic():
            raise late()
        while True:
            process = self._take(until)
            try:
                found = process.ask(inputs, names, until, stop)
            except Left as left:
                raise left.error from None
            except Died as death:
                if death.asked:
                    raise _died(str(death)) from None
                continue
            except BaseException:
                self._put_back(process)
                raise
            self._put_back(process)
            return [self._checked(name, found.get(name)) for name in names]

    def close(self) -> None:
        """See LoadedModel; returns at once, `join` waits for the processes' end."""
        with self._changed:
            self._closed = True
            doomed = list(self._processes)
            self._changed.notify_all()
        for process in doomed:
            process.kill("it was closed")

    def join(self) -> None:
        """Wait until nothing is left of the processes of a closed model."""
        until = time.monotonic() + _END_SECONDS
        for keeper in self._keepers:
            keeper.join(max(0.0, until - time.monotonic()))

    @property
    def pids(self) -> list[int]:
        """The processes that there are now."""
        with self._changed:
            return sorted(process.pid for process in self._processes)

    # -- runs

    def _check(self, inputs: dict[str, Array], outputs: Sequence[str]) -> None:
        if problem := check_inputs(self.signature, inputs):
            raise problem
        for name in outputs:
            if name not in self._specs:
                raise TapsterError(
                    "invalid",
                    f"the model has no output {name[:100]!r}",
                    hint=f"its outputs are: {', '.join(self._names)[:500]}",
                    field=name[:100],
                )

    def _checked(self, name: str, array: Array | None) -> Array:
        """An output, if it is what the signature says."""
        spec = self._specs[name]
        if array is None or array.dtype != NUMPY_TYPE[spec.datatype]:
            given = "nothing" if array is None else str(array.dtype)
            problem = f"{given} for {name[:100]!r}, whose type is {spec.datatype}"
        elif len(array.shape) != len(spec.shape) or any(
            size not in (-1, given) for given, size in zip(array.shape, spec.shape, strict=True)
        ):
            problem = f"shape {list(array.shape)} for {name[:100]!r}, not {list(spec.shape)}"
        else:
            return array
        raise TapsterError("internal", f"the model answered {problem}")

    def _take(self, until: float) -> Process:
        """A process that waits for work. Raises TapsterError(unavailable, deadline)."""
        with self._changed:
            while not self._free:
                if self._closed:
                    raise TapsterError(
                        "unavailable", "the model has been unloaded", hint="try again"
                    )
                now = time.monotonic()
                if until <= now:
                    raise late()
                if not self._coming and self._rest.until > min(until, now + _SOON):
                    raise self._rest.error(now)
                self._changed.wait(until - now)
            return self._free.pop()

    def _put_back(self, process: Process) -> None:
        if process.alive:
            with self._changed:
                self._free.append(process)
                self._changed.notify()

    # -- keepers: threads that live as long as the model, see die_with_parent

    def _keep(self) -> None:
        while not self._closed:
            process, lived = self._begin(), 0.0
            if process is not None:
                began = time.monotonic()
                self._put_back(process)
                self._tend(process)
                lived = time.monotonic() - began
            if not self._mourn(process, lived):
                return

    def _begin(self) -> Process | None:
        """A process that has loaded the model; None, with the reason in `_rest`, if none has."""
        process = None
        try:
            process = Process(self._boot, self._limits, self._label)
            with self._changed:
                self._processes.add(process)
                closed = self._closed
            if closed:
                process.kill("it was closed")
            found = process.greet()
        except (TapsterError, Died, OSError) as error:
            self._rest.cause = str(error)
            if process is not None:
                process.kill(str(error))
                self._forget(process)
            with self._changed:
                if self._loaded < self._limits.instances:  # the first time
                    self._refused = self._refused or _unloadable(error)
                    self._changed.notify_all()
            return None
        log.info("%s: process %d has loaded it", self._label, process.pid)
        with self._changed:
            self._found = found
            self._loaded += 1
            self._changed.notify_all()
        return process

    def _tend(self, process: Process) -> None:
        """Watch a process until it ends, and see to what is left of it."""
        while process.tend():
            if process.settled():
                self._put_back(process)
            elif process.full():
                self._renew(process)
        self._rest.cause = self._forget(process)

    def _renew(self, process: Process) -> None:
        """End a process that has grown too large, if nobody has it."""
        with self._changed:
            if process not in self._free:
                return
            self._free.remove(process)
        process.kill("it had grown near its limit of memory and is replaced")

    def _forget(self, process: Process) -> str:
        cause = process.end()
        with self._changed:
            self._processes.discard(process)
            if process in self._free:
                self._free.remove(process)
        return cause

    def _mourn(self, process: Process | None, lived: float) -> bool:
        """Wait as long as it is wise before another is started; False when none is to be."""
        with self._changed:
            if self._closed or self._refused is not None:
                return False
            delay = self._rest.after(lived, time.monotonic())
            log.warning(
                "%s: process %s ended: %s; started again %s",
                self._label,
                process.pid if process else "(new)",
                self._rest.cause,
                f"in {delay:g} s" if delay else "at once",
            )
            if delay:
                self._coming -= 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed, delay)
                self._coming += 1
            return not self._closed

    def _await_first(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._refused is not None or self._loaded >= self._limits.instances
            )
        if self._refused is not None:
            self.close()
            self.join()
            raise self._refused


class Rest:
    """How long to wait before another process is started, after one that did not live well."""

    def __init__(self) -> None:
        self.until = 0.0
        self.cause = ""
        self._deaths = 0

    def after(self, lived: float, now: float) -> float:
        """Seconds to wait after the death of a process that lived so many."""
        self._deaths = 1 if lived > HEALTHY else self._deaths + 1
        delay = 0.0
        if self._deaths > 1:
            delay = min(FIRST_REST * 2.0 ** min(self._deaths - 2, 20), LONGEST_REST)
        self.until = now + delay
        return delay

    def error(self, now: float) -> TapsterError:
        """What a request is told meanwhile."""
        seconds = math.ceil(self.until - now)
        return TapsterError(
            "unavailable",
            f"the model's process has ended {self._deaths} times in a row: {self.cause}",
            hint=f"it is started again in {seconds} s; try again then",
        )


def close_all() -> None:
    """Close every model of this process and wait for the end of their processes."""
    models = list(_open)
    for model in models:
        model.close()
    for model in models:
        model.join()


def _died(cause: str) -> TapsterError:
    return TapsterError(
        "unavailable",
        f"the model's process ended in this run: {cause}",
        hint="it is started again; send the request once more if it is not the reason",
    )


def _unloadable(error: Exception) -> TapsterError:
    if isinstance(error, TapsterError):
        return error
    if isinstance(error, Died):
        return TapsterError(
            "unprocessable",
            f"the model's process ended before the model was loaded: {error}",
            hint="the log says what it printed; limits of memory and time are settings",
        )
    return TapsterError(
        "unavailable",
        f"no process can be started for the model: {error.strerror}",  # type: ignore[attr-defined]
        hint="the machine lacks memory, or processes or open files are limited",
    )
