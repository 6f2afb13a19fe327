"""ONNX Runtime sessions: how they are set up, and how processes share one copy of large weights.

Threads never spin. All sessions of a process take what runs need from one arena, so that a
thousand models hold the memory of those that run, not of all.

Large weights are shared through the page cache. A session is opened once from the verified model
and saved as ONNX Runtime has optimised it: the graph in one file; in another the weights, also as
its kernels have packed them for this processor. Every process then maps that file. Both are
checked against digests written with them before anything is parsed, and made anew when they
differ, or when ONNX Runtime or the processor is another one.
"""

import fcntl
import hashlib
import logging
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path, PurePath
from typing import Any, Final
from uuid import uuid4

import msgspec

from tapster.contract.errors import TapsterError
from tapster.core import heap
from tapster.core.crypto import file_digest
from tapster.runtimes.weights import LARGE, Parts

log = logging.getLogger(__name__)

_PATH: Final = re.compile(r"(?:[A-Za-z]:)?(?:/|\\)[\w.@+-]+(?:(?:/|\\)[\w.@+-]+)+(?::\d+)?")
_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SHELF_FORMAT: Final = "1"
_GRAPH, _WEIGHTS, _RAW, _SEAL, _LOCK = "graph.onnx", "weights.bin", "raw.bin", "seal.json", ".lock"

_measuring: Final = threading.Lock()
_sharing: Final = threading.Lock()


class _Seal(msgspec.Struct, frozen=True):
    """Digests (SHA-256, hex) of the two files of a shelved model."""

    graph: str
    weights: str


_SEALS: Final = msgspec.json.Decoder(_Seal)


def open_session(
    model: bytes, threads: int, folder: Path | None = None, saving: dict[str, str] | None = None
) -> Any:
    """A session on the CPU with `threads` threads a run, from bytes.

    The format is forced: ONNX Runtime would otherwise take its own unvetted one for ONNX. Weights
    may lie in files of `folder`, else no file is touched. `saving` holds more of its options.
    Raises TapsterError(unprocessable).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    entries = {
        "session.load_model_format": "ONNX",
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.use_env_allocators": "1",
        **(saving or {}),
    }
    if folder is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(folder)
    if saving and folder is not None:
        options.optimized_model_filepath = str(folder / _GRAPH)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        _share_arena()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TapsterError(
            "unprocessable",
            f"ONNX Runtime does not accept the model: {cleaned(error)}",
            hint="check it with onnx.checker; export it for an older opset if that is the reason",
        ) from None


def open_shelved(parts: Parts, shelf: Path, threads: int) -> tuple[Any, int] | None:
    """A session that shares its weights with all that open the same parts on the same shelf, and
    the bytes that it takes, shared ones included.

    None when it cannot be made, because the disk is full or ONNX Runtime cannot save the model.
    """
    try:
        graph, folder = _shelved(parts, shelf)
        session, memory = measured(partial(open_session, graph, threads, folder))
    except (OSError, TapsterError) as error:
        log.warning("weights are not shared: %s", cleaned(error))
        return None
    return session, memory + sum(weight.nbytes for weight in parts.weights)


def measured(make: Callable[[], Any]) -> tuple[Any, int]:
    """What `make` makes, and the bytes of heap that it took; one at a time."""
    with _measuring:
        _share_arena()  # what the library itself takes is no model's
        before = heap.allocated()
        made = make()
        return made, max(0, heap.allocated() - before)


def cleaned(error: Exception) -> str:
    """ONNX Runtime's message in one short line, paths cut to their last part."""
    text = " ".join(_PREFIX.sub("", str(error)).split())
    return _PATH.sub(lambda match: PurePath(match[0]).name, text)[:300] or type(error).__name__


def _shelved(parts: Parts, shelf: Path) -> tuple[bytes, Path]:
    """The graph and the folder of its weights, made of `parts` unless they are there already."""
    folder = shelf / _machine()
    graph = _verified(folder)
    if graph is None:
        shelf.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(shelf):
            graph = _verified(folder) or _made(parts, shelf, folder)
    return graph, folder


def _made(parts: Parts, shelf: Path, folder: Path) -> bytes:
    """Put a model on the shelf, in place of whatever else lies there; its graph."""
    for other in shelf.iterdir():
        if other.is_dir():
            shutil.rmtree(other)
    staging = shelf / uuid4().hex
    staging.mkdir(mode=0o700)
    try:
        parts.write(staging / _RAW)
        saving = {
            "session.save_external_prepacked_constant_initializers": "1",
            "session.optimized_model_external_initializers_file_name": _WEIGHTS,
            "session.optimized_model_external_initializers_min_size_in_bytes": str(LARGE),
        }
        open_session(parts.thin(_RAW), 1, staging, saving)
        (staging / _RAW).unlink()
        found = _Seal(file_digest(staging / _GRAPH), file_digest(staging / _WEIGHTS))
        (staging / _SEAL).write_bytes(msgspec.json.encode(found))
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return (folder / _GRAPH).read_bytes()


def _verified(folder: Path) -> bytes | None:
    """The graph in a folder, if it and the weights are what was written there."""
    try:
        seal = _SEALS.decode((folder / _SEAL).read_bytes())
        graph = (folder / _GRAPH).read_bytes()
        intact = seal == _Seal(hashlib.sha256(graph).hexdigest(), file_digest(folder / _WEIGHTS))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return graph if intact else None


@contextmanager
def _locked(shelf: Path) -> Iterator[None]:
    """One process at a time makes something of this package."""
    lock = os.open(shelf / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@cache
def _machine() -> str:
    """A name for what packed weights depend on: ONNX Runtime, and the processor's abilities."""
    import onnxruntime

    flags = ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    words = (_SHELF_FORMAT, onnxruntime.__version__, platform.machine(), flags)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def _share_arena() -> None:
    """Have the sessions of this process take memory for runs from one arena."""
    with _sharing:
        _register_arena()


@cache
def _register_arena() -> None:
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)
