"""`tapster up`: holds the home, binds the ports, starts the processes and keeps them alive.

Children inherit the listening sockets, so a connection waits while a dead child is replaced, and
end with this process. While the control process cannot live, this one says so in its place, and
serving goes on. It imports no web framework, no database and no model library.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.core import telemetry, tls
from tapster.core.absence import StandIn
from tapster.core.blobs import storage_error, write_atomically
from tapster.core.envelope import Master, masters_of
from tapster.core.processes import die_with_parent
from tapster.core.settings import Settings
from tapster.core.vault import Vault
from tapster.serving import slots

log = telemetry.logger(__name__)

_POLL: Final = 0.05
_STALL: Final = 10.0
_START_GRACE: Final = 60.0
_LAST_MOMENT: Final = 0.5
_LONGEST_BACKOFF: Final = 10.0
_HEALTHY: Final = 5.0
_GIVE_UP: Final = 4
_LACKING: Final = 1.0


@dataclass
class Child:
    """A process that must be running: how to start it, and how often it died young."""

    name: str
    command: list[str]
    fds: tuple[int, ...]
    slot: int | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    young_deaths: int = 0
    restarts: int = field(default=-1)


def run(config: Settings, announce: Callable[[Settings], None] | None = None) -> int:
    """Run an installation until SIGTERM or SIGINT; 0 when it stopped as asked.

    Raises TapsterError when the home cannot be written or is held by another Tapster, when a port
    is taken, and when the control process cannot start. `announce` is called once ports are bound.
    """
    telemetry.configure(config.log_level, config.log_format, "supervisor")
    os.umask(0o077)  # a home that others may enter holds rows and content that they may not read
    _open_home(config)
    lock = _lock(config.home)
    vault: Vault | None = None
    try:
        vault, config = _with_keys(tls.prepared(config))
        control, config = _bind(config, "port")
        rest, config = _bind(config, "rest_port")
        grpc, config = _bind(config, "grpc_port")
        return _Supervisor(config, control, (rest, grpc), lock).run(announce)
    finally:
        (config.home / "run.json").unlink(missing_ok=True)
        if vault is not None:
            vault.clear()
        os.close(lock)


def _with_keys(config: Settings) -> tuple[Vault | None, Settings]:
    """The vault, emptied of what was left in it, and settings by which children get master keys.

    They are asked for once, and handed down as files in memory that children inherit: no variable
    and no command line holds them, and children start when their source is away.
    """
    masters, vault = masters_of(config), Vault.of(config)
    if vault is None or masters is None:
        return None, config
    vault.clear()
    vault.open()
    previous = masters.previous
    return vault, replace(
        config,
        master_key="",
        master_key_command="",
        master_key_file=_handed_down(masters.current),
        master_key_previous="",
        master_key_previous_command="",
        master_key_previous_file=_handed_down(previous) if previous else "",
    )


def _handed_down(master: Master) -> str:
    """The path by which children read a master key."""
    descriptor = os.memfd_create("master-key")
    os.write(descriptor, master.spelled)
    os.set_inheritable(descriptor, True)
    return f"/proc/self/fd/{descriptor}"


def _inherited(config: Settings) -> tuple[int, ...]:
    """Descriptors that every child needs besides its own."""
    paths = (config.master_key_file, config.master_key_previous_file)
    words = (path.removeprefix("/proc/self/fd/") for path in paths)
    return tuple(int(word) for word in words if word.isdecimal())


class _Supervisor:
    def __init__(
        self,
        config: Settings,
        control: socket.socket,
        inference: tuple[socket.socket, socket.socket],
        lock: int,
    ) -> None:
        self._config = config
        self._stopping = 0
        self._listeners = (control, *inference)
        run_folder = config.home / "run"
        run_folder.mkdir(exist_ok=True)
        self._slots = slots.Slots(run_folder / "slots")
        me = str(os.getpid())
        self._stand_in = StandIn(control, tls.Certificate(config) if config.encrypted else None)
        self._plan = run_folder / "plan.sealed"
        self._control = Child(
            "control",
            ["-m", "tapster.app", str(control.fileno()), me],
            (control.fileno(), lock),
        )
        self._workers = [self._worker(index, inference, me) for index in range(config.workers)]
        here = () if config.control_url else (self._control,)
        self._children = [*here, *self._workers]

    def _worker(self, index: int, inference: tuple[socket.socket, socket.socket], me: str) -> Child:
        rest, grpc = (listener.fileno() for listener in inference)
        options = {
            "--index": str(index),
            "--fd": str(rest),
            "--grpc-fd": str(grpc),
            "--slots": str(self._config.home / "run" / "slots"),
            "--parent": me,
        }
        words = [word for option in options.items() for word in option]
        command = ["-m", "tapster.serving.worker", *words]
        return Child(f"worker {index}", command, (rest, grpc), index)

    def run(self, announce: Callable[[Settings], None] | None) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        children = self._children
        if self._config.encrypted:
            signal.signal(signal.SIGHUP, self._renew)
        try:
            for child in children:
                self._start(child)
            self._write_run_file()
            if announce:
                announce(self._config)
            while not self._stopping:
                for child in children:
                    self._look_after(child)
                if self._control.process is None:  # nor is there one if control is elsewhere
                    self._stand_in.answer()
                self._stand_in.let_go()
                time.sleep(_POLL)
        finally:
            for listener in self._listeners:  # who comes now is refused, and need not wait
                listener.close()
            until = time.monotonic() + self._config.stop_grace + _LAST_MOMENT
            self._end(self._workers, until)
            self._end([self._control], max(until, time.monotonic() + _LAST_MOMENT))
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping += 1

    def _renew(self, *_: object) -> None:
        """Have every child read its certificate again."""
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(signal.SIGHUP)

    def _start(self, child: Child) -> None:
        environment = {**os.environ, **self._config.environment()}
        if child.slot is not None:
            environment.pop("TAPSTER_DATABASE_URL", None)
        child.process = subprocess.Popen(
            [sys.executable, *child.command],
            pass_fds=(*child.fds, *_inherited(self._config)),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        child.started = time.monotonic()
        child.restarts += 1

    def _start_again(self, child: Child, now: float) -> None:
        """Start a child, or try later: a machine may lack memory or processes for a while."""
        try:
            self._start(child)
        except OSError as error:
            child.due = now + _LACKING
            reason = os.strerror(error.errno or 0)
            log.error("a process cannot be started now", child=child.name, reason=reason)

    def _look_after(self, child: Child) -> None:
        """Replace a child that ended or whose loop stands still; back off when it dies young."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.due:
                self._start_again(child, now)
            return
        if child.process.poll() is None:
            if child.slot is not None and self._stalled(child, now):
                log.error("a worker's event loop stands still; ending it", child=child.name)
                child.process.kill()
            elif now - child.started > _HEALTHY:
                child.young_deaths = 0
            return
        if now - child.started < _HEALTHY:
            child.young_deaths += 1
        hopeless = child is self._control and child.young_deaths >= _GIVE_UP
        if hopeless and not self._plan.exists():  # with a plan, workers serve without it
            raise TapsterError(
                "unavailable",
                f"the control process died {_GIVE_UP} times as it started",
                hint="its last lines above say why; `tapster doctor` checks the installation",
            )
        delay = (
            0.0 if child.young_deaths <= 1 else min(0.25 * 2**child.young_deaths, _LONGEST_BACKOFF)
        )
        log.warning("a process ended; starting it again", **_death(child, now), after=delay)
        child.process, child.due = None, now + delay

    def _stalled(self, child: Child, now: float) -> bool:
        assert child.slot is not None
        beat = self._slots.state(child.slot, slots.HEARTBEAT) / 1e9
        if beat < child.started:
            return now - child.started > _START_GRACE
        return now - beat > _STALL

    def _end(self, children: list[Child], until: float) -> None:
        """SIGTERM, time to finish that a second signal to us cuts short, SIGKILL."""
        alive = [child.process for child in children if child.process is not None]
        for process in alive:
            with suppress(ProcessLookupError):
                process.terminate()
        while any(process.poll() is None for process in alive):
            if time.monotonic() > until or self._stopping > 1:
                for process in alive:
                    process.kill()
            time.sleep(0.02)

    def _write_run_file(self) -> None:
        elsewhere = self._config.control_url.rstrip("/")
        content = {
            "pid": os.getpid(),
            "url": elsewhere or self._config.url,
            "rest_url": self._config.rest_url,
            "grpc_url": self._config.grpc_url,
            "grpc_port": self._config.grpc_port,
            # Whoever may read this file can trust that very certificate of this machine's.
            "certificate": "" if elsewhere else self._config.tls_cert,
        }
        write_atomically(self._config.home / "run.json", json.dumps(content).encode())


def _death(child: Child, now: float) -> dict[str, object]:
    """What a log line says of a process that ended: which, how, after how many seconds."""
    assert child.process is not None
    code = child.process.returncode
    how = {"signal": signal.strsignal(-code)} if code < 0 else {"exit_code": code}
    lived = round(now - child.started, 3)
    return {"child": child.name, "pid": child.process.pid, **how, "lived": lived}


def _open_home(config: Settings) -> None:
    try:
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = config.home / f".probe-{os.getpid()}"
        probe.write_bytes(b"tapster")
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise storage_error(error) from error
        raise TapsterError(
            "unavailable",
            f"the home {config.home} cannot be written: {os.strerror(error.errno or 0)}",
            hint="choose another with --home or TAPSTER_HOME, or mend its permissions",
            field="home",
        ) from error


def _lock(home: Path) -> int:
    """Hold the home, waiting a moment for a predecessor's children to end."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(40):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL)
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
    holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
    os.close(descriptor)
    raise TapsterError(
        "conflict",
        f"the home {home} is held by another Tapster (process {holder})",
        hint="stop it first, or choose another home with --home or TAPSTER_HOME",
        field="home",
    )


def _bind(config: Settings, name: str) -> tuple[socket.socket, Settings]:
    port = getattr(config, name)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        option = "--" + name.replace("_", "-")
        raise TapsterError(
            "conflict",
            f"{config.host}:{port} cannot be bound: {os.strerror(error.errno or 0)}",
            hint=f"stop what uses it, or choose another port with {option} (0 picks a free one)",
            field=name,
        ) from error
    listener.setblocking(False)
    return listener, replace(config, **{name: listener.getsockname()[1]})


def main() -> int:
    """Run from the environment, as a child that ends with its parent (`tapster.connect()`)."""
    from tapster.core.settings import load

    die_with_parent(int(sys.argv[1]))
    try:
        return run(load())
    except TapsterError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
