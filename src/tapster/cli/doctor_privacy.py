"""What `tapster doctor` says of encryption: the master key, the memory for it, what is still plain,
the certificate."""

import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from tapster.contract.errors import TapsterError
from tapster.core import envelope, sealed, tls
from tapster.core.settings import Settings
from tapster.core.vault import Vault

Found = tuple[str, Literal["ok", "warn", "fail"], str, str]
_LEAST: Final = 1 << 30


def look(settings: Settings) -> Iterator[Found]:
    """(name, status, what was found, remedy) of each check."""
    try:
        masters = envelope.masters_of(settings)
        if masters is None:
            remedy = "set TAPSTER_MASTER_KEY_FILE to encrypt what is stored from then on"
            yield "encryption", "ok", f"off; {_counted(settings.home)} ({remedy})", ""
        else:
            yield from _on(settings, masters)
    except TapsterError as error:
        yield "encryption", "fail", error.message, error.hint
    yield from _certificate(settings)


def _on(settings: Settings, masters: envelope.Masters) -> Iterator[Found]:
    yield "encryption", "ok", f"on, with the master key {masters.name}", ""
    yield from _home_key(settings.home, masters)
    for given in (settings.master_key_file, settings.master_key_previous_file):
        path = Path(given).expanduser()
        if given and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield "master key", "warn", "others may read its file", f"chmod 600 {path}"
    vault = Vault.of(settings)
    assert vault is not None
    yield _room(settings, shutil.disk_usage(vault.root).free)
    with suppress(OSError):  # a server uses it
        vault.root.rmdir()
    if plain := _plain(settings.home):
        remedy = "import or train it again, and delete the old version"
        yield "still plain", "warn", f"{plain} objects from before encryption was on", remedy
    else:
        yield "still plain", "ok", "nothing", ""


def _home_key(home: Path, masters: envelope.Masters) -> Iterator[Found]:
    """Under which master key the home's data keys were at its last start."""
    with suppress(OSError):
        name = (home / envelope.NAME_FILE).read_text().strip()
        if name not in masters.names:
            remedy = "set that key; or the new one, and it as TAPSTER_MASTER_KEY_PREVIOUS_FILE"
            yield "home's key", "fail", f"this home is under the master key {name}", remedy
        elif name != masters.name:
            remedy = "start once with both; then the previous one can be dropped"
            yield "home's key", "warn", f"still under the previous master key {name}", remedy
        elif masters.previous is not None:
            found = f"under the master key {name}; the previous one can be dropped"
            yield "home's key", "ok", found, ""
        else:
            yield "home's key", "ok", f"under the master key {name}", ""


def _room(settings: Settings, free: int) -> Found:
    """Whether there is memory for what is decrypted: for the largest object at the very least."""
    largest = max(map(_size, settings.home.glob("blobs/*/*/*")), default=0)
    status: Literal["ok", "warn", "fail"] = "ok" if free > _LEAST + largest else "warn"
    if free < largest:
        status = "fail"
    found = f"{free / _LEAST:.1f} GiB free in {settings.memory_folder} for decrypted content"
    if largest > _LEAST // 10:
        found += f"; the largest object takes {largest / _LEAST:.1f}"
    remedy = "give the memory file system more, or set TAPSTER_MEMORY_FOLDER to a larger one"
    return "memory folder", status, found, remedy


def _size(folder: Path) -> int:
    found = 0
    with suppress(OSError):  # it may go meanwhile
        found = sum(path.stat().st_size for path in folder.iterdir())
    return found


def _counted(home: Path) -> str:
    found = len(list(home.glob("blobs/*/*/*")))
    return f"{found} objects" if found else "nothing is stored yet"


def _plain(home: Path) -> int:
    """Blobs, uploads and job logs that are not sealed."""
    blobs = sum(not sealed.sealed(folder) for folder in home.glob("blobs/*/*/*"))
    files = [*home.glob("uploads/*/up_*/*"), *home.glob("jobs/*/log")]
    return blobs + sum(path.stat().st_size > 0 and not envelope.is_sealed(path) for path in files)


def _certificate(settings: Settings) -> Iterator[Found]:
    if not settings.encrypted:
        status: Literal["ok", "warn"] = "ok" if settings.loopback else "warn"
        remedy = "set TAPSTER_TLS=auto, or TAPSTER_TLS_CERT and TAPSTER_TLS_KEY"
        yield "tls", status, f"off; ports are bound to {settings.host}", remedy
        return
    if not settings.tls_cert:
        yield "tls", "ok", "on, with a certificate made at first start", ""
        return
    try:
        tls.Certificate(settings).context(tls.HTTP, clients=True)
    except TapsterError as error:
        yield "tls", "fail", error.message, error.hint
        return
    left = tls.days_left(Path(settings.tls_cert))
    old: Literal["ok", "warn", "fail"] = "ok" if left > 14 else "warn" if left > 0 else "fail"
    yield "tls", old, f"on; the certificate is good for {left} days", "renew it"
