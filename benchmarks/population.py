"""A whole installation with very many tenants and keys: memory, the plan, and how soon it changes.

The rows are written straight into the database of an installation that is not running. Then it is
started, and keys are made and revoked over the API; asked are all data-plane workers, again and
again, for when they let a new key in and a revoked one no longer.
"""

import http.client
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from benchmarks.planes import memory
from benchmarks.report import Verdict
from sqlalchemy import Connection, insert
from tests.conftest import Server

from tapster.core.crypto import key_digest, new_id, new_key
from tapster.core.db import Database
from tapster.tenancy.keys.store import keys
from tapster.tenancy.revisions import revise
from tapster.tenancy.tenants.store import tenants

MIB: Final = 1 << 20
WORKERS: Final = 2
CHUNK: Final = 10_000
GOAL_SECONDS: Final = 1.0
PATIENCE: Final = 60.0
# Enough connections that each worker has one, however the kernel shares them out.
CONNECTIONS: Final = 32


@dataclass(frozen=True)
class Held:
    """A key that was written."""

    tenant: str
    id: str
    secret: str


def populate(home: Path, count: int, each: int) -> list[Held]:
    """Write so many tenants with so many keys each; some of the keys."""
    made: list[Held] = []
    database = Database(f"sqlite:///{home / 'tapster.db'}")
    with database.write() as tx:
        for first in range(0, count, CHUNK // each):
            names = [f"tenant-{n}" for n in range(first, min(first + CHUNK // each, count))]
            held = [Held(name, new_id("key"), new_key()) for name in names for _ in range(each)]
            _insert(tx, names, held)
            made += random.sample(held, min(10, len(held)))
        revise(tx, names[-1], "tenants and keys were written")
    database.close()
    return made


def _insert(tx: Connection, names: list[str], held: list[Held]) -> None:
    now = time.time()
    tx.execute(insert(tenants), [{"tenant": name, "created": now} for name in names])
    rows = [
        {
            "id": one.id,
            "tenant": one.tenant,
            "digest": key_digest(one.secret),
            "rights": [],
            "role": "consumer",
            "created": now,
        }
        for one in held
    ]
    tx.execute(insert(keys), rows)


class Workers:
    """A connection to each worker of an installation."""

    def __init__(self, server: Server) -> None:
        address = urlsplit(server.rest_url)
        self._lines: dict[str, http.client.HTTPConnection] = {}
        self._closing = ExitStack()
        for _ in range(CONNECTIONS):
            made = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
            line = self._closing.enter_context(closing(made))
            # Identifiers of answers begin with what each worker has drawn for itself.
            name = self._ask(line, "none")[1].partition("-")[0]
            self._lines.setdefault(name, line)
        if len(self._lines) != WORKERS:
            raise RuntimeError(f"{len(self._lines)} of {WORKERS} workers answer")

    def close(self) -> None:
        """Hang up."""
        self._closing.close()

    def until(self, secret: str, admitted: bool) -> float:
        """Wait until every worker lets a key in, or none does; the time (monotonic) of the last."""
        ended = 0.0
        for line in self._lines.values():
            until = time.monotonic() + PATIENCE
            while (self._ask(line, secret)[0] != 401) != admitted:
                if time.monotonic() > until:
                    raise RuntimeError("a worker has not heard of a key")
                time.sleep(0.0005)
            ended = time.monotonic()
        return ended

    @staticmethod
    def _ask(line: http.client.HTTPConnection, secret: str) -> tuple[int, str]:
        line.request("GET", "/v2/models/none", headers={"Authorization": f"Bearer {secret}"})
        answer = line.getresponse()
        answer.read()
        return answer.status, answer.headers["x-request-id"] or ""


def measure(folder: Path, count: int, each: int, changes: int) -> Iterator[Verdict]:
    """Print what an installation takes without and with them all; judge how soon keys change."""
    server = Server(folder / "installation", {"TAPSTER_WORKERS": str(WORKERS)})
    began = time.monotonic()
    server.start()
    found = [_taken(server, time.monotonic() - began)]
    server.stop()
    held = populate(server.home, count, each)
    began = time.monotonic()
    server.start()
    workers = Workers(server)
    workers.until(held[-1].secret, True)
    found.append(_taken(server, time.monotonic() - began))
    print(f"| | no tenants | {count:,} tenants, {count * each:,} keys |\n|---|--:|--:|")
    for name in found[0]:
        print(f"| {name} | {found[0][name]} | {found[1][name]} |", flush=True)
    try:
        yield from _changes(server, workers, random.sample(held, min(changes, len(held))))
        print(f"| control process after that | | {_mib(server, 'tapster.app')} |")
    finally:
        workers.close()
        server.stop()


def _taken(server: Server, seconds: float) -> dict[str, str]:
    plan = sum(path.stat().st_size for path in (server.home / "run").glob("plan*"))
    return {
        "until every worker lets the keys in": f"{seconds:.1f} s",
        "plan on disk": f"{plan / MIB:.2f} MiB",
        "control process (PSS)": _mib(server, "tapster.app"),
        "a worker (PSS)": _mib(server, "serving.worker"),
    }


def _mib(server: Server, part: str) -> str:
    sizes = [memory(child.pid, "Pss")["Pss"] for child in server.children(part)]
    return f"{statistics.mean(sizes) / MIB:.0f} MiB"


def _changes(server: Server, workers: Workers, held: list[Held]) -> Iterator[Verdict]:
    """Make a key and revoke another, one after the other, for each of some tenants."""
    made: list[float] = []
    revoked: list[float] = []
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=30) as client:
        for one in held:
            act_for = {"X-Tapster-Tenant": one.tenant}

            def create(act_for: dict[str, str] = act_for) -> Any:
                body = {"role": "consumer"}
                return client.post("/keys", json=body, headers=act_for).raise_for_status().json()

            def revoke(one: Held = one, act_for: dict[str, str] = act_for) -> Any:
                client.delete(f"/keys/{one.id}", headers=act_for).raise_for_status()
                return {"key": one.secret}

            workers.until(one.secret, True)
            made.append(_delay(workers, create, True))
            revoked.append(_delay(workers, revoke, False))
    for name, delays in (("a new key is let in", made), ("a revoked key is refused", revoked)):
        times = [statistics.median(delays) * 1e3, max(delays) * 1e3]
        shown = f"{times[0]:.0f} ms, at most {times[1]:.0f} ms"
        print(f"| {name} by all workers after | | {shown} |", flush=True)
    goal = f"a revoked key is refused by every worker within {GOAL_SECONDS:g} s"
    yield Verdict(goal, f"{max(revoked):.2f} s", max(revoked) < GOAL_SECONDS)


def _delay(workers: Workers, change: Callable[[], Any], admitted: bool) -> float:
    """Seconds from when a change was answered until every worker knew."""
    key = change()["key"]
    began = time.monotonic()
    return max(0.0, workers.until(key, admitted) - began)
