"""Finding a server, and telling what went wrong on the way to it."""

import json
import os
import socket
from pathlib import Path

import pytest

import tapster
from tapster.client.transport import Address, Transport, failure, locate, read_run
from tapster.contract.errors import TapsterError
from tests.conftest import Server


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAPSTER_URL", "TAPSTER_KEY", "TAPSTER_HOME"):
        monkeypatch.delenv(name, raising=False)


def _running(home: Path, pid: int) -> None:
    content = {"pid": pid, "url": "http://127.0.0.1:9", "rest_url": "http://127.0.0.1:10"}
    (home / "run.json").write_text(json.dumps(content))
    (home / "admin.key").write_text("tk_secret\n")


def test_the_server_on_the_home_is_found_with_its_key(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid())
    address = Address("http://127.0.0.1:9", "tk_secret", "http://127.0.0.1:10")
    assert locate(None, None, tmp_path) == address


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "url": "u"}'])
def test_a_broken_run_file_is_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert read_run(tmp_path) is None


def test_a_run_file_of_a_dead_process_is_no_server(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    _running(tmp_path, child)
    assert locate(None, None, tmp_path) is None


def test_the_admin_key_never_goes_to_another_machine(tmp_path: Path) -> None:
    _running(tmp_path, os.getpid())
    here, there = "http://127.0.0.1:8000/", "http://tapster.example:8000"
    assert locate(here, None, tmp_path) == Address(here.rstrip("/"), "tk_secret")
    assert locate(there, None, tmp_path) == Address(there, "")


def test_variables_name_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_URL", "http://tapster.example")
    monkeypatch.setenv("TAPSTER_KEY", "tk_theirs")
    assert locate(None, None, tmp_path) == Address("http://tapster.example", "tk_theirs")


@pytest.mark.parametrize("url", ["tapster.example", "ftp://x", "http://", "8000"])
def test_what_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(TapsterError, match="not a server's URL"):
        locate(url, None, tmp_path)


def test_without_a_server_the_line_to_type_is_told(tmp_path: Path) -> None:
    with pytest.raises(TapsterError) as caught:
        tapster.connect(home=tmp_path, start=False)
    assert (caught.value.code, "tapster up" in caught.value.hint) == ("unavailable", True)


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    transport = Transport(Address(url, ""))
    with pytest.raises(TapsterError) as caught:
        transport.call(dict, "GET", "/info")
    transport.close()
    assert caught.value.code == "unavailable"
    assert url in caught.value.message


def test_errors_of_every_wire_are_understood() -> None:
    parts = TapsterError("conflict", "it is there", hint="choose", field="name").as_dict()
    ours = failure(409, json.dumps({"error": parts}).encode())
    assert (ours.code, ours.message, ours.hint) == ("conflict", "it is there", "choose")
    plain = failure(404, b'{"error": "no model"}')
    assert (plain.code, plain.message) == ("not_found", "no model")
    assert "502" in failure(502, b"<html>bad gateway</html>").message


def test_what_json_cannot_say_is_refused_before_it_is_sent() -> None:
    transport = Transport(Address("http://127.0.0.1:9", ""))
    with pytest.raises(TapsterError, match="JSON"):
        transport.call(dict, "POST", "/x", {"a": object()})
    transport.close()


def test_an_inference_port_is_told_from_a_control_api(server: Server) -> None:
    with (
        tapster.connect(server.rest_url, key=server.key) as astray,
        pytest.raises(TapsterError, match="the control API is not at") as told,
    ):
        astray.data_list()
    assert "inference port" in told.value.hint
