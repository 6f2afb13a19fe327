"""A whole installation whose content lies on the disk sealed, and tenants who leave."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import tapster
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server

MASTER = "5eed" * 16
MARKER = b"Zebrafish-7431"


@pytest.fixture
def sealed_server(new_server: Callable[..., Server]) -> Iterator[Server]:
    """An installation that encrypts."""
    yield new_server(master_key=MASTER, workers=2)


def _table(folder: Path, rows: int = 400) -> Path:
    path = folder / "animals.csv"
    kinds = [MARKER.decode(), "Cat", "Dog"]
    lines = [f"{kinds[row % 3]},{row},{(row % 3) * 10 + row % 2}" for row in range(rows)]
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
    return [answer["prediction"] for answer in client.predict("animals", rows)["predictions"]]


def _vault(server: Server) -> Path:
    control = server.children("tapster.app")[0]
    return Path(control.environ().get("TMPDIR") or _tmpdir(server)).parent


def _tmpdir(server: Server) -> str:
    found = [p for p in Path("/dev/shm").glob("tapster-*") if p.owner()]
    assert found
    return str(max(found, key=lambda path: path.stat().st_mtime) / "tmp")


def test_content_lies_sealed_and_serves(sealed_server: Server, tmp_path: Path) -> None:
    server = sealed_server
    with tapster.connect(server.url, key=server.key) as client:
        before = _serve(client, tmp_path)
        profile = client.data_profile("animals")
        assert MARKER.decode() in str(profile), "the owner sees the content as ever"
        exported = tmp_path / "animals.tapster"
        client.models_export("animals", exported)
        assert b"skl2onnx" in exported.read_bytes()
        jobs = client.jobs()
        logs = {job.id: "".join(client.logs(job.id)) for job in jobs}
        # What is in the clear is in memory, and not below the home.
        assert _holding(server.home, MARKER, b"skl2onnx", b"PAR1") == []
        assert len(_files(server.home / "blobs")) > 4
        server.kill()
        assert _holding(server.home, MARKER, b"skl2onnx", b"PAR1") == []
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


def test_memory_is_given_back_when_the_server_stops(
    sealed_server: Server, tmp_path: Path
) -> None:
    with tapster.connect(sealed_server.url, key=sealed_server.key) as client:
        _serve(client, tmp_path)
    mine = [child for child in sealed_server.children() if isinstance(child, psutil.Process)]
    roots = {path for child in mine for path in _open_in_memory(child)}
    assert sealed_server.stop() == 0
    assert all(not path.exists() for path in roots)


def _open_in_memory(child: psutil.Process) -> set[Path]:
    found = set()
    for line in Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0"):
        name, _, value = line.partition(b"=")
        if name == b"TMPDIR" and b"tapster-" in value:
            found.add(Path(os.fsdecode(value)).parent)
    return found


@pytest.mark.parametrize("key", ["", "0bad" * 16])
def test_another_master_key_or_none_does_not_start(
    new_server: Callable[..., Server], tmp_path: Path, key: str
) -> None:
    server = new_server(master_key=MASTER)
    with tapster.connect(server.url, key=server.key) as client:
        client.data_add("animals", _table(tmp_path))
    server.stop()
    (server.home / "run" / "plan.json").unlink(missing_ok=True)
    server.environment["TAPSTER_MASTER_KEY"] = key
    with pytest.raises(AssertionError, match="master key"):
        server.start()


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
