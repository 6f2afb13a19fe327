"""What surrounds a model's process: its environment, its folder, what it prints."""

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# Passed on as they are; everything else of ours, keys and URLs above all, stays here.
_PASSED: Final = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
    "TAPSTER_PYTHON_MODELS", "TAPSTER_SKOPS_TRUSTED",
)  # fmt: skip
_THREADS: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)  # fmt: skip
_PREFIX: Final = "tapster-model-"
_YOUNG: Final = 60.0
_PIECE: Final = 64 << 10
_LINES: Final = 20
_WIDTH: Final = 500
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def environment(folder: Path, threads: int) -> dict[str, str]:
    """The variables of a model's process: no key, no URL, no home but its folder."""
    return {
        **{name: os.environ[name] for name in _PASSED if name in os.environ},
        **{name: str(threads) for name in _THREADS},
        **{name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")},
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


class Folder:
    """An empty folder of our own, locked while we live: what dead processes left is removed."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Delete it with all that lies in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> None:
    """Remove the folders of processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid != os.getuid() or time.time() - path.stat().st_mtime < _YOUNG:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


class Talk:
    """What a process prints, passed on to a log: so many lines a second, of so many characters.

    It reads 64 KiB a call at most, so that a process that prints for ever waits for us, not we
    for it.
    """

    def __init__(self, descriptor: int, log: logging.Logger, label: str) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.open = True
        self._log = log
        self._label = label
        self._rest = b""
        self._second = 0
        self._said = 0
        self._dropped = 0

    def read(self) -> None:
        """Pass on what was printed; `open` is false once nothing more can come."""
        with suppress(BlockingIOError):
            data = os.read(self.descriptor, _PIECE)
            self.open = bool(data)
            for line in self._split(data):
                self._pass_on(line)

    def close(self) -> None:
        """Pass on what is left, and close."""
        self.read()
        for line in self._split(b""):
            self._pass_on(line)
        self._summarise()
        os.close(self.descriptor)

    def _split(self, data: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _PIECE:
            lines.append(self._rest)
            self._rest = b""
        yield from (line for line in lines if line.strip())

    def _pass_on(self, line: bytes) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._summarise()
            self._second, self._said = second, 0
        if self._said >= _LINES:
            self._dropped += 1
            return
        self._said += 1
        text = _UNPRINTABLE.sub("?", line[:_WIDTH].decode(errors="replace"))
        self._log.info("%s printed: %s", self._label, text)

    def _summarise(self) -> None:
        if self._dropped:
            self._log.info("%s printed %d more lines", self._label, self._dropped)
            self._dropped = 0
