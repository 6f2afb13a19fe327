"""Sealed folders: whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.blobs import LocalBlobs, storage_error, write_atomically


def _folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def test_put_get_delete(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    assert blobs.put("acme/datasets/abc", _folder(tmp_path / "one", a="12", b="345")) == 5
    assert (blobs.get("acme/datasets/abc") / "b").read_text() == "345"
    assert not (tmp_path / "one").exists()
    assert list(blobs.keys()) == ["acme/datasets/abc"]
    assert blobs.delete("acme/datasets/abc") == 5
    assert blobs.delete("acme/datasets/abc") == 0
    with pytest.raises(TapsterError, match="are gone"):
        blobs.get("acme/datasets/abc")


def test_a_key_is_written_once(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.put("t/k/d", _folder(tmp_path / "one", a="first"))
    blobs.put("t/k/d", _folder(tmp_path / "two", a="second"))
    assert (blobs.get("t/k/d") / "a").read_text() == "first"


@pytest.mark.parametrize("key", ["../a/b", "a/b", "a/b/c/d", "/a/b/c", "a/../c", "A/b/c", ""])
def test_a_key_is_not_a_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a blob key"):
        LocalBlobs(tmp_path).get(key)


def test_a_killed_put_leaves_the_whole_folder_or_none(tmp_path: Path) -> None:
    """Kill the writer at the n-th sync, for every n, until it finishes untouched."""
    code = """
import os, signal, sys
from pathlib import Path
from tapster.core import blobs
root, die_at = Path(sys.argv[1]), int(sys.argv[2])
folder = root / "in"
folder.mkdir(parents=True)
for name in "abc":
    (folder / name).write_text(name * 1000)
calls, sync = 0, blobs._sync
def counting(path):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
blobs._sync = counting
blobs.LocalBlobs(root / "blobs").put("t/k/d", folder)
"""
    outcomes = set()
    for die_at in range(1, 20):
        root = tmp_path / str(die_at)
        done = subprocess.run([sys.executable, "-c", code, str(root), str(die_at)], check=False)
        blobs = LocalBlobs(root / "blobs")
        whole = list(blobs.keys()) == ["t/k/d"]
        if whole:
            assert {
                p.name: p.stat().st_size for p in blobs.get("t/k/d").iterdir()
            } == dict.fromkeys("abc", 1000)
        blobs.sweep()
        assert not (root / "blobs" / ".tmp").exists()
        outcomes.add((done.returncode, whole))
        if done.returncode == 0:
            break
    assert outcomes == {(-9, False), (-9, True), (0, True)}


def test_write_atomically_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_full_disk_is_said_without_a_path() -> None:
    error = storage_error(OSError(errno.ENOSPC, "No space left", "/secret/place"))
    assert error.code == "storage_full"
    assert "/secret" not in error.message + error.hint
