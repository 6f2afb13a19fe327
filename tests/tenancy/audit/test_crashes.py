"""Several control processes on PostgreSQL; a control process killed while it writes."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tapster.client import Client, connect
from tapster.client.audit import check_export
from tapster.contract.audit import AuditLine
from tapster.core.db import Database
from tests.conftest import Server
from tests.tenancy.audit.conftest import KEY, Ledger, open_ledger, request

WRITER = """
import sys
from pathlib import Path
import tapster.app
from tapster.core.db import Database
from tests.tenancy.audit.conftest import open_ledger, request
url, home, mark, count = sys.argv[1:]
ledger = open_ledger(Database(url), Path(home))
print("ready", flush=True)
sys.stdin.readline()
for at in range(int(count)):
    ledger.change(f"{mark}{at}", f"t{at % 3}")
    refused = request("DELETE", "/x/{name}", tenant=f"t{at % 3}", name=f"{mark}{at}")
    ledger.record.ended(refused, 404)
    ledger.record.beat()
ledger.record.close()
"""
PROCESSES = 3
CHANGES = 40
PROXIED = "203.0.113.66"


@pytest.fixture
def shared(postgres_server: str, tmp_path: Path) -> Iterator[Ledger]:
    """A PostgreSQL database of its own, with one control process's record."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE audit")
    url = postgres_server.replace("/postgres?", "/audit?")
    db = Database(url)
    db.migrate()
    (tmp_path / "home0").mkdir()
    yield open_ledger(db, tmp_path / "home0")
    db.close()
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE audit WITH (FORCE)")


def test_several_control_processes_make_one_chain(shared: Ledger, tmp_path: Path) -> None:
    writers = []
    for at in range(PROCESSES):
        home = tmp_path / f"home{at + 1}"
        home.mkdir()
        arguments = [shared.db.url, str(home), f"p{at}-", str(CHANGES)]
        writers.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    shared.grow(1)
    verdict = shared.verdict()
    assert verdict.faults == []
    assert verdict.lines == 2 * PROCESSES * CHANGES + 1
    for tenant in ("t0", "t1", "t2"):
        assert shared.faults(tenant) == []
    # Each process has kept heads of the one chain; whoever reads them all finds nothing else.
    for at in range(PROCESSES):
        theirs = open_ledger(shared.db, tmp_path / f"home{at + 1}")
        assert theirs.verdict().heads >= 2
        assert theirs.faults() == []


def test_tampering_is_found_on_postgresql_too(shared: Ledger) -> None:
    shared.grow(6)
    shared.keep_head()
    assert shared.faults() == []
    shared.record.ended(request("GET", "/x\x00", tenant=""), 403)
    shared.record.beat()
    assert shared.verdict().lines == 7
    shared.tamper("update audit_lines set who = 'x' where number = 3")
    shared.tamper("delete from audit_lines where number = 5")
    assert [fault.number for fault in shared.faults()] == [3, 5]


class Callers:
    """Threads that trust keys and distrust them, and remember which changes were answered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ending = threading.Event()
        self.done: set[tuple[str, str]] = set()
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(3)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _call(self, mark: int) -> None:
        headers = {"authorization": f"Bearer {self._server.key}", "x-forwarded-for": PROXIED}
        at = 0
        with httpx.Client(base_url=f"{self._server.url}/api/v1", headers=headers) as client:
            while not self._ending.is_set():
                at += 1
                name = f"k{mark}-{at}"
                for method, path in (("POST", "/trust"), ("DELETE", f"/trust/{name}")):
                    body = {"name": name, "public_key": KEY} if method == "POST" else None
                    try:
                        answer = client.request(method, path, json=body, timeout=20)
                    except httpx.TransportError:
                        continue
                    if answer.is_success:
                        self.done.add((method, name))


def kill_control(server: Server) -> None:
    """End the control process as a power cut would, and wait until another one answers."""
    (process,) = server.children("tapster.app")
    process.kill()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        alive = [child for child in server.children("tapster.app") if child.pid != process.pid]
        if alive and _answers(server):
            return
        time.sleep(0.05)
    raise AssertionError(server.log()[-3000:])


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def test_a_killed_control_process_leaves_a_whole_record(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(audit_heads=tmp_path / "elsewhere", trusted_proxies="127.0.0.1")
    with Callers(server) as callers:
        for _ in range(2):
            time.sleep(0.7)
            kill_control(server)
        time.sleep(0.5)
    with connect(server.url, key=server.key) as tapster:
        assert len(callers.done) > 20
        lines = _all(tapster)
        assert callers.done <= {_change(line) for line in lines}
        proxied = {line.client for line in lines if line.action == "POST /trust"}
        assert proxied == {PROXIED}, "a proxy that was named is believed"
        verdict = tapster.audit_verify()
        assert (verdict.ok, verdict.faults) == (True, [])
        assert verdict.heads >= 3, "one at each start at least"
        exported = tapster.audit_export(tmp_path / "export.jsonl")
    kept = tmp_path / "elsewhere" / "heads.jsonl"
    assert check_export(exported, kept).ok
    assert server.stop() == 0
    numbers = [json.loads(line)["number"] for line in kept.read_text().splitlines()]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= verdict.last, "a normal stop leaves nothing without a head"


def _all(tapster: Client) -> list[AuditLine]:
    found: list[AuditLine] = []
    before = 0
    while page := tapster.audit_list(limit=1000, before=before):
        found += page
        before = page[-1].number
        if before == 1:
            break
    return found


def _change(line: AuditLine) -> tuple[str, str]:
    told = line.after or line.before or {}
    rows = told.get("trusted_keys") or [{}]
    return line.action.partition(" ")[0], str(rows[0].get("name", ""))
