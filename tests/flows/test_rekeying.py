"""Whole installations whose keys are changed while they serve, and are killed meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tapster
from tapster.client import Client
from tapster.contract.encryption import Rekeying
from tapster.core.envelope import Master, sealed_with
from tapster.core.resealing import header_of
from tests.conftest import Server
from tests.flows.test_privacy import _ask, _serve

OLD, NEW = "5eed" * 16, "f00d" * 16


def _files(folder: Path) -> dict[str, str]:
    """Two master keys in files: the variables that name each of them."""
    for name, key in (("old", OLD), ("new", NEW)):
        (folder / name).write_text(key)
        (folder / name).chmod(0o600)
    return {name: str(folder / name) for name in ("old", "new")}


def _set(server: Server, current: str, previous: str = "") -> None:
    server.environment["TAPSTER_MASTER_KEY_FILE"] = current
    server.environment["TAPSTER_MASTER_KEY_PREVIOUS_FILE"] = previous


def _doctor(server: Server) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in _typed(server, "doctor")["checks"]}


def _typed(server: Server, *words: str) -> Any:
    """What a command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tapster", *words, "--json"],
        env={**os.environ, "TAPSTER_HOME": str(server.home), **server.environment},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return json.loads(done.stdout)


def _cut_off(server: Server, until: Callable[[], bool]) -> None:
    """A start that is killed."""
    environment = {**os.environ, "TAPSTER_HOME": str(server.home), **server.environment}
    ports = {f"TAPSTER_{name}": "0" for name in ("PORT", "REST_PORT", "GRPC_PORT")}
    with (server.home / "server.log").open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-m", "tapster.supervisor", str(os.getpid())],
            env={**environment, **ports},
            stdout=log,
            stderr=log,
        )
    _wait(until)
    server.kill()


def _stay(server: Server) -> None:
    """Have a server come back on its port."""
    server.environment["TAPSTER_PORT"] = server.url.rpartition(":")[2]


def test_a_master_key_is_changed_at_a_start_and_the_former_opens_no_more(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    paths = _files(tmp_path)
    server = new_server(master_key_file=paths["old"])
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
    assert server.stop() == 0
    _set(server, paths["new"], paths["old"])
    assert _doctor(server)["home's key"]["status"] == "warn"
    # Its control has begun with the database; what it is killed amid is another test's matter.
    _cut_off(server, lambda: "data keys are wrapped anew" in server.log())
    server.start()
    with tapster.connect(server.url, key=server.key) as client:
        assert _ask(client) == before
        assert client.data_profile("animals")["rows"] == 400
        (line,) = client.audit_list(action="encryption.rewrap")
        assert line.after == {"master": Master(bytes.fromhex(NEW)).name, "data_keys": 1}
    for child in server.children():
        told = " ".join([*child.cmdline(), *child.environ().values()])
        assert OLD not in told
        assert NEW not in told
    assert server.stop() == 0
    _set(server, paths["old"])
    assert _doctor(server)["home's key"]["status"] == "fail"
    _cut_off(server, lambda: "another master key" in server.log())
    _set(server, paths["new"])
    server.start()
    with tapster.connect(server.url, key=server.key) as client:
        assert _ask(client) == before
    assert _doctor(server)["home's key"]["status"] == "ok"


def test_a_data_plane_elsewhere_that_has_the_former_key_only_serves_on(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    paths = _files(tmp_path)
    server = new_server(master_key_file=paths["old"])
    with tapster.connect(server.url, key=server.key) as client:
        _serve(client, tmp_path)
        before = _there(server, server.key)
        assert len(before) == 2
    _stay(server)
    away = Server(tmp_path / "away", {"TAPSTER_CONTROL_URL": server.url})
    away.home.mkdir()
    for name in ("agent.key", "admin.key"):
        shutil.copy(server.home / name, away.home / name)
    (away.home / "blobs").symlink_to(server.home / "blobs")
    _set(away, paths["old"])
    away.start()
    try:
        _wait(lambda: _there(away, server.key) == before)
        assert server.stop() == 0
        _set(server, paths["new"], paths["old"])
        server.start()
        _wait(lambda: Master(bytes.fromhex(NEW)).name in away.log())
        assert "what it has loaded is served on" in " ".join(away.log().split())
        assert _there(away, server.key) == before
        assert away.stop() == 0
        _set(away, paths["new"])
        away.start()
        _wait(lambda: _there(away, server.key) == before)
    finally:
        away.stop()


def _there(server: Server, key: str) -> list[object]:
    """What is answered on a machine that has no control."""
    import httpx

    rows = [{"kind": "Zebrafish-7431", "size": 3.0}, {"kind": "Cat", "size": 1.0}]
    answer = httpx.post(
        f"{server.rest_url}/v1/models/animals:predict",
        json={"instances": rows},
        headers={"Authorization": f"Bearer {key}"},
        timeout=30,
    )
    found: list[object] = answer.json().get("predictions", [])
    return found


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_a_data_key_is_changed_while_its_tenant_is_served(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(master_key=OLD, workers=2)
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
        (former,) = _under(server)
        done = threading.Event()
        wrong: list[object] = []
        asked = threading.Thread(target=_keep_asking, args=(client, before, done, wrong))
        asked.start()
        seen: list[Rekeying] = []
        ended = client.tenants_rekey("default", on_progress=seen.append)
        (tmp_path / "more").mkdir()
        client.data_add("more", _small(tmp_path / "more"))
        done.set()
        asked.join()
        assert wrong == []
        assert (ended.status, ended.resealed, ended.problem) == ("ended", ended.objects, "")
        assert ended.objects >= 4
        assert seen[-1] == ended
        assert _under(server) == {ended.key}
        assert former != ended.key
        assert client.data_profile("animals")["rows"] == 400
        assert any("".join(client.logs(job.id)) is not None for job in client.jobs())
        first, second = (
            client.audit_list(action="tenants.rekey"),
            client.tenants_rekeyings("default"),
        )
        assert [line.after and line.after["destroyed"] for line in first] == [[former]]
        assert [each.id for each in second] == [ended.id]
        assert client.audit_verify().ok
    assert server.stop() == 0
    server.start()
    with tapster.connect(server.url, key=server.key) as client:
        assert _ask(client) == before


def test_what_was_begun_goes_on_after_a_kill(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(master_key=OLD)
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
    begun = _typed(server, "tenants", "rekey", "default", "--no-wait")
    assert begun["status"] == "running"
    server.kill()
    server.start()
    with tapster.connect(server.url, key=server.key) as client:
        _wait(lambda: client.tenants_rekeyings("default")[0].status == "ended")
        assert _under(server) == {begun["key"]}
        assert [each["key"] for each in _typed(server, "tenants", "rekeyings", "default")] == [
            begun["key"]
        ]
        assert _ask(client) == before
        assert client.data_profile("animals")["rows"] == 400


def _keep_asking(
    client: Client, before: list[object], done: threading.Event, wrong: list[object]
) -> None:
    while not done.is_set():
        if (found := _ask(client)) != before:
            wrong.append(found)


def _small(folder: Path) -> Path:
    path = folder / "more.csv"
    path.write_text("a,b\n" + "\n".join(f"{at},{at * 2}" for at in range(50)))
    return path


def _under(server: Server) -> set[str]:
    """The data keys that anything below the home is sealed with."""
    below = (server.home / name for name in ("blobs", "uploads", "jobs"))
    files = [path for folder in below for path in folder.rglob("*") if path.is_file()]
    return {sealed_with(header_of(path)) for path in files} - {""}
