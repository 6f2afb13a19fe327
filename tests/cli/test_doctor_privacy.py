"""What doctor says of encryption and certificates."""

import shutil
from pathlib import Path

import pytest

from tapster.cli import doctor_privacy
from tapster.core import envelope, tls
from tapster.core.settings import load


def _found(home: Path, **given: str) -> dict[str, tuple[str, str]]:
    looked = doctor_privacy.look(load({}, home=home, **given))
    return {name: (status, f"{found} {remedy}") for name, status, found, remedy in looked}


def test_what_is_off_is_said_to_be(tmp_path: Path) -> None:
    found = _found(tmp_path)
    assert found["encryption"][0] == "ok"
    assert "off" in found["encryption"][1]
    assert found["tls"][0] == "ok"
    assert _found(tmp_path, host="0.0.0.0")["tls"][0] == "warn"


def test_what_lies_there_in_the_clear_is_counted(tmp_path: Path) -> None:
    key = tmp_path / "master"
    key.write_text("5eed" * 16)
    key.chmod(0o644)
    found = _found(tmp_path, master_key_file=str(key))
    assert found["master key"][0] == "warn"
    assert found["still plain"][0] == "ok"
    key.chmod(0o600)
    (tmp_path / "blobs/acme/datasets/1").mkdir(parents=True)
    (tmp_path / "blobs/acme/datasets/2").mkdir()
    (tmp_path / "blobs/acme/datasets/2/.sealed").write_bytes(b"")
    (tmp_path / "jobs/job_1").mkdir(parents=True)
    (tmp_path / "jobs/job_1/log").write_bytes(b"a line")
    found = _found(tmp_path, master_key_file=str(key))
    assert "master key" not in found
    assert found["still plain"] == (
        "warn",
        "2 objects from before encryption was on import or train it again, and delete the old"
        " version",
    )


@pytest.mark.parametrize(
    "given", [{"master_key": "short"}, {"master_key": "5eed" * 16, "memory_folder": "/usr"}]
)
def test_what_cannot_work_fails(tmp_path: Path, given: dict[str, str]) -> None:
    found = _found(tmp_path, **given)
    assert "fail" in {status for status, _ in found.values()}
    assert "short" not in str(found)


def test_a_certificate_is_looked_at(tmp_path: Path) -> None:
    made = tls.prepared(load({}, home=tmp_path, tls="auto"))
    found = _found(tmp_path, tls_cert=made.tls_cert, tls_key=made.tls_key)
    assert found["tls"][0] == "ok"
    assert "824 days" in found["tls"][1]
    assert _found(tmp_path, tls_cert=str(tmp_path / "none"))["tls"][0] == "fail"


def test_the_master_key_of_a_home_is_told_and_what_comes_next(tmp_path: Path) -> None:
    old, new = "5eed" * 16, "f00d" * 16
    assert "home's key" not in _found(tmp_path, master_key=old)
    before = envelope.Master(bytes.fromhex(old))
    before.leave_name(tmp_path)
    assert _found(tmp_path, master_key=old)["home's key"] == (
        "ok",
        f"under the master key {before.name} ",
    )
    assert _found(tmp_path, master_key=new)["home's key"][0] == "fail"
    both = {"master_key": new, "master_key_previous": old}
    status, told = _found(tmp_path, **both)["home's key"]
    assert (status, before.name in told, "start once" in told) == ("warn", True, True)
    envelope.Master(bytes.fromhex(new)).leave_name(tmp_path)
    status, told = _found(tmp_path, **both)["home's key"]
    assert (status, "can be dropped" in told) == ("ok", True)
    assert _found(tmp_path, master_key=new)["home's key"][0] == "ok"
    assert old not in str(_found(tmp_path, **both))
    lonely = _found(tmp_path, master_key_previous=old)
    assert lonely["encryption"][0] == "fail"


def test_memory_that_holds_no_object_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "blobs/acme/datasets/1"
    folder.mkdir(parents=True)
    (folder / ".sealed").write_bytes(b"")
    with (folder / "0").open("wb") as file:
        file.truncate(3 << 30)
    for free, status in ((2 << 30, "fail"), ((3 << 30) + 1, "warn"), (5 << 30, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: _Usage(free))
        found = _found(tmp_path, master_key="5eed" * 16)["memory folder"]
        assert found[0] == status
        assert "takes 3.0" in found[1]


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free
