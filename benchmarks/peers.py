"""The servers that `serving.py` measures against: their environments, and how each is run."""

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import psutil
from benchmarks.load import Plan, drive

HERE: Final = Path(__file__).resolve().parent
VENVS: Final = HERE.parent / ".venvs"
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Peer:
    """Something to be measured against.

    `goal` is how many times its req/s we want for the small model. `home` names the virtual
    environment, where it is not the peer's own. `python` says that it is written in Python.
    """

    name: str
    label: str
    file: str
    goal: float | None = None
    arguments: tuple[str, ...] = ()
    home: str = ""
    wires: tuple[str, ...] = ("json",)
    models: tuple[str, ...] = ("forest", "cnn", "bert")
    python: bool = True

    @property
    def interpreter(self) -> Path:
        """The interpreter of its environment."""
        return self.folder / "bin" / "python"

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return VENVS / (self.home or self.name)


TRITON: Final = "Triton (PyTriton 0.7's binary), Python backend on ONNX Runtime"
BARE: Final = "nothing: the bare protocol"
PEERS: Final = (
    Peer("fastapi-sklearn", "FastAPI + pickled scikit-learn", "fastapi_sklearn.py",
         models=("forest",)),
    Peer("ray", "Ray Serve 2.60 + ONNX Runtime", "ray_serve.py", wires=("json", "grpc")),
    Peer("litserve", "LitServe + ONNX Runtime", "litserve_api.py"),
    Peer("bentoml", "BentoML + ONNX Runtime", "bentoml_service.py"),
    Peer("mlserver", "MLServer 1.7.1 + ONNX Runtime", "mlserver_runtime.py", 25,
         wires=("json", "grpc")),
    Peer("fastapi-onnx-threads", "FastAPI + ONNX Runtime, `def`", "fastapi_onnx.py", 12,
         ("--threads",), "fastapi-onnx"),
    Peer("fastapi-onnx", "FastAPI + ONNX Runtime, `async def`", "fastapi_onnx.py", 12),
    Peer("grpcio-onnx", "grpc.aio + ONNX Runtime", "grpcio_onnx.py", wires=("grpc",)),
    Peer("triton", TRITON, "triton_server.py", 5, wires=("json", "binary", "grpc"), python=False),
    Peer("bare", BARE, "bare_protocol.py", wires=("json", "grpc"), models=("forest",),
         python=False),
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where requests go: ports on loopback, the server's process, the headers that it wants."""

    http_port: int
    grpc_port: int
    process: int
    headers: dict[str, str] = field(default_factory=dict)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def ensure_environment(peer: Peer, constraints: str) -> str:
    """Make the peer's virtual environment unless it is there; returns why it cannot be, or ""."""
    home = peer.folder
    stamp = home / "tapster-benchmark"
    whole, bare = requirements(HERE / "serving_peers" / peer.file)
    digest = hashlib.sha256("\n".join([*whole, "", *bare, constraints]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return ""
    say(f"installing {peer.label} into .venvs/{home.name} ...")
    venv.create(home, clear=True, symlinks=True)
    limits = home / "constraints.txt"
    limits.write_text(constraints)
    problem = _install(peer, ["--constraint", str(limits), *whole])
    if not problem and bare:
        problem = _install(peer, ["--no-deps", *bare])
    if not problem:
        stamp.write_text(digest)
    return problem


def _install(peer: Peer, arguments: list[str]) -> str:
    pip = [sys.executable, "-m", "pip", "--python", str(peer.interpreter), "install", "--quiet"]
    done = subprocess.run([*pip, *arguments], check=False, capture_output=True, text=True)
    if not done.returncode:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or done.stderr.splitlines() or ["pip failed"])[-1]


def requirements(script: Path) -> tuple[list[str], list[str]]:
    """What a script's inline metadata (PEP 723) asks for: with, and without dependencies."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)
    assert block is not None, f"{script.name} does not say what it needs"
    metadata = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    ours = metadata.get("tool", {}).get("tapster", {})
    return metadata["dependencies"], ours.get("without-dependencies", [])


@contextmanager
def peer_running(peer: Peer, model: Path, cpu: int) -> Iterator[Address]:
    """The peer with a model, on its core."""
    http_port, grpc_port = free_ports()
    log_path = model.parent / f"{peer.name}.log"
    environment = {name: text for name, text in os.environ.items() if "PYTHON" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    script = HERE / "serving_peers" / peer.file
    ports = [str(http_port), str(grpc_port)]
    command = [str(peer.interpreter), str(script), str(model), *ports, *peer.arguments]
    with log_path.open("wb") as log, on_core(cpu):
        process = subprocess.Popen(
            command, cwd=model, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield Address(http_port, grpc_port, process.pid)
    except RuntimeError as error:
        tail = log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{peer.label}: {error}\n{tail}") from None
    finally:
        end(process)


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as two:
        return one.getsockname()[1], two.getsockname()[1]


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a peer and whatever it started, in whatever session that runs."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        started = []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=3)
    for one in alive:
        one.kill()


@contextmanager
def on_core(cpu: int) -> Iterator[None]:
    """What is started in here, and all its children, stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for_answer(plan: Plan) -> None:
    """Ask one request at a time until an answer is right. Raises RuntimeError when none is."""
    probe = replace(plan, connections=1, warm_up=0.0, seconds=0.05, check_every=1, cpu=None)
    until = time.monotonic() + START_SECONDS
    last = "nothing"
    while time.monotonic() < until:
        if plan.server is not None and not _alive(plan.server):
            raise RuntimeError("it ended while it was starting")
        try:
            result = asyncio.run(drive(probe))
        except OSError as error:
            last = repr(error)
        else:
            if result["answered"] and not result["errors"]:
                return
            last = result["first_error"]
        time.sleep(0.2)
    raise RuntimeError(f"it gave no right answer within {START_SECONDS:.0f} s: {last}")


def _alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
