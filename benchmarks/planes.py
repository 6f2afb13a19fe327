"""Data-plane workers without a control plane: packages sealed here, plans written by hand."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tapster.contract.manifest import Signature, Tolerance
from tapster.contract.plan import (
    EndpointPlan,
    KeyGrant,
    Options,
    PackageRef,
    ServingPlan,
    TenantGrant,
    Variant,
    WorkerState,
)
from tapster.contract.snapshots import pack
from tapster.core.crypto import Signer
from tapster.runtimes import parity
from tapster.runtimes.onnx import open_session, signature_from_graph
from tapster.runtimes.package import MODEL, PARITY, seal, sign
from tapster.serving import planfile

KEY: Final = "tap_benchmark"
HEADERS: Final = {"Authorization": f"Bearer {KEY}"}
_AGENT: Final = b"key-of-the-benchmark"
_SIGNER: Final = Signer(bytes(32))
_TOLERANCE: Final = Tolerance(atol=1e-4, rtol=1e-4)
_PATIENCE: Final = 600.0


@dataclass
class Plane:
    """A home, listening sockets and the workers on them, each on the core `cpu`, and their log.

    `module` is how Python is told to run a worker.
    """

    home: Path
    cpu: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    log: IO[bytes] | None = None
    module: Sequence[str] = ("-m", "tapster.serving.worker")

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._grpc = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.grpc_port: int = self._grpc.getsockname()[1]
        self._workers: list[subprocess.Popen[bytes]] = []
        self._number = 0
        (self.home / "run").mkdir(parents=True)
        (self.home / "agent.key").write_bytes(_AGENT)

    def __enter__(self) -> "Plane":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._listener.close()
        self._grpc.close()

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [worker.pid for worker in self._workers]

    def packages(self, model: Path, rows: NDArray[Any], count: int) -> list[PackageRef]:
        """So many packages of an ONNX model: the same graph under another digest each."""
        data = model.read_bytes()
        signature = signature_from_graph(data)
        session = open_session(data, 1)
        inputs = {signature.inputs[0].name: rows}
        names = [spec.name for spec in signature.outputs]
        vectors = parity.record(inputs, dict(zip(names, session.run(names, inputs), strict=True)))
        return [self._package(data, vectors, signature, number) for number in range(count)]

    def plan(self, packages: Sequence[PackageRef], **options: Any) -> int:
        """Serve each package at an endpoint of its own, `m0` and on; the plan's number."""
        endpoints = tuple(
            EndpointPlan(
                id=f"ep-{number}",
                tenant="default",
                name=f"m{number}",
                variants=(Variant("m", 1, package.digest),),
                options=Options(**options),
            )
            for number, package in enumerate(packages)
        )
        return self.serve(endpoints, packages)

    def serve(
        self,
        endpoints: Sequence[EndpointPlan],
        packages: Sequence[PackageRef],
        keys: Sequence[KeyGrant] = (),
        tenants: Sequence[TenantGrant] = (),
    ) -> int:
        """Make this the plan; its number. Without any keys, `KEY` opens everything."""
        self._number += 1
        plan = ServingPlan(
            self._number,
            tuple(endpoints),
            tuple(packages),
            tuple(keys) or (key_grant(KEY, "default"),),
            (_SIGNER.public,),
            tuple(tenants),
        )
        planfile.save(self.home / "run", pack(plan), _AGENT)
        return self._number

    def start(self) -> None:
        """Start one more worker."""
        listeners = [self._listener.fileno(), self._grpc.fileno()]
        settings = {"home": str(self.home), "port": "1", "log_level": "error", **self.settings}
        command = [sys.executable, *self.module, "--index", str(len(self._workers))]
        command += ["--fd", str(listeners[0]), "--grpc-fd", str(listeners[1])]
        command += ["--slots", str(self.home / "run" / "slots")]
        worker = subprocess.Popen(
            command,
            env={**os.environ, **{f"TAPSTER_{n.upper()}": v for n, v in settings.items()}},
            pass_fds=listeners,
            stderr=self.log,
        )
        if self.cpu is not None:
            os.sched_setaffinity(worker.pid, {self.cpu})
        self._workers.append(worker)

    def applied(self) -> float:
        """Wait until every worker has the last plan in force and nothing left to load; seconds."""
        began = time.monotonic()
        while time.monotonic() - began < _PATIENCE:
            if all(self._settled(index) for index in range(len(self._workers))):
                return time.monotonic() - began
            time.sleep(0.005)
        raise RuntimeError("the workers did not apply the plan")

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            worker.wait(60)
        self._workers.clear()

    def states(self, index: int = 0) -> list[str]:
        """What became of each package in a worker."""
        state = self._state(index)
        return [package.state for package in state.packages] if state else []

    def _settled(self, index: int) -> bool:
        worker = self._workers[index]
        if worker.poll() is not None:
            raise RuntimeError(f"a worker ended with {worker.returncode}")
        state = self._state(index)
        if state is None or state.plan < self._number:
            return False
        if failed := next((p.error for p in state.packages if p.state == "failed"), ""):
            raise RuntimeError(f"a package was refused: {failed}")
        return all(package.state != "loading" for package in state.packages)

    def _state(self, index: int) -> WorkerState | None:
        try:
            data = (self.home / "run" / f"worker-{index}.json").read_bytes()
        except FileNotFoundError:
            return None
        state = msgspec.json.decode(data, type=WorkerState)
        return state if state.pid == self._workers[index].pid else None

    def _package(
        self, model: bytes, vectors: bytes, signature: Signature, number: int
    ) -> PackageRef:
        folder = self.home / "making"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / MODEL).write_bytes(model)
        (folder / PARITY).write_bytes(vectors)
        digest = seal(
            folder,
            name=f"m{number}",
            task="other",
            signature=signature,
            tolerance=_TOLERANCE,
            created=float(number),
        )
        sign(folder, _SIGNER)
        key = f"default/packages/{digest}"
        (self.home / "blobs" / key).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(self.home / "blobs" / key)
        return PackageRef(digest, key)


def key_grant(key: str, tenant: str) -> KeyGrant:
    """A key that may everything, as plans know it."""
    return KeyGrant(f"id-{key}", hashlib.sha256(key.encode()).hexdigest(), tenant, ("*",))


def memory(pid: int, *names: str) -> dict[str, int]:
    """Bytes by the names of /proc/PID/smaps_rollup, such as `Pss` and `Rss`."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in names:
            found[name] = int(rest.split()[0]) * 1024
    return found


def linear(folder: Path, width: int = 16) -> tuple[Path, NDArray[Any]]:
    """A small model: a scaled linear classifier of `width` numbers, and rows for it."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "mean": random.normal(size=(width,)).astype(np.float32),
        "weights": random.normal(size=(width, 2)).astype(np.float32),
        "bias": random.normal(size=(2,)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["numeric", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "linear.onnx"
    path.write_bytes(model.SerializeToString())
    return path, random.normal(size=(4, width)).astype(np.float32)
