"""The control plane, or its database, is gone while callers call."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

import tapster
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import deploy, port_of, requests_to, until
from tests.faults.scenarios.load import Load

RATE: Final = 100.0
ENDPOINT: Final = "total"
PATIENCE: Final = 30.0
ADMINISTRATORS: Final = 12


@dataclass
class Outage:
    """What callers and administrators saw.

    `control` holds (seconds, status) of every call to the control plane while it was out, status
    0 for a refused connection; `recovery` is the seconds until it answered again.
    """

    name: str
    control: list[tuple[float, int]] = field(default_factory=list)
    recovery: float = 0.0
    answered: int = 0
    statuses: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


def without_control(server: Server, name: str, seconds: float) -> Outage:
    """Be without a control plane or its database in one of the ways that have a name."""
    return endure(server, Outage(name), contextmanager(_WAYS[name])(server), seconds)


def endure(
    server: Server, seen: Outage, outage: AbstractContextManager[None], seconds: float
) -> Outage:
    """Call at a hundred requests a second before, during and after an outage."""
    with calls(server) as load:
        load.more(100)
        with ThreadPoolExecutor(ADMINISTRATORS) as pool, outage:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                asked = [pool.submit(_ask, server, number % 2) for number in range(ADMINISTRATORS)]
                seen.control += [each.result() for each in asked]
                time.sleep(seconds / 100)
        began = time.monotonic()
        until(lambda: _back(server), "the control plane to be back", 60)
        seen.recovery = time.monotonic() - began
        _deploy_again(server)
        load.more(100)
    seen.answered = len(load.answers)
    seen.statuses = {answer.status for answer in load.answers}
    seen.failures = [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
    return seen


def prepare(server: Server) -> None:
    """Deploy what callers call."""
    deploy(server, ENDPOINT, models.total(0.0))


def calls(server: Server) -> Load:
    """Callers at a hundred requests a second, often on new connections."""
    return Load(port_of(server), requests_to(server, ENDPOINT), rate=RATE, reuse=50)


def _ask(server: Server, write: int) -> tuple[float, int]:
    """Ask the control plane for something that it must read or write; how long, the status."""
    method, path = ("PUT", "models/total/aliases/probe") if write else ("GET", "models")
    began = time.monotonic()
    try:
        status = httpx.request(
            method,
            f"{server.url}/api/v1/{path}",
            headers={"authorization": f"Bearer {server.key}"},
            timeout=PATIENCE,
        ).status_code
    except httpx.ConnectError:
        status = 0
    except httpx.HTTPError:
        status = -1
    return time.monotonic() - began, status


def _back(server: Server) -> bool:
    """Whether it answers everybody, not only whoever is given one good database connection."""
    with ThreadPoolExecutor(ADMINISTRATORS) as pool:
        asked = [pool.submit(_ask, server, number % 2) for number in range(ADMINISTRATORS)]
        return {each.result()[1] for each in asked} == {200}


def _deploy_again(server: Server) -> None:
    """Everything works as before: a deployment goes through."""
    with tapster.connect(server.url, key=server.key) as client:
        try:
            assert client.deploy(f"{ENDPOINT}@1").status == "live"
        except TapsterError as error:
            raise AssertionError(f"{error.message} {server.log()[-2000:]}") from None


def _control(server: Server) -> int:
    """The control process, 0 when there is none."""
    found = server.children("tapster.app")
    return found[0].pid if found else 0


def _beheaded(server: Server) -> Iterator[None]:
    """The process is killed, and a folder in its database's place lets none start."""
    database, away = _database(server)
    database.rename(away)
    database.mkdir()
    os.kill(_control(server), signal.SIGKILL)
    yield
    database.rmdir()
    away.rename(database)


def _locked(server: Server) -> Iterator[None]:
    """Another process, this one, holds the database's lock."""
    with closing(sqlite3.connect(_database(server)[0], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def _deleted(server: Server) -> Iterator[None]:
    """The file is gone under the process that has it open."""
    database, away = _database(server)
    database.rename(away)
    yield
    away.rename(database)


def _blocked(server: Server) -> Iterator[None]:
    """No journal can be made, as on a file system that is read-only."""
    journal = server.home / "tapster.db-journal"
    until(lambda: _made(journal), "a moment between two transactions")
    yield
    journal.rmdir()


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _database(server: Server) -> tuple[Path, Path]:
    """Where the database is, and where it may be put away."""
    return server.home / "tapster.db", server.home / "away.db"


_WAYS: Final[dict[str, Callable[[Server], Iterator[None]]]] = {
    "killed, and cannot start": _beheaded,
    "database locked": _locked,
    "database deleted": _deleted,
    "database not writable": _blocked,
}
NAMES: Final = tuple(_WAYS)
# Ten minutes in all.
SECONDS: Final = dict(zip(NAMES, (240.0, 120.0, 120.0, 120.0), strict=True))
