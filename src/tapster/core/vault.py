"""A folder in memory for what must not lie on a disk in the clear, one an installation and machine.

It is on a memory file system (tmpfs), readable by its owner only: what one process has decrypted
there the others map, so a machine decrypts once. It goes with a reboot; the supervisor empties it
when it starts and when it stops.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.core.envelope import encrypting
from tapster.core.settings import Settings

_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS: Final = Path("/proc/self/mounts")
# Content that nobody has asked for during so many seconds is decrypted again when it is.
UNUSED: Final = 600.0


class Vault:
    """The folder. Processes of one user share it; any of them may make it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"

    @classmethod
    def of(cls, settings: Settings) -> "Vault | None":
        """The vault of an installation; None while it does not encrypt.

        Raises TapsterError(unavailable) when there is no memory file system to make it on.
        """
        if not encrypting(settings):
            return None
        parent = Path(settings.memory_folder)
        if _kind(parent) not in _MEMORY:
            raise TapsterError(
                "unavailable",
                f"{parent} is no memory file system, and decrypted content may lie nowhere else",
                hint="set TAPSTER_MEMORY_FOLDER to a tmpfs (Linux mounts one at /dev/shm)",
                field="memory_folder",
            )
        home = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:16]
        vault = cls(parent / f"tapster-{os.getuid()}-{home}")
        vault.open()
        return vault

    def open(self) -> None:
        """Make the folder, or see that it is ours: others may write beside it."""
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:  # and no folder
            pass
        except OSError as error:
            raise short(error) from error
        found = self.root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise TapsterError(
                "unavailable",
                "the folder for decrypted content is somebody else's, or others may read it",
                hint="remove it, and see who makes such folders on this machine",
            )

    def adopt(self) -> None:
        """Have this process and its children make their temporary files in here."""
        folder = self.folder("tmp")
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def folder(self, name: str) -> Path:
        """A folder in here, made if need be."""
        path = self.root / name
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise short(error) from error
        return path

    def get(self, key: str) -> Path | None:
        """The decrypted folder of a blob, if it lies here; it is fresh again for `UNUSED`."""
        path = self._objects / key
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """A new folder to decrypt a blob into; `get` finds it once all of it is there.

        One process at a time makes a blob: whoever waits must look again. Raises
        TapsterError(storage_full) when there is too little memory.
        """
        locks = self.folder("locks")
        name = hashlib.sha256(key.encode()).hexdigest()[:2]  # few files, that need no tidying
        try:
            lock = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise short(error) from error
        staging = self.folder("tmp") / uuid4().hex
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            staging.mkdir(mode=0o700)
            yield staging
            target = self._objects / key
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not target.exists():
                staging.rename(target)
        except OSError as error:
            raise short(error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)

    def drop(self, key: str) -> None:
        """Forget the decrypted copy of a blob, or of every blob whose key begins so."""
        shutil.rmtree(self._objects / key, ignore_errors=True)

    def tidy(self, age: float = UNUSED) -> None:
        """Forget what nobody has asked for during `age` seconds and nobody holds."""
        for path in self._objects.glob("*/*/*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime < age or _held(path):
                    continue
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything but the jobs' folders, whose logs may still have to be sealed."""
        for path in self.root.iterdir():
            if path.name != "jobs":
                shutil.rmtree(path, ignore_errors=True)
        for path in (*self.root.glob("jobs/*"), self.root / "jobs", self.root):
            with suppress(OSError):  # not empty
                path.rmdir()


def hold(folder: Path) -> int:
    """Keep a folder of a vault from being tidied away, until the descriptor is closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def link(folder: Path, target: Path) -> Path:
    """`folder` under another name that stays when it goes: hard links on the same file system.

    Where that cannot be, `folder` itself.
    """
    try:
        if os.stat(folder).st_dev != os.stat(target.parent).st_dev:
            return folder
        shutil.copytree(folder, target, copy_function=os.link)
    except OSError as error:
        raise short(error) from error
    return target


def _held(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _kind(folder: Path) -> str:
    """The type of the file system that a folder lies on, as Linux names it; "" if unknown."""
    path, best, kind = os.path.realpath(folder), "", ""
    with suppress(OSError):
        for line in _MOUNTS.read_text().splitlines():
            _, point, found, *_ = line.split(" ")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind if Path(path).is_dir() else ""


def short(error: OSError) -> TapsterError:
    """What to say of the system's refusal to write in a vault, which is memory and no disk."""
    found = storage_error(error)
    if found.code != "storage_full":
        return found
    return TapsterError(
        "storage_full",
        "the memory for decrypted content is full; nothing was lost",
        hint="give TAPSTER_MEMORY_FOLDER's file system more, or the machine; `tapster doctor` says"
        " how much there is",
    )
