"""A whole installation whose content lies on the disk sealed, and tenants who leave."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import tapster
from tapster.app import open_parts
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tapster.core.settings import load
from tests.conftest import Server

MASTER = "5eed" * 16
MARKER = b"Zebrafish-7431"


@pytest.fixture
def sealed_server(new_server: Callable[..., Server]) -> Server:
    """An installation that encrypts."""
    return new_server(master_key=MASTER, workers=2)


def _table(folder: Path, rows: int = 400) -> Path:
    path = folder / "animals.csv"
    kinds = [MARKER.decode(), "Cat", "Dog"]
    lines = [f"{kinds[row % 3]},{row},{(row % 3) * 10 + row * 0.37:.2f}" for row in range(rows)]
    path.write_text("kind,size,weight\n" + "\n".join(lines) + "\n")
    return path


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _holding(folder: Path, *words: bytes) -> list[str]:
    """Files under a folder that hold one of some words."""
    return [
        str(path.relative_to(folder))
        for path in _files(folder)
        if any(word in path.read_bytes() for word in words)
    ]


def _serve(client: Client, folder: Path) -> list[object]:
    client.data_add("animals", _table(folder))
    job = client.wait(client.train("animals", "weight", "animals", algorithm="ridge", seed=1))
    client.deploy(f"animals@{client.model_of(job).version}", "animals")
    return _ask(client)


def _ask(client: Client) -> list[object]:
    rows = [{"kind": MARKER.decode(), "size": 3.0}, {"kind": "Cat", "size": 1.0}]
    return [answer["prediction"] for answer in client.predict("animals", rows)]


def _vault(server: Server) -> Path:
    home = hashlib.sha256(os.fsencode(server.home)).hexdigest()[:16]
    return Path(f"/dev/shm/tapster-{os.getuid()}-{home}")


def test_content_lies_sealed_and_serves(sealed_server: Server, tmp_path: Path) -> None:
    server = sealed_server
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
        profile = client.data_profile("animals")
        assert MARKER.decode() in str(profile), "the owner sees the content as ever"
        exported = tmp_path / "animals.tapster"
        client.models_export("animals", exported)
        assert b"ai.onnx" in exported.read_bytes()
        jobs = client.jobs()
        logs = {job.id: "".join(client.logs(job.id)) for job in jobs}
        # What is in the clear is in memory, and not below the home.
        assert _holding(server.home, MARKER, b"ai.onnx", b"PAR1") == []
        assert len(_files(server.home / "blobs")) > 4
        server.kill()
        assert _holding(server.home, MARKER, b"ai.onnx", b"PAR1") == []
        server.start()
    with tapster.connect(server.url, key=server.key) as client:
        assert _ask(client) == before
        assert {job.id: "".join(client.logs(job.id)) for job in client.jobs()} == logs
        assert _holding(_vault(server), b"PAR1", b"ai.onnx")
    assert server.stop() == 0
    assert not _vault(server).exists(), "memory is given back"


def test_the_master_key_is_in_no_childs_environment_or_command(sealed_server: Server) -> None:
    for child in sealed_server.children():
        told = " ".join([*child.cmdline(), *child.environ().values()])
        assert MASTER not in told, child.name()
    assert MASTER not in sealed_server.log()


def test_another_master_key_or_none_opens_no_home(tmp_path: Path) -> None:
    given = {"home": tmp_path / "home", "memory_folder": "/dev/shm"}
    parts = open_parts(load({}, **given, master_key=MASTER))
    assert parts.keys is not None
    parts.keys.current("default")
    for key, said in (("", "no master key is set"), ("0bad" * 16, "another master key")):
        with pytest.raises(TapsterError, match=said):
            open_parts(load({}, **given, master_key=key or None))
    assert open_parts(load({}, **given, master_key=MASTER)).keys is not None
    assert parts.vault is not None
    parts.vault.clear()


def test_what_was_there_before_encryption_serves_on(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server()
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
    server.stop()
    server.environment["TAPSTER_MASTER_KEY"] = MASTER
    server.start()
    with tapster.connect(server.url, key=server.key) as client:
        assert _ask(client) == before
        (tmp_path / "more").mkdir()
        client.data_add("more", _table(tmp_path / "more", 500))
        assert client.data_show("more").rows == 500
    plain = _holding(server.home / "blobs", b"PAR1")
    assert len(plain) == 1, "what is new is sealed"


# -- the end of a tenant


def _everything(server: Server, folder: Path, tenant: str = "acme", *, serve: bool = True) -> str:
    """A tenant with data, and if it is to `serve`, a model, an endpoint and usage; its key."""
    with tapster.connect(server.url, key=server.key) as admin:
        admin.tenants_add(tenant)
        made = admin.keys_create(tenant=tenant, role="owner")
    key = str(made.key)
    with tapster.connect(server.url, key=key) as client:
        if serve:
            _serve(client, folder)
            client.models_alias("animals", "champion")
        else:
            client.data_add("animals", _table(folder))
    return key


def _tables(server: Server, tenant: str) -> dict[str, int]:
    """Rows that name a tenant, by table, read past the server."""
    found = {}
    with sqlite3.connect(f"file:{server.home}/tapster.db?mode=ro", uri=True) as line:
        names = [
            name for (name,) in line.execute("select name from sqlite_master where type='table'")
        ]
        for name in names:
            columns = {row[1] for row in line.execute(f"pragma table_info({name})")}
            for column in columns & {"tenant", "owner", "consumer"}:
                query = f"select count(*) from {name} where {column} = ?"
                if count := line.execute(query, (tenant,)).fetchone()[0]:
                    found[f"{name}.{column}"] = count
    return found


STAY = {"revisions.tenant", "erasures.tenant", "audit_lines.tenant", "audit_details.tenant"}


def test_an_erased_tenant_is_gone_and_its_receipt_says_what_was(
    sealed_server: Server, tmp_path: Path
) -> None:
    server = sealed_server
    key = _everything(server, tmp_path)
    (tmp_path / "other").mkdir()
    with tapster.connect(server.url, key=server.key) as admin:
        kept = admin.data_add("animals", _table(tmp_path / "other"))
        objects = {path.name for path in (server.home / "blobs/acme").glob("*/*")}
        assert objects
        done = admin.tenants_erase("acme")
        receipt = done.receipt
        assert receipt is not None
        assert done.status == "ended"
        assert {name.rsplit("/")[-1] for name in receipt["objects"]} >= objects
        assert receipt["key"].startswith("dk_")
        assert receipt["rows"]["model_versions"] == 1
        assert receipt["rows"]["endpoints"] == 1
        assert receipt["bytes"] > 1000
        assert not list((server.home / "blobs").glob("acme/*/*"))
        assert not list(_vault(server).glob("objects/acme/*/*"))
        assert _tables(server, "acme").keys() <= STAY
        with pytest.raises(TapsterError) as refusal:
            admin.tenants_show("acme")
        assert refusal.value.code == "not_found"
        assert admin.audit_verify().ok
        assert admin.data_profile("animals")["rows"] == kept.rows, "others keep theirs"
    with tapster.connect(server.url, key=key) as client:
        with pytest.raises(TapsterError) as refusal:
            client.info()
        assert refusal.value.code == "unauthenticated"
        answer = httpx.post(
            f"{server.rest_url}/v2/models/animals/infer",
            json={},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == 401
    _check_receipt(server, receipt, tmp_path)


def _check_receipt(server: Server, receipt: dict[str, Any], folder: Path) -> None:
    def verify(document: dict[str, Any], *more: str) -> int:
        path = folder / "receipt.json"
        path.write_text(json.dumps(document, indent=2))
        words = [sys.executable, "-m", "tapster", "tenants", "verify", str(path), "--json", *more]
        return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode

    assert verify(receipt) == 0
    assert verify(receipt, "--key", receipt["public_key"]) == 0
    assert verify(receipt, "--key", "00" * 32) == 1
    assert verify({**receipt, "bytes": 0}) == 1
    assert verify({**receipt, "signature": "00" * 64}) == 1
    assert verify({"nothing": 1}) == 1


def test_a_name_that_was_erased_may_be_given_again(server: Server, tmp_path: Path) -> None:
    key = _everything(server, tmp_path, "again", serve=False)
    with tapster.connect(server.url, key=server.key) as admin:
        for word in ("default", "nobody"):
            with pytest.raises(TapsterError):
                admin.tenants_erase(word)
        first = admin.tenants_erase("again")
        admin.tenants_add("again")
        fresh = str(admin.keys_create(tenant="again", role="owner").key)
        assert fresh != key
    with tapster.connect(server.url, key=fresh) as client:
        assert client.models_list() == []
        assert client.data_list() == []
        assert client.jobs() == []
        with pytest.raises(TapsterError):
            client.tenants_erase("again")
    with tapster.connect(server.url, key=server.key) as admin:
        second = admin.tenants_erase("again")
        assert [each.id for each in admin.tenants_erasures("again")] == [second.id, first.id]


def test_an_erasure_that_is_killed_goes_on_at_the_next_start(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(master_key=MASTER)
    key = _everything(server, tmp_path)
    receipts: list[dict[str, Any]] = []
    with tapster.connect(server.url, key=server.key) as admin:
        objects = {path.name for path in (server.home / "blobs/acme").glob("*/*")}
        admin.tenants_erase("acme", wait=False)
    for delay in (0.2, 2.9):  # before the wait is over, and about when files and rows go
        time.sleep(delay)
        server.kill()
        server.start()
    with tapster.connect(server.url, key=server.key) as admin:
        end = time.monotonic() + 60
        while not receipts:
            assert time.monotonic() < end, "the erasure does not end"
            receipts = [each.receipt for each in admin.tenants_erasures("acme") if each.receipt]
            time.sleep(0.1)
        assert admin.audit_verify().ok
    assert {name.rsplit("/")[-1] for name in receipts[0]["objects"]} >= objects
    assert not list((server.home / "blobs").glob("acme/*/*"))
    # What the journals of killed workers count comes late, and is treated likewise.
    while not _tables(server, "acme").keys() <= STAY:
        assert time.monotonic() < end, _tables(server, "acme")
        time.sleep(0.2)
    with tapster.connect(server.url, key=key) as client, pytest.raises(TapsterError):
        client.info()
