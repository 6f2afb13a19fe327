"""Checks of an installation: each says ok, warn or fail, and how to mend it."""

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tapster.client.local import healthy
from tapster.client.transport import locate, read_run
from tapster.contract.errors import TapsterError
from tapster.core import plugins
from tapster.core.settings import Settings, load

Status = Literal["ok", "warn", "fail"]
GIB: Final = 1 << 30
LIBRARIES: Final = (
    "alembic", "cryptography", "datasketches", "fastapi", "httptools", "httpx", "msgspec",
    "numpy", "obstore", "onnx", "onnxmltools", "onnxruntime", "optuna", "polars", "psutil",
    "rich", "scikit-learn", "skl2onnx", "sqlalchemy", "typer", "uvicorn", "uvloop",
)  # fmt: skip
OPTIONAL: Final = {"lightgbm": "boost", "xgboost-cpu": "boost", "psycopg": "postgres"}
GROUPS: Final = ("tapster.runtimes", "tapster.executors", "tapster.blob_stores", "tapster.trainers")
OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` is what to do unless the status is ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(home: Path | None = None) -> list[Check]:
    """Look at everything; a check that cannot be made fails instead of raising."""
    try:
        settings = load(home=home)
    except TapsterError as error:
        return [Check("settings", "fail", error.message, error.hint)]
    return [check for look in CHECKS for check in _safely(look, settings)]


def passed(checks: list[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.status != "fail" for check in checks)


def view(checks: list[Check]) -> Any:
    """A line a check, remedies under what needs one."""
    from rich.text import Text

    from tapster.cli.output import inert

    color = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    lines = Text()
    for check in checks:
        lines.append(f"{check.status:<5}", color[check.status])
        lines.append(inert(f"{check.name:<14} {check.found}\n"))
        if check.remedy and check.status != "ok":
            lines.append(inert(f"{'':<20}-> {check.remedy}\n"))
    worst = "all is well" if passed(checks) else "something is wrong; see the lines marked fail"
    lines.append(worst)
    return lines


def _safely(look: Callable[[Settings], Iterator[Check]], settings: Settings) -> list[Check]:
    try:
        return list(look(settings))
    except Exception as error:
        name = look.__name__.strip("_")
        return [Check(name, "fail", f"{type(error).__name__}: {error}", "report this")]


def _python(settings: Settings) -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "fail", found, "install Python 3.11 or newer")
    lib = tuple(int(part) for part in sqlite3.sqlite_version.split("."))
    status: Status = "ok" if lib >= OLDEST_SQLITE else "fail"
    yield Check("sqlite", status, sqlite3.sqlite_version, "use a Python with a newer SQLite")


def _libraries(settings: Settings) -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    versions, missing = {}, []
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    needed = [name for name in missing if name not in OPTIONAL]
    found = ", ".join(f"{name} {number}" for name, number in versions.items())
    if needed:
        yield Check("libraries", "fail", f"missing: {', '.join(needed)}", "pip install tapster")
    else:
        yield Check("libraries", "ok", found)
    for name in sorted(set(missing) & set(OPTIONAL)):
        remedy = f"pip install 'tapster[{OPTIONAL[name]}]' if you want it"
        yield Check("extra", "ok", f"{name} is not installed ({remedy})")


def _plug_ins(settings: Settings) -> Iterator[Check]:
    count, broken = 0, False
    for group in GROUPS:
        for name in plugins.names(group):
            try:
                plugins.load(group, name)
                count += 1
            except Exception as error:
                broken = True
                reason = error.message if isinstance(error, TapsterError) else repr(error)
                hint = error.hint if isinstance(error, TapsterError) else ""
                remedy = hint or "update or uninstall the package that brings it"
                status: Status = "warn" if isinstance(error, TapsterError) else "fail"
                yield Check("plug-in", status, f"{group} {name}: {reason}", remedy)
    if not broken:
        yield Check("plug-ins", "ok" if count else "fail", f"{count} load", "pip install tapster")


def _home(settings: Settings) -> Iterator[Check]:
    home = settings.home
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        remedy = "give it to this user, or choose another with TAPSTER_HOME"
        yield Check("home", "fail", f"{home} cannot be written", remedy)
        return
    yield Check("home", "ok", f"{home}{'' if home.exists() else ' (made at first start)'}")
    free = shutil.disk_usage(existing).free
    status: Status = "ok" if free > 5 * GIB else "warn" if free > GIB else "fail"
    remedy = "free some space, or move the home: TAPSTER_HOME"
    yield Check("disk", status, f"{free / GIB:.1f} GiB free", remedy)


def _memory(settings: Settings) -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available
    status: Status = "ok" if free > GIB else "warn"
    found = f"{free / GIB:.1f} GiB available, {os.cpu_count()} processors"
    yield Check("memory", status, found, "close something; training needs about 1 GiB")


def _clock(settings: Settings) -> Iterator[Check]:
    import time

    year = time.gmtime().tm_year
    good = 2025 <= year < 2100
    remedy = "set the clock; leases and keys go by it"
    yield Check(
        "clock",
        "ok" if good else "fail",
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        remedy,
    )


def _privacy(settings: Settings) -> Iterator[Check]:
    from tapster.cli import doctor_privacy

    yield from (Check(*found) for found in doctor_privacy.look(settings))


def _server(settings: Settings) -> Iterator[Check]:
    running = read_run(settings.home)
    address = locate(None, None, settings.home)
    if address is None:
        yield from _nobody(settings)
    elif healthy(address):
        pid = f", process {running['pid']}" if running else ""
        yield Check("server", "ok", f"answers at {address.url}{pid}")
    else:
        status: Status = "fail"
        remedy = "start it with: tapster up; or correct TAPSTER_URL"
        yield Check("server", status, f"{address.url} does not answer", remedy)


def _nobody(settings: Settings) -> Iterator[Check]:
    holder = _holder(settings.home)
    if holder:
        remedy = f"if it is no Tapster starting or ending, look at process {holder}"
        yield Check("server", "warn", f"none answers, yet process {holder} holds the home", remedy)
        return
    yield Check("server", "ok", "none is running on this home (tapster up starts one)")
    yield from _ports(settings)


def _holder(home: Path) -> str:
    import fcntl

    try:
        with (home / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read(32).decode(errors="replace") or "unknown"
    except OSError:
        pass
    return ""


def _ports(settings: Settings) -> Iterator[Check]:
    import socket

    ports = (settings.port, settings.rest_port, settings.grpc_port)
    for name, port in zip(("port", "rest port", "grpc port"), ports, strict=True):
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
                yield Check(name, "ok", f"{settings.host}:{port} is free")
            except OSError as error:
                option = f"--{name.replace(' ', '-')}"
                remedy = f"stop what uses it, or: tapster up {option} N"
                yield Check(name, "warn", f"{settings.host}:{port}: {error.strerror}", remedy)


CHECKS: Final = (_python, _libraries, _plug_ins, _home, _memory, _clock, _privacy, _server)
