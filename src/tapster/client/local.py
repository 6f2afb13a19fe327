"""A server of one's own: the supervisor as a child on free ports, stopped with its owner."""

import atexit
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Final

from tapster.client.transport import Address, Transport, on_home, read_run
from tapster.contract.errors import TapsterError

START_TIMEOUT: Final = 120.0
STOP_TIMEOUT: Final = 40.0


class LocalServer:
    """The supervisor as a child process: stopped with its owner, killed should that die."""

    def __init__(self, home: Path) -> None:
        import tempfile

        self._home = home
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = _start(home, self._log)
        atexit.register(self.stop)

    def wait_ready(self) -> Address:
        """Where it answers. Raises TapsterError with the server's own words if it gave up."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._said()
            running = read_run(self._home)
            if running is not None and running["pid"] == self._process.pid:
                address = settled(self._home)
                if address is not None:
                    return address
            time.sleep(0.05)
        self.stop()
        raise TapsterError(
            "deadline",
            f"the server was not ready within {START_TIMEOUT:.0f} s",
            hint="tapster doctor",
        )

    def stop(self) -> None:
        """Ask it to end, and make it if it does not."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _said(self) -> TapsterError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        self._log.close()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        notes = [
            line for line in lines if not line.startswith(("error: ", "hint: ", "tapster: ", "{"))
        ]
        told = errors[-1] if errors else "the server ended while it was starting"
        return TapsterError(
            "unavailable",
            f"{told} ({notes[-1][:200]})" if notes else told,
            hint=hints[-1] if hints else "look for the reason with: tapster doctor",
        )


def _start(home: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the supervisor from a thread that lives as long as it does.

    It ends with the thread that started it (PR_SET_PDEATHSIG of prctl(2) is about threads), and
    `connect` may be called from one that is about to end.
    """
    ports = {f"TAPSTER_{name}": "0" for name in ("PORT", "REST_PORT", "GRPC_PORT")}
    ports["TAPSTER_HOST"] = "127.0.0.1"
    made: list[subprocess.Popen[bytes] | BaseException] = []
    ready = threading.Event()

    def attend() -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "tapster.supervisor", str(os.getpid())],
                env={**os.environ, "TAPSTER_HOME": str(home), **ports},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's to handle
            )
        except BaseException as error:
            made.append(error)
            ready.set()
            return
        made.append(process)
        ready.set()
        process.wait()

    threading.Thread(target=attend, name="tapster server", daemon=True).start()
    ready.wait()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def settled(home: Path) -> Address | None:
    """The server on `home` once it answers; None if there is none, or it does not.

    A new server binds its ports before it writes its key, so the key is read after its answer.
    """
    address = on_home(home)
    return on_home(home) if address is not None and healthy(address) else None


def healthy(address: Address) -> bool:
    """Whether the control API answers."""
    transport = Transport(address)
    try:
        transport.call(dict, "GET", "/health", at=address.url, timeout=30.0)
        return True
    except TapsterError:
        return False
    finally:
        transport.close()
