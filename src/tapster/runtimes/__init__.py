"""Running a package: one file a runtime, one way to open, check and replay a package.

A runtime turns verified bytes into something that maps arrays to arrays. It never unpickles.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Signature


class Stop:
    """How a run learns that nobody waits for its answer any more. Any thread may call it."""

    def __init__(self) -> None:
        self.called = False
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None

    def call(self) -> None:
        """Have the run end as soon as it can."""
        with self._lock:
            self.called = True
            end = self._end
        if end is not None:
            end()

    def attach(self, end: Callable[[], None]) -> None:
        """Say what ends the run; it is called at once if the stop was called before."""
        with self._lock:
            self._end = end
            called = self.called
        if called:
            end()


class Description(msgspec.Struct, frozen=True):
    """What a model says of itself. `examples`: rows of values by input, empty for none."""

    signature: Signature
    examples: dict[str, Any] = {}


class LoadedModel(Protocol):
    """A model in memory, safe to call from several threads at once until `close`.

    It may say two things more of itself: `memory`, the bytes that it takes in this process, and
    `concurrency`, how many runs at once it has means for.
    """

    signature: Signature

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """The named outputs for a batch, in that order; none named means the signature's.

        `deadline` is on the monotonic clock; once `stop` is called the answer is not needed.
        Raises TapsterError(invalid) for inputs that the graph refuses, TapsterError(deadline)
        and TapsterError(cancelled).
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Runtime(Protocol):
    """Loads the packages whose manifest names it."""

    name: str

    def describe(self, files: dict[str, bytes], model_file: str) -> Description:
        """What a model that is no package yet takes and gives, by its own account.

        Raises TapsterError(unprocessable). Like `load`, it may run what is in the files: unless
        `inline` holds, both are called in a process of the model's own only.
        """
        ...

    def load(
        self, manifest: Manifest, files: dict[str, bytes], threads: int, shelf: Path | None = None
    ) -> LoadedModel:
        """Load from verified bytes. Raises TapsterError(unprocessable).

        `shelf` is a folder of this package alone, which need not exist yet: there a runtime may
        keep what it makes of the files, for itself and for other processes of this machine.
        """
        ...

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """Whether the graph is vetted to run in the server's own process."""
        ...
