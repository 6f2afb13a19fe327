"""A package in memory, ready to answer: opened, verified, loaded, checked against its vectors."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Datatype, Manifest, Signature
from tapster.contract.plan import PackageRef
from tapster.core import plugins
from tapster.core.blobs import BlobStore
from tapster.runtimes import LoadedModel, Runtime, parity
from tapster.runtimes.package import PARITY, check_signature, open_package
from tapster.runtimes.rows import Encoder
from tapster.serving import isolation
from tapster.serving.batcher import Batcher, Cost, packed_input

LOADING: Final = "loading"
READY: Final = "ready"
FAILED: Final = "failed"
WARM_ROWS: Final = 16
WARM_RUNS: Final = 5
# What is kept of a package's recorded answers, to ask for them again: see golden.py.
GOLDEN_ROWS: Final = 16
GOLDEN_BYTES: Final = 1 << 20
FLOATS: Final[frozenset[Datatype]] = frozenset({"FP32", "FP64", "FP16"})


class Loaded:
    """What loading a package gives, made in a thread that may take its time."""

    def __init__(self, package: PackageRef, blobs: BlobStore, signers: tuple[str, ...]) -> None:
        folder = blobs.get(package.key)
        opened = open_package(folder, package.digest)
        check_signature(folder, signers)
        self.manifest: Manifest = opened.manifest
        runtime: Runtime = plugins.load("tapster.runtimes", self.manifest.runtime)()
        self.inline = runtime.inline(self.manifest, opened.files)
        self.loaded: LoadedModel = (
            runtime.load(self.manifest, opened.files, threads=1)
            if self.inline
            else isolation.load(folder, package.digest, self.manifest)
        )
        try:
            vectors = opened.files.get(PARITY, b"")
            parity.replay(self.loaded, vectors, self.manifest.tolerance)
            recorded = parity.load(vectors)
            self.golden = _sample(recorded)
            self.together = _batchable(self.manifest.signature) and all(
                vector.independent for vector in recorded
            )
            self.cost = _measure(self.loaded, recorded[0].inputs, self.together)
        except BaseException:
            self.loaded.close()
            raise


class Model:
    """A package by its digest, from the moment the plan names it until it is unloaded."""

    def __init__(self, package: PackageRef) -> None:
        self.package = package
        self.state = LOADING
        self.error = ""
        self.manifest: Manifest
        self.signature: Signature
        self.golden: list[parity.Vector]
        self.batcher: Batcher
        self.encoder: Encoder
        # Datatype and shape of each input tensor by name.
        self.inputs: dict[str, tuple[Datatype, tuple[int, ...]]]
        # Read for every request, thus no cached properties, which are slow attributes: whether all
        # inputs are floats; whether flat JSON lists of numbers and strings spell them exactly.
        self.numeric: bool
        self.plain: bool
        self.packed: tuple[str, int] | None  # see `packed_input`
        # What a wire has spelled for this model once and for all, by the wire's name.
        self.spelled: dict[str, list[bytes]] = {}

    def ready(self, loaded: Loaded, batcher: Batcher) -> None:
        """Take what was loaded; from now on the model answers."""
        self.manifest = loaded.manifest
        self.signature = loaded.manifest.signature
        self.golden = loaded.golden
        self.batcher = batcher
        self.encoder = Encoder(self.signature)
        self.inputs = {spec.name: (spec.datatype, spec.shape) for spec in self.signature.inputs}
        kinds = {spec.datatype for spec in self.signature.inputs}
        self.numeric = kinds <= FLOATS
        self.plain = kinds <= FLOATS | {"BYTES"}
        self.packed = packed_input(self.signature)
        self.state = READY

    def failed(self, error: TapsterError) -> None:
        """The package cannot be served, and why."""
        self.state = FAILED
        self.error = f"{error.message} ({error.hint})" if error.hint else error.message

    @cached_property
    def columns(self) -> dict[str, str]:
        """The kind of each column by name; empty when the model takes tensors only."""
        return {column.name: column.kind for column in self.signature.columns}

    @cached_property
    def labels(self) -> list[str]:
        """The classes as keys of a JSON object."""
        return [_label(value) for value in self.signature.classes]


def _label(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batchable(signature: Signature) -> bool:
    specs = (*signature.inputs, *signature.outputs)
    return all(spec.shape and spec.shape[0] == -1 for spec in specs)


def _sample(recorded: list[parity.Vector]) -> list[parity.Vector]:
    """A few recorded rows; none of a batch that is large and indivisible."""
    first = recorded[0]
    rows = len(next(iter(first.inputs.values())))
    size = sum(array.nbytes for array in (*first.inputs.values(), *first.outputs.values()))
    if first.independent and rows > 1:
        kept = max(1, min(GOLDEN_ROWS, GOLDEN_BYTES * rows // max(size, 1)))
        size = size * kept // rows
        first = parity.Vector(_head(first.inputs, kept), _head(first.outputs, kept))
    return [first] if size <= GOLDEN_BYTES else []


def _head(arrays: dict[str, Array], rows: int) -> dict[str, Array]:
    return {name: array[:rows].copy() for name, array in arrays.items()}


def _measure(loaded: LoadedModel, recorded: dict[str, Array], together: bool) -> Cost:
    """Warm the model up and time it, alone and (where it may) in a batch."""
    names = [spec.name for spec in loaded.signature.outputs]
    if not together:
        return Cost(_fastest(lambda: loaded.run(recorded, names)), 0.0)
    one = {name: array[:1] for name, array in recorded.items()}
    many = {name: np.concatenate([array[:1]] * WARM_ROWS) for name, array in recorded.items()}
    alone = _fastest(lambda: loaded.run(one, names))
    batch = _fastest(lambda: loaded.run(many, names))
    row = max(batch - alone, 0.0) / (WARM_ROWS - 1)
    return Cost(max(alone - row, 0.0), row)


def _fastest(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best
