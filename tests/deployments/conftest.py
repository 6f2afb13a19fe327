"""A database with models to deploy, and a data plane that reports what a test says."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from tapster.app import open_parts
from tapster.contract.control import Endpoint
from tapster.contract.manifest import Column, Manifest, Signature, TensorSpec, Tolerance
from tapster.contract.plan import LATENCY_SECONDS, PackageState, VariantTotals, WorkerState
from tapster.core.settings import load
from tapster.deployments import service
from tapster.deployments.counts import Totals
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy

NUMBERS = ("a", "b", "c")


def regression(*columns: str) -> Signature:
    """A regressor's signature over numbers."""
    return Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, len(columns))),),
        outputs=(TensorSpec("prediction", "FP32", (-1,)),),
        columns=tuple(Column(name, "number", "numeric", at) for at, name in enumerate(columns)),
    )


def labels(*classes: str) -> Signature:
    """A classifier's signature over the same numbers."""
    return Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, 3)),),
        outputs=(
            TensorSpec("prediction", "BYTES", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(classes))),
        ),
        columns=regression(*NUMBERS).columns,
        classes=classes,
    )


def digest(ref: str) -> str:
    """The digest of a registered version."""
    return ref.encode().hex().ljust(64, "0")


def register(tx: Connection, ref: str, signature: Signature, tenant: str = "default") -> None:
    """Make a model's next version, which must be the one that `ref` says."""
    model, _, number = ref.partition("@")
    manifest = Manifest(
        name=model,
        task="regression",
        runtime="onnx",
        model_file="model.onnx",
        signature=signature,
        tolerance=Tolerance(0, 0),
        files={},
    )
    made = registry.register(
        tx,
        tenant,
        model=model,
        digest=digest(ref) if tenant == "default" else _other(tenant, ref),
        manifest=manifest,
        bytes=1,
        signer="0" * 64,
        job="",
    )
    assert made.version == int(number)


def _other(tenant: str, ref: str) -> str:
    return hashlib.sha256(f"{tenant}/{ref}".encode()).hexdigest()


class DataPlane:
    """What workers report: their packages, and counters that a test adds to."""

    def __init__(self, tx: Connection, workers: int = 1) -> None:
        self._tx = tx
        self.count = workers
        self.failed: dict[str, str] = {}
        self.lag = 0
        self.silent = False
        self.counters: dict[str, dict[str, VariantTotals]] = {"one": {}}

    def workers(self) -> list[WorkerState]:
        """See Heard."""
        if self.silent:
            return []
        plan = service.plan(self._tx, "key")
        packages = tuple(
            PackageState(
                each.digest,
                "failed" if each.digest in self.failed else "ready",
                self.failed.get(each.digest, ""),
            )
            for each in plan.packages
        )
        return [
            WorkerState(index, 1, plan.number - self.lag, packages) for index in range(self.count)
        ]

    def totals(self, tenant: str, endpoint: str) -> Totals:
        """See Heard."""
        return self.counters if (tenant, endpoint) == ("default", "e") else {}

    def answer(
        self, version: str, ok: int, errors: int = 0, seconds: float = 0.0007, agent: str = "one"
    ) -> None:
        """A version has answered so many requests more."""
        bucket = sum(bound < seconds for bound in LATENCY_SECONDS)
        empty = VariantTotals("default", "e", version, 0, 0, 0, 0, (0,) * 16)
        held = self.counters.setdefault(agent, {}).get(version, empty)
        buckets = list(held.buckets)
        buckets[bucket] += ok + errors
        self.counters[agent][version] = VariantTotals(
            "default",
            "e",
            version,
            held.ok + ok,
            held.client_errors + errors,
            held.server_errors,
            held.latency_ns + int(seconds * 1e9) * (ok + errors),
            tuple(buckets),
            golden_different=held.golden_different,
        )

    def settle(self, times: int = 1) -> bool:
        """Let the control plane act on the reports."""
        changed = [service.settle(self._tx, self, self.count) for _ in range(times)]
        return any(changed)


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Connection]:
    """A transaction over a database with models m (three versions) and others."""
    parts = open_parts(load({}, home=tmp_path))
    with parts.db.write() as tx:
        for number in (1, 2, 3):
            register(tx, f"m@{number}", regression(*NUMBERS))
        yield tx
    parts.db.close()


@pytest.fixture
def plane(tx: Connection) -> DataPlane:
    """One worker."""
    return DataPlane(tx)


def live(tx: Connection, plane: DataPlane, ref: str, percent: float = 100.0) -> Endpoint:
    """Deploy at endpoint e and switch."""
    service.deploy(tx, "default", "e", ref, percent)
    plane.settle(2)
    return shown(tx)


def shown(tx: Connection) -> Endpoint:
    """Endpoint e."""
    return service.show(tx, "default", "e")


def weights(held: dict[str, Any] | None) -> dict[str, float | None]:
    """Versions and shares of a set, shadows as None."""
    assert held is not None
    return {
        f"{each['model']}@{each['version']}": None if each["shadow"] else each["weight"]
        for each in held["variants"]
    }


def revision(tx: Connection) -> int:
    """The newest plan's number."""
    return tenancy.revision(tx)
