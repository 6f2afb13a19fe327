"""What the supervisor does when the machine lacks what it needs."""

import errno
import os
import select
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tapster import supervisor
from tapster.core.absence import StandIn
from tapster.core.settings import Settings
from tests.conftest import Server


def test_a_child_that_cannot_be_started_again_ends_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the supervisor nor, with it, the workers that serve on."""
    config = Settings(home=tmp_path, port=0, rest_port=0, grpc_port=0, workers=1)
    sockets = [supervisor._bind(config, name)[0] for name in ("port", "rest_port", "grpc_port")]
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    control, rest, grpc = sockets
    held = supervisor._Supervisor(config, control, (rest, grpc), lock)
    worker = held._workers[0]
    tries: list[Any] = []

    def lacking(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        tries.append(given)
        if len(tries) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return subprocess.Popen(["true"])

    class Lacking:
        DEVNULL, Popen = subprocess.DEVNULL, staticmethod(lacking)

    monkeypatch.setattr(supervisor, "subprocess", Lacking)
    try:
        held._look_after(worker)
        held._look_after(worker)
        assert (len(tries), worker.process) == (1, None), "it is tried again, later"
        until = time.monotonic() + 20.0
        while worker.process is None:
            held._look_after(worker)
            assert time.monotonic() < until
            time.sleep(0.01)
        worker.process.wait()
    finally:
        for each in sockets:
            each.close()
        os.close(lock)


def test_callers_whom_no_thread_can_answer_end_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who speak TLS to the port of a control process that is not there."""

    def lacking(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        stand_in = StandIn(listener, cast("Any", SimpleNamespace(context=lambda alpn: object())))
        monkeypatch.setattr(threading.Thread, "start", lacking)
        with socket.create_connection(listener.getsockname(), 20.0) as caller:
            until = time.monotonic() + 20.0
            while not select.select([caller], [], [], 0.01)[0]:
                stand_in.answer()
                assert time.monotonic() < until
            assert caller.recv(1) == b""


def test_a_home_that_others_may_enter_holds_nothing_that_they_may_read(tmp_path: Path) -> None:
    """As one has that was made by hand, before the first start."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    usual = os.umask(0o022)
    try:
        server = Server(home).start()
    finally:
        os.umask(usual)
    try:
        found = [path for path in home.rglob("*") if path.name != "server.log"]
        assert home / "tapster.db" in found
        assert [path for path in found if path.stat().st_mode & 0o077] == []
    finally:
        server.stop()
