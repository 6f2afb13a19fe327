"""A whole installation whose content lies on the disk sealed, and tenants who leave."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

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
    assert server.stop() == 0


def test_the_master_key_is_in_no_childs_environment_or_command(sealed_server: Server) -> None:
    for child in sealed_server.children():
        told = " ".join([*child.cmdline(), *child.environ().values()])
        assert MASTER not in told, child.name()
    assert MASTER not in sealed_server.log()


def test_memory_is_given_back_when_the_server_stops(sealed_server: Server, tmp_path: Path) -> None:
    with tapster.connect(sealed_server.url, key=sealed_server.key) as client:
        _serve(client, tmp_path)
    assert _holding(_vault(sealed_server), b"PAR1", b"ai.onnx")
    assert sealed_server.stop() == 0
    assert not _vault(sealed_server).exists()


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
