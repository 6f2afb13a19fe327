"""What the supervisor does when the machine lacks what it needs."""

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tapster import supervisor
from tapster.core.settings import Settings


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
