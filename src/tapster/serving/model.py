"""A package in memory, ready to answer: opened, verified, loaded, checked against its vectors."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Datatype, Manifest, Signature
from tapster.contract.plan import Options, PackageRef
from tapster.core import plugins
from tapster.core.blobs import BlobStore
from tapster.runtimes import LoadedModel, Runtime, parity
from tapster.runtimes.package import PARITY, Package, check_signature, open_package
from tapster.runtimes.rows import Encoder
from tapster.serving import isolation
from tapster.serving.batcher import Batcher
from tapster.serving.costs import MEASURED_ROWS, Cost
from tapster.serving.tokens import Count, counter
from tapster.serving.work import packed_input

LOADING: Final = "loading"
READY: Final = "ready"
COLD: Final = "cold"
FAILED: Final = "failed"
WARM_RUNS: Final = 5
WARM_SECONDS: Final = 0.25
# What is kept of a package's recorded answers, to ask for them again: see golden.py.
GOLDEN_ROWS: Final = 16
GOLDEN_BYTES: Final = 1 << 20
FLOATS: Final[frozenset[Datatype]] = frozenset({"FP32", "FP64", "FP16"})


@dataclass(frozen=True)
class Opening:
    """How packages are opened: where they lie, whom to trust, what a run may use.

    `shelf` is the folder of what runtimes keep on disk, by package; `memory` the bytes that a
    model in processes of its own may use, 0 for the installation's setting.
    """

    blobs: BlobStore
    signers: tuple[str, ...]
    shelf: Path | None = None
    threads: int = 1
    memory: int = 0


class Loaded:
    """What loading a package gives, made in a thread that may take its time.

    `loaded` is the model, `memory` the bytes that it takes: what the runtime has measured, else
    the size of its files. `concurrency` is how many runs at once it has means for by itself.
    """

    def __init__(self, package: PackageRef, opening: Opening) -> None:
        self._package = package
        self._opening = opening
        folder, opened = self._open()
        check_signature(folder, opening.signers)
        self.manifest: Manifest = opened.manifest
        runtime: Runtime = plugins.load("tapster.runtimes", self.manifest.runtime)()
        self.inline = runtime.inline(self.manifest, opened.files)
        self.loaded = self._load(folder, opened)
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
        self.memory = _memory(self.loaded, self.manifest)
        self.concurrency: int = getattr(self.loaded, "concurrency", 1)

    def reload(self) -> LoadedModel:
        """The model again, after it was closed: every byte is verified, nothing is replayed."""
        return self._load(*self._open())

    def moved(self, package: PackageRef) -> None:
        """See Model."""
        self._package = package

    def _open(self) -> tuple[Path, Package]:
        folder = self._opening.blobs.get(self._package.key)
        return folder, open_package(folder, self._package.digest)

    def _load(self, folder: Path, opened: Package) -> LoadedModel:
        opening = self._opening
        if not self.inline:
            return isolation.load(folder, opened.digest, opened.manifest, opening.memory)
        runtime: Runtime = plugins.load("tapster.runtimes", opened.manifest.runtime)()
        shelf = opening.shelf / opened.digest if opening.shelf is not None else None
        return runtime.load(opened.manifest, opened.files, opening.threads, shelf)


class Model:
    """A package by its digest, from the moment the plan names it until no plan does.

    Loading, it is ready or failed; ready, it may leave the memory: then it is cold, and comes back
    when a request needs it. What wires read stays. `behind` holds what the endpoints ask for that
    it serves, by tenant and name.
    """

    def __init__(self, package: PackageRef) -> None:
        self.package = package
        self.state = LOADING
        self.error = ""
        self.behind: dict[tuple[str, str], Options] = {}
        self.loaded: Loaded
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
        self.tokens: Count | None  # of a request; None if the model reads none
        # What a wire has spelled for this model once and for all, by the wire's name.
        self.spelled: dict[str, list[bytes]] = {}

    def ready(self, loaded: Loaded, batcher: Batcher) -> None:
        """Take what was loaded; from now on the model answers."""
        loaded.moved(self.package)
        self.loaded = loaded
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
        self.tokens = counter(self.signature)
        self.state = READY
        self.configure()

    def moved(self, package: PackageRef) -> None:
        """Find the same package there from now on: the tenant that it lay with may be gone."""
        self.package = package
        if self.servable:
            self.loaded.moved(package)

    @property
    def servable(self) -> bool:
        """Whether requests may be sent to it: it has been loaded once, and checked."""
        return hasattr(self, "batcher")

    @property
    def idle(self) -> float:
        """Seconds without a request after which it leaves the memory; 0 for never."""
        given = [options.idle for options in self.behind.values()]
        return max(given) if given and min(given) > 0 else 0.0

    def configure(self) -> None:
        """Let the endpoints that it serves have what they ask for; of several, the most."""
        asked = list(self.behind.values()) or [Options()]
        windows = [options.window for options in asked if options.window is not None]
        if self.servable:
            self.batcher.configure(
                queue=max(options.queue for options in asked),
                concurrency=max(self.loaded.concurrency, *[each.concurrency for each in asked]),
                window=min(windows) if len(windows) == len(asked) else None,
            )

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


def _memory(loaded: LoadedModel, manifest: Manifest) -> int:
    measured: int = getattr(loaded, "memory", 0)
    return measured or sum(entry.size for entry in manifest.files.values())


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
    many = {name: np.concatenate([array[:1]] * MEASURED_ROWS) for name, array in recorded.items()}
    alone = _fastest(lambda: loaded.run(one, names))
    batch = _fastest(lambda: loaded.run(many, names))
    row = max(batch - alone, 0.0) / (MEASURED_ROWS - 1)
    values = sum(output.size for output in loaded.run(one, names))
    taken = sum(array.size for array in one.values())
    return Cost(max(alone - row, 0.0), row, values, taken)


def _fastest(run: Callable[[], object]) -> float:
    best = float("inf")
    until = time.perf_counter() + WARM_SECONDS
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        run()
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended > until:
            break
    return best
