"""Requests mirrored to versions that nobody is answered from.

A copy is made once the caller has its answer. It waits for a pause of the worker, runs on nobody's
bill, and its answer is compared with the caller's: labels must be equal, floats within the
tolerance of the version that answered. A worker that is busy drops its copies, as it does those
beyond a bound, so callers do not wait for a shadow.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest
from tapster.runtimes import parity
from tapster.serving.batcher import Answer, Failure, Inputs, Work
from tapster.serving.layouts import Relay, relay
from tapster.serving.noting import Noted
from tapster.serving.slots import (
    SHADOW_BROKEN,
    SHADOW_DIFFERENT,
    SHADOW_DROPPED,
    SHADOW_SAME,
    Region,
)
from tapster.serving.traffic import Inner, count_failure

# Copies that may wait or run at once, and bytes of theirs.
MOST: Final = 256
MOST_BYTES: Final = 16 << 20
# Copies are looked at so often (seconds), and run while the worker's loop computes less of the
# time than this.
PAUSE: Final = 0.01
BUSY: Final = 0.7


class Mirror:
    """Stands before a version: passes requests on to it, and copies of them to the shadows.

    Everything but `Witness.render` and `Copy.render` is on the event loop. Raises
    TapsterError(unprocessable) for shadows that do not take what the version takes.
    """

    def __init__(
        self,
        submit: Callable[[Work], None],
        manifest: Manifest,
        shadows: Sequence[Inner],
        region: Region,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._submit = submit
        self._shadows = [
            (shadow, relay(manifest.signature, shadow.model.signature)) for shadow in shadows
        ]
        self._waiting: list[Witness] = []
        self._bytes = 0
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._began = (0.0, 0.0)
        self.manifest = manifest
        self.region = region

    def submit(self, work: Work) -> None:
        """Run a request; see Target."""
        self._submit(Witness(self, work))

    def close(self) -> None:
        """Send no more copies: the shadows may be unloaded."""
        self._drop()
        self._shadows = []

    def answered(self, seen: "Witness") -> None:
        """A caller has its answer."""
        full = len(self._waiting) + self._running >= MOST
        if full or self._bytes + seen.size > MOST_BYTES:
            self._count_dropped()
            return
        self._waiting.append(seen)
        self._bytes += seen.size
        if self._timer is None:
            self._began = (time.thread_time(), time.monotonic())
            self._timer = self._loop.call_later(PAUSE, self._pause)

    def finished(self, size: int) -> None:
        """A copy has been answered."""
        self._running -= 1
        self._bytes -= size

    def _pause(self) -> None:
        """Run what waits, unless the worker has little time to spare."""
        self._timer = None
        spent = time.thread_time() - self._began[0]
        if spent > BUSY * (time.monotonic() - self._began[1]):
            self._drop()
            return
        waiting, self._waiting = self._waiting, []
        self._bytes -= sum(seen.size for seen in waiting)
        for seen in waiting:
            for shadow, translate in self._shadows:
                self._copy(seen, shadow, translate)

    def _copy(self, seen: "Witness", shadow: Inner, translate: Relay) -> None:
        copy = Copy(self, seen, shadow)
        self._running += 1
        self._bytes += copy.size
        try:
            copy.inputs = translate(seen.inputs)
            shadow.submit(copy)
        except TapsterError as error:
            if error.code == "unavailable":
                self.finished(copy.size)
                self.region.count(shadow.place, SHADOW_DROPPED)
            else:
                copy.fail(error)
        except Exception as error:
            copy.fail(error)

    def _drop(self) -> None:
        for _ in self._waiting:
            self._count_dropped()
        self._bytes -= sum(seen.size for seen in self._waiting)
        self._waiting = []

    def _count_dropped(self) -> None:
        for shadow, _ in self._shadows:
            self.region.count(shadow.place, SHADOW_DROPPED)


class Witness(Noted):
    """A caller's request, whose answer is compared; there is nothing to compare an error with."""

    __slots__ = ("_mirror", "size")

    def __init__(self, mirror: Mirror, work: Work) -> None:
        super().__init__(work)
        self._mirror = mirror
        self.size = _size(work.inputs)

    def succeed(self, body: bytes) -> None:
        """See Work. The caller first."""
        self._work.succeed(body)
        self._mirror.answered(self)

    def outputs(self) -> dict[str, Array]:
        """What the caller was answered, by the names of the outputs."""
        assert self._answer is not None
        names = [spec.name for spec in self._mirror.manifest.signature.outputs]
        return rows_of(self._answer, self._first, self.rows, names)


class Copy:
    """A request as a shadow is asked it: Work for its batcher."""

    __slots__ = (
        "_mirror",
        "_same",
        "_seen",
        "_shadow",
        "account",
        "began",
        "deadline",
        "done",
        "inputs",
        "place",
        "rows",
        "size",
        "tenant",
    )

    def __init__(self, mirror: Mirror, seen: Witness, shadow: Inner) -> None:
        self._mirror = mirror
        self._seen = seen
        self._shadow = shadow
        self._same = False
        self.inputs: Inputs = b""
        self.rows = seen.rows
        self.tenant = seen.tenant
        self.began = time.monotonic_ns()
        self.deadline = (self.began - seen.began) / 1e9 + seen.deadline
        self.place = shadow.place
        self.account = mirror.region.unbilled
        self.size = seen.size
        self.done = False

    def identify(self) -> str:
        """See Work."""
        return self._seen.identify()

    def render(self, answer: Answer, first: int) -> bytes:
        """See Work: compares."""
        manifest = self._mirror.manifest
        expected = self._seen.outputs()
        names = [spec.name for spec in self._shadow.model.signature.outputs]
        got = rows_of(answer, first, self.rows, names)
        self._same = expected.keys() == got.keys() and not parity.compare(
            expected, got, manifest.tolerance, manifest.signature.classes
        )
        return b""

    def withhold(self, size: int) -> None:
        """See Work."""

    def succeed(self, body: bytes) -> None:
        """See Work."""
        self._finish(SHADOW_SAME if self._same else SHADOW_DIFFERENT)

    def fail(self, error: Failure) -> None:
        """See Work."""
        if self.done:
            return
        count_failure(self._mirror.region, self, error)
        self._finish(SHADOW_BROKEN)

    def _finish(self, word: int) -> None:
        self.done = True
        self._mirror.region.count(self._shadow.place, word)
        self._mirror.finished(self.size)


def rows_of(answer: Answer, first: int, rows: int, names: Sequence[str]) -> dict[str, Array]:
    """The part of an answer that belongs to one request, by output."""
    arrays = answer.arrays
    if not answer.alone:
        arrays = [array[first : first + rows] for array in arrays]
    return dict(zip(names, arrays, strict=True))


def _size(inputs: Inputs) -> int:
    """Bytes that a request holds; a text counts for what an average one takes."""
    if isinstance(inputs, bytes):
        return len(inputs)
    return sum(
        array.size * 100 if array.dtype == object else array.nbytes for array in inputs.values()
    )
