"""A data-plane worker as the supervisor starts it, on a real socket, with plans made by tests."""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tapster.contract.plan import (
    EndpointPlan,
    KeyGrant,
    PackageRef,
    ServingPlan,
    Variant,
    WorkerState,
)
from tapster.contract.snapshots import pack
from tapster.serving import planfile
from tests.serving import packages

KEY = "tap_test-key"
AGENT_KEY = b"agent-key-of-the-test"
SIGNERS = (packages.SIGNER.public,)
LIMIT = 30.0


def grant(key: str, *rights: str, tenant: str = "default", **more: Any) -> KeyGrant:
    """A key as plans know it."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return KeyGrant(id=f"id-{key}", digest=digest, tenant=tenant, rights=rights or ("*",), **more)


def endpoint(name: str, package: PackageRef, version: int = 1, **more: Any) -> EndpointPlan:
    """An endpoint with one variant."""
    variant = Variant(model="made", version=version, package=package.digest)
    tenant = more.pop("tenant", "default")
    return EndpointPlan(
        id=f"ep-{tenant}-{name}", tenant=tenant, name=name, variants=(variant,), **more
    )


def wait_for(check: Callable[[], Any], what: str) -> Any:
    """The first true value of `check`, within a limit that only a hang reaches."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if found := check():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


@dataclass
class Answer:
    """A response: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Plane:
    """A home, a listening socket and the workers on it."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    listener: socket.socket = field(init=False)
    grpc: socket.socket = field(init=False)
    workers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.grpc = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.grpc_port: int = self.grpc.getsockname()[1]
        (self.home / "run").mkdir(parents=True, exist_ok=True)
        (self.home / "agent.key").write_bytes(AGENT_KEY + b"\n")

    def plan(
        self,
        *endpoints: EndpointPlan,
        packages: tuple[PackageRef, ...] = (),
        keys: tuple[KeyGrant, ...] = (),
    ) -> ServingPlan:
        """The next plan, saved as an agent would."""
        self.number += 1
        plan = ServingPlan(
            number=self.number,
            endpoints=endpoints,
            packages=packages,
            keys=keys or (grant(KEY),),
            signers=SIGNERS,
        )
        planfile.save(self.home / "run", pack(plan), AGENT_KEY)
        return plan

    def start(self, index: int = 0, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker, as the supervisor does."""
        given = {"TAPSTER_HOME": str(self.home), "TAPSTER_PORT": "1", **self.settings}
        given |= {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
        inherited = (self.listener.fileno(), self.grpc.fileno())
        options = {
            "--index": index,
            "--fd": inherited[0],
            "--grpc-fd": inherited[1],
            "--slots": self.slots,
        }
        with (self.home / "log").open("ab") as log:
            self.workers[index] = subprocess.Popen(
                [sys.executable, "-m", "tapster.serving.worker"]
                + [str(word) for option in options.items() for word in option],
                env={**os.environ, **given},
                pass_fds=inherited,
                stderr=log,
            )
        return self.workers[index]

    @property
    def slots(self) -> Path:
        return self.home / "run" / "slots"

    def state(self, index: int = 0) -> WorkerState | None:
        """What a living worker last published."""
        try:
            data = (self.home / "run" / f"worker-{index}.json").read_bytes()
        except FileNotFoundError:
            return None
        state = msgspec.json.decode(data, type=WorkerState)
        return state if state.pid == self.workers[index].pid else None

    def applied(self, number: int = 0, index: int = 0) -> WorkerState:
        """Wait until a worker has applied a plan and settled its packages."""

        def check() -> WorkerState | None:
            assert self.workers[index].poll() is None, self.log()
            state = self.state(index)
            if state is None or state.plan < (number or self.number):
                return None
            return None if any(p.state == "loading" for p in state.packages) else state

        found: WorkerState = wait_for(check, "the plan to be applied")
        return found

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = KEY, **headers: str
    ) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as line:
            line.request(method, path, data, sent)
            answer = line.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def connect(self) -> socket.socket:
        """A bare socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)

    def raw(self, data: bytes) -> bytes:
        """Everything that comes back for raw bytes, until the server closes."""
        with self.connect() as line:
            line.sendall(data)
            return read_all(line)

    def stop(self) -> None:
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers.values():
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.listener.close()
        self.grpc.close()

    def log(self) -> str:
        return (self.home / "log").read_text()[-3000:]


def read_all(line: socket.socket) -> bytes:
    """Bytes until the other side closes or resets."""
    got = b""
    try:
        while piece := line.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


def request(
    path: str, body: bytes = b"", *, method: str = "POST", key: str = KEY, more: str = ""
) -> bytes:
    """A raw HTTP/1.1 request."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@pytest.fixture
def new_plane(tmp_path: Path) -> Iterator[Callable[..., Plane]]:
    """Make data planes of one's own: `new_plane(receive_timeout=0.5)`."""
    made: list[Plane] = []

    def make(**settings: Any) -> Plane:
        given = {f"TAPSTER_{name.upper()}": str(value) for name, value in settings.items()}
        made.append(Plane(tmp_path / f"home{len(made)}", given))
        return made[-1]

    yield make
    for plane in made:
        plane.stop()


@dataclass
class Served:
    """A plane with one worker and every kind of model, for tests that only call it."""

    plane: Plane
    packages: dict[str, PackageRef]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """See Served. Endpoints: sum, sum-two (versions 1 and 2), mixed, typed, every, words, pixels;
    theirs of another tenant."""
    from tests.serving import packages

    plane = Plane(tmp_path_factory.mktemp("served") / "home", {"TAPSTER_MAX_BODY": "4000000"})
    made = {
        "one": packages.regressor(plane.home, 1.0),
        "two": packages.regressor(plane.home, 2.0),
        "mixed": packages.classifier(plane.home),
        "typed": packages.typed(plane.home),
        "every": packages.every(plane.home),
        "words": packages.every(plane.home, "BYTES", width=1),
        "pixels": packages.every(plane.home, "UINT8", width=-1),
    }
    both = tuple(
        Variant(model="made", version=number, package=made[name].digest, weight=weight)
        for number, name, weight in ((1, "one", 0.1), (2, "two", 0.9))
    )
    plane.plan(
        endpoint("sum", made["one"]),
        EndpointPlan("ep-two", "default", "sum-two", both, labels={"champion": 1}),
        endpoint("mixed", made["mixed"], 3),
        endpoint("typed", made["typed"]),
        *(endpoint(name, made[name]) for name in ("every", "words", "pixels")),
        endpoint("theirs", made["two"], tenant="other"),
        packages=tuple(made.values()),
        keys=(
            grant(KEY),
            grant("reader", "endpoints:read"),
            grant("caller", "predict"),
            grant("watcher", "metrics:read"),
            grant("expired", "*", expires=1.0),
            grant("theirs", "*", tenant="other"),
        ),
    )
    plane.start()
    plane.applied()
    yield Served(plane, made)
    plane.stop()


@pytest.fixture
def plane(served: Served) -> Plane:
    """The plane of `served`."""
    return served.plane


@pytest.fixture
def control() -> Iterator[Any]:
    """A control plane in a few lines, see `Control`, to be started by the test."""
    from tests.serving.control import Control

    made = Control()
    yield made
    if made.server.fileno() != -1:
        made.stop()
