"""A model's process: `python -m tapster.runtimes.isolated.child SOCKET PARENT`.

It confines itself before it reads a byte of the model, loads what it is told to over the socket,
and answers one run after another in its main thread until the socket closes.
"""

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Tolerance
from tapster.core import plugins
from tapster.core.processes import die_with_parent
from tapster.runtimes import Description, LoadedModel, Runtime
from tapster.runtimes.isolated.frames import (
    ORDERS,
    Boot,
    Hello,
    Line,
    Lost,
    Need,
    Outputs,
    Refusal,
    Room,
    Run,
)
from tapster.runtimes.isolated.segments import KEEP, Segment
from tapster.runtimes.isolated.tensors import Parcel, unpack
from tapster.runtimes.onnx import cleaned
from tapster.runtimes.package import open_package, read_files

OUT_OF_MEMORY: Final = 86
_NO_NEW_PRIVILEGES: Final = 38  # prctl(2), PR_SET_NO_NEW_PRIVS
_OOM_SCORE: Final = "900"
# How libraries spell a refused allocation in exceptions of their own.
_REFUSED: Final = ("bad_alloc", "bad allocation", "Failed to allocate", "t allocate memory")


def main(descriptor: int, parent: int) -> int:
    """Serve the socket until it closes. The exit code says whether memory was lacking."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Line(socket.socket(fileno=descriptor), ORDERS)
    with suppress(Lost):
        boot, _ = line.hear(None)
        confine(boot.memory)
        try:
            model, description = _loaded(boot)
        except Exception as error:
            line.say(_refusal(0, error, _unloadable), None)
            return 0
        line.say(Hello(description), None)
        return _Desk(line, model, boot.memory).serve()
    return 0


def confine(memory: int) -> None:
    """Take from this process what a model has no use for: core files, privileges, more memory."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _loaded(boot: Boot) -> tuple[LoadedModel, Description | None]:
    """The model, and what a draft says of itself."""
    runtime: Runtime = plugins.load("tapster.runtimes", boot.runtime)()
    if boot.digest:
        package = open_package(Path(boot.folder), boot.digest)
        return runtime.load(package.manifest, package.files, boot.threads), None
    files = read_files(Path(boot.folder))
    description = runtime.describe(files, boot.model_file)
    manifest = Manifest(
        name="draft",
        task="other",
        runtime=boot.runtime,
        model_file=boot.model_file,
        signature=description.signature,
        tolerance=Tolerance(0.0, 0.0),
        files={},
    )
    return runtime.load(manifest, files, boot.threads), description


class _Desk:
    """Answers runs."""

    def __init__(self, line: Line, model: LoadedModel, memory: int) -> None:
        self._line = line
        self._model = model
        self._memory = memory
        self._inputs: Segment | None = None
        self._outputs: Segment | None = None

    def serve(self) -> int:
        """Until the socket closes (Lost), or memory is short for good."""
        while True:
            order, descriptor = self._line.hear(None)
            if not isinstance(order, Run):
                return 1
            if order.grown:
                self._inputs = _replaced(self._inputs, descriptor)
            answer = self._attempt(order)
            if isinstance(answer, Parcel):
                self._send(order.turn, answer)
            else:
                self._line.say(answer, None)
                if answer.memory and _private() > self._memory // 2:
                    return OUT_OF_MEMORY
            del answer
            self._inputs, self._outputs = _kept(self._inputs), _kept(self._outputs)

    def _attempt(self, order: Run) -> Parcel | Refusal:
        try:
            return Parcel(self._run(order))
        except Exception as error:
            refusal = _refusal(order.turn, error, _failed)
        if refusal.memory:
            gc.collect()
        return refusal

    def _run(self, order: Run) -> dict[str, Array]:
        inputs = unpack(order.inputs, self._inputs)
        answers = self._model.run(inputs, order.outputs, order.deadline)
        return dict(zip(order.outputs, answers, strict=True))

    def _send(self, turn: int, parcel: Parcel) -> None:
        if parcel.size > (self._outputs.size if self._outputs else 0):
            self._line.say(Need(turn, parcel.size), None)
            room, descriptor = self._line.hear(None)
            if not (isinstance(room, Room) and room.given):
                self._line.say(Refusal(turn, {"code": "too_large"}), None)
                return
            self._outputs = _replaced(self._outputs, descriptor)
        parcel.put(self._outputs)
        self._line.say(Outputs(turn, parcel.tensors), None)


def _replaced(segment: Segment | None, descriptor: int) -> Segment:
    if segment is not None:
        segment.close()
    return Segment(descriptor)


def _kept(segment: Segment | None) -> Segment | None:
    """The segment, if it serves for the next run too."""
    if segment is not None and segment.size > KEEP:
        segment.close()
        return None
    return segment


def _refusal(turn: int, error: Exception, spell: Callable[[Exception], TapsterError]) -> Refusal:
    if not isinstance(error, TapsterError):
        traceback.print_exc()
    if isinstance(error, MemoryError) or any(text in str(error) for text in _REFUSED):
        wanting = TapsterError("unavailable", "the model ran out of memory")
        return Refusal(turn, wanting.as_dict(), memory=True)
    refused = error if isinstance(error, TapsterError) else spell(error)
    return Refusal(turn, refused.as_dict())


def _unloadable(error: Exception) -> TapsterError:
    if isinstance(error, ImportError) and error.name:
        return TapsterError(
            "unprocessable",
            f"the model needs a library that is not installed here: {error.name[:100]}",
            hint="install it in the server's environment",
        )
    return TapsterError(
        "unprocessable",
        f"the model cannot be loaded: {type(error).__name__}: {cleaned(error)}",
        hint="the worker's log, or the job's, says where",
    )


def _failed(error: Exception) -> TapsterError:
    """A ValueError is how a model says that it does not take an input."""
    if isinstance(error, ValueError):
        return TapsterError(
            "invalid",
            f"the model refused these inputs: {cleaned(error)}",
            hint="check the values and shapes against the model's metadata",
        )
    return TapsterError(
        "internal",
        f"the model failed with {type(error).__name__}",
        hint="the worker's log says where",
    )


def _private() -> int:
    """Bytes of private memory that this process has asked for; 0 where that is not known."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever threads the model has left
