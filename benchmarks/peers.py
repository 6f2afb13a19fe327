"""The servers that `serving.py` measures against: their environments, and how each is run."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
VENVS: Final = HERE.parent / ".venvs"
MODEL: Final = "forest"
PATH: Final = f"/v2/models/{MODEL}/infer"
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0
PROXYLESS: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Peer:
    """Something to be measured against; `goal` is how many times its req/s we want.

    `home` names the virtual environment, where it is not the peer's own.
    """

    name: str
    label: str
    file: str
    goal: float | None = None
    arguments: tuple[str, ...] = ()
    home: str = ""

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return self.folder / "bin" / "python"

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return VENVS / (self.home or self.name)


PEERS: Final = (
    Peer("fastapi-sklearn", "FastAPI + pickled scikit-learn", "fastapi_sklearn.py"),
    Peer(
        "fastapi-onnx-threads",
        "FastAPI + ONNX Runtime, `def`",
        "fastapi_onnx.py",
        10,
        ("--threads",),
        "fastapi-onnx",
    ),
    Peer("fastapi-onnx", "FastAPI + ONNX Runtime, `async def`", "fastapi_onnx.py", 10),
    Peer("mlserver", "MLServer 1.7.1 + ONNX Runtime", "mlserver_runtime.py", 20),
    Peer("litserve", "LitServe + ONNX Runtime", "litserve_api.py"),
    Peer("bentoml", "BentoML + ONNX Runtime", "bentoml_service.py"),
)


@dataclass(frozen=True)
class Address:
    """Where to send requests, the server's process, and the headers that it wants."""

    url: str
    process: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """One-row requests and the scores that answer them."""

    folder: Path
    bodies: list[str]
    expected: list[list[float]]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def ensure_environment(peer: Peer, constraints: Path) -> str:
    """Make the peer's virtual environment unless it is there; returns why it cannot be, or ""."""
    home = peer.folder
    stamp = home / "tapster-benchmark"
    wanted = [*requirements(HERE / "serving_peers" / peer.file), constraints.read_text()]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return ""
    say(f"installing {peer.label} into .venvs/{home.name} ...")
    venv.create(home, with_pip=True, symlinks=True)
    done = subprocess.run(
        [peer.python, "-m", "pip", "install", "--quiet", "-c", constraints, *wanted[:-1]],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (errors or done.stderr.splitlines() or ["pip failed"])[-1]
    stamp.write_text(digest)
    return ""


def requirements(script: Path) -> list[str]:
    """The dependencies in a script's inline metadata (PEP 723)."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)
    assert block is not None, f"{script.name} does not say what it needs"
    metadata = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    found: list[str] = metadata["dependencies"]
    return found


@contextmanager
def peer_running(peer: Peer, workload: Workload, cpu: int) -> Iterator[Address]:
    """The peer on its core, once it gives a right answer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log_path = workload.folder / f"{peer.name}.log"
    environment = {name: text for name, text in os.environ.items() if "PYTHON" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    script = HERE / "serving_peers" / peer.file
    with log_path.open("wb") as log, on_core(cpu):
        process = subprocess.Popen(
            [peer.python, script, workload.folder, str(port), *peer.arguments],
            cwd=workload.folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = Address(f"http://127.0.0.1:{port}{PATH}", process.pid)
        wait_for_answer(address, workload, process)
        yield address
    except RuntimeError as error:
        tail = log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{peer.label}: {error}\n{tail}") from None
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a peer and whatever it started (its session's process group)."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return


@contextmanager
def on_core(cpu: int) -> Iterator[None]:
    """What is started in here, and all its children, stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for_answer(
    address: Address, workload: Workload, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Ask until the first answer. Raises RuntimeError when none comes."""
    until = time.monotonic() + START_SECONDS
    last = "nothing"
    while time.monotonic() < until and (process is None or process.poll() is None):
        request = urllib.request.Request(
            address.url,
            workload.bodies[0].encode(),
            {"Content-Type": "application/json", **address.headers},
        )
        try:
            with PROXYLESS.open(request, timeout=20):
                return
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read()[:300]!r}"
        except OSError as error:
            last = str(error)
        time.sleep(0.1)
    raise RuntimeError(f"no answer; the last was: {last}")
