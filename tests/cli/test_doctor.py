"""The doctor: what it finds, and the remedy it names."""

import json
import socket
from pathlib import Path

import pytest

from tapster.cli import main
from tapster.cli.doctor import examine, passed


def test_a_sound_installation_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    assert main(["doctor", "--home", str(tmp_path / "home"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check["status"] for check in document["checks"]}
    assert document["ok"]
    assert checks["python"] == checks["sqlite"] == checks["libraries"] == checks["home"] == "ok"
    assert checks["server"] == checks["plug-ins"] == "ok"
    assert not (tmp_path / "home").exists()


def test_a_server_that_does_not_answer_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("TAPSTER_URL", url)
    assert main(["doctor", "--home", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert f"{url} does not answer" in shown
    assert "tapster up" in shown


def test_a_home_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    (check,) = [check for check in examine(tmp_path / "home") if check.name == "home"]
    assert check.status == "fail"
    assert "TAPSTER_HOME" in check.remedy


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder, for root too")
    assert not passed(examine(in_the_way / "home"))


def test_a_port_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("TAPSTER_PORT", str(port))
        found = {check.name: check for check in examine(tmp_path)}
    assert found["port"].status == "warn"
    assert f"127.0.0.1:{port}" in found["port"].found
    assert "--port" in found["port"].remedy
    assert found["rest port"].name == "rest port"


def test_a_setting_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPSTER_WORKERS", "many")
    (check,) = examine(tmp_path)
    assert check.status == "fail"
    assert "TAPSTER_WORKERS" in check.found
