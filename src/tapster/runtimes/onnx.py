"""The ONNX runtime: ONNX Runtime on the CPU, from verified bytes, without external files."""

import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Datatype, Manifest, Signature, TensorSpec
from tapster.runtimes import Description, Stop
from tapster.runtimes.operators import refuse_external_data, vet
from tapster.runtimes.sessions import cleaned, measured, open_session, open_shelved
from tapster.runtimes.weights import split

__all__ = [
    "OnnxModel",
    "OnnxRuntime",
    "check_inputs",
    "cleaned",
    "open_session",
    "signature_from_graph",
]

DATATYPES: Final[dict[str, Datatype]] = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# A run on inputs so large leaves its memory to the arena no longer than it takes.
LARGE_INPUTS: Final = 32 << 20


class OnnxRuntime:
    """A Runtime for packages whose model file is one self-contained ONNX graph."""

    name = "onnx"

    def describe(self, files: dict[str, bytes], model_file: str) -> Description:
        """See Runtime and `signature_from_graph`."""
        return Description(signature_from_graph(files[model_file]))

    def load(
        self, manifest: Manifest, files: dict[str, bytes], threads: int, shelf: Path | None = None
    ) -> "OnnxModel":
        """Load from verified bytes with `threads` threads. Raises TapsterError(unprocessable).

        With a `shelf`, large weights are shared by all processes that load the same package.
        """
        model = files[manifest.model_file]
        parts = split(model)
        refuse_external_data(parts.bare() if parts else model)
        shared = None
        if parts is not None and shelf is not None:
            shared = open_shelved(parts, shelf, threads)
        session, memory = shared or measured(partial(open_session, model, threads))
        found = _signature(session)
        for kind in ("inputs", "outputs"):
            _check_specs(getattr(manifest.signature, kind), getattr(found, kind), kind)
        return OnnxModel(session, manifest.signature, memory)

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """Whether every operator of the graph is vetted (see `operators.vet`)."""
        model = files[manifest.model_file]
        parts = split(model)
        return not vet(parts.bare() if parts else model)


class OnnxModel:
    """A loaded graph. `run` may be called from several threads at once.

    `memory`: bytes that it takes, weights shared with other processes included.
    """

    def __init__(self, session: Any, signature: Signature, memory: int = 0) -> None:
        self.signature = signature
        self.memory = memory
        self._session = session
        self._run = session.run
        self._outputs = tuple(spec.name for spec in signature.outputs)

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str] = (),
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """See LoadedModel. BYTES tensors are object arrays of str.

        ONNX Runtime looks between operators whether it is to end; one operator always finishes.
        """
        try:
            if deadline is None:
                answer: list[Array] = self._run(outputs or self._outputs, inputs)
                return answer
            return self._run_until(deadline, stop, inputs, outputs or self._outputs)
        except TapsterError:
            raise
        except Exception as error:
            raise self._explained(error, inputs, outputs) from None

    def close(self) -> None:
        """See LoadedModel; a later `run` raises TapsterError(unavailable)."""
        self._session = None
        self._run = _closed

    def _run_until(
        self,
        deadline: float,
        stop: Stop | None,
        inputs: dict[str, Array],
        outputs: Sequence[str],
    ) -> list[Array]:
        from onnxruntime import RunOptions

        if deadline <= time.monotonic():
            raise _late()
        options = RunOptions()
        if sum([array.nbytes for array in inputs.values()]) > LARGE_INPUTS:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _alarms.arm(deadline, options)
        if stop is not None:
            stop.attach(partial(setattr, options, "terminate", True))
        try:
            answer: list[Array] = self._run(outputs, inputs, options)
        except Exception:
            if options.terminate:
                raise _ended(stop) from None
            raise
        finally:
            _alarms.disarm(options)
        if options.terminate:
            raise _ended(stop)
        return answer

    def _explained(
        self, error: Exception, inputs: dict[str, Array], outputs: Sequence[str]
    ) -> TapsterError:
        """What was wrong with a request that ONNX Runtime refused."""
        unknown = [name for name in outputs if name not in self._outputs]
        if unknown:
            return TapsterError(
                "invalid",
                f"the model has no output {unknown[0][:100]!r}",
                hint=f"its outputs are: {', '.join(self._outputs)}",
                field=unknown[0][:100],
            )
        if problem := check_inputs(self.signature, inputs):
            return problem
        return TapsterError(
            "invalid",
            f"the model failed on these inputs: {cleaned(error)}",
            hint="check the values and shapes against the model's metadata",
        )


def check_inputs(signature: Signature, inputs: dict[str, Array]) -> TapsterError | None:
    """The first thing in `inputs` that `signature` does not take, as TapsterError(invalid)."""
    specs = {spec.name: spec for spec in signature.inputs}
    for name in specs.keys() - inputs.keys():
        return _bad_input(f"input {name!r} is missing", name, specs)
    batch: tuple[str, int] | None = None
    for name, array in inputs.items():
        spec = specs.get(name)
        if spec is None:
            return _bad_input(f"the model has no input {name[:100]!r}", name, specs)
        if array.dtype != NUMPY_TYPE[spec.datatype]:
            return _bad_input(f"input {name!r} must be {spec.datatype}", name, specs)
        if not _fits(array.shape, spec.shape):
            wanted, given = _shape(spec.shape), _shape(array.shape)
            return _bad_input(f"input {name!r} must have shape {wanted}, not {given}", name, specs)
        if array.ndim and spec.shape[0] == -1:
            if batch is not None and batch[1] != array.shape[0]:
                message = f"input {name!r} has {array.shape[0]} rows, {batch[0]!r} has {batch[1]}"
                return _bad_input(message, name, specs)
            batch = batch or (name, array.shape[0])
    return None


def signature_from_graph(model: bytes) -> Signature:
    """The signature that an ONNX model itself declares: tensors, without columns or classes.

    Symbolic dimensions become -1. Raises TapsterError(unprocessable) for bytes that are no ONNX
    model, that ONNX Runtime refuses, or whose inputs or outputs are not tensors.
    """
    refuse_external_data(model)
    return _signature(open_session(model, 1))


def _signature(session: Any) -> Signature:
    return Signature(
        inputs=tuple(_spec(value) for value in session.get_inputs()),
        outputs=tuple(_spec(value) for value in session.get_outputs()),
    )


def _spec(value: Any) -> TensorSpec:
    datatype = DATATYPES.get(value.type)
    if datatype is None:
        raise TapsterError(
            "unprocessable",
            f"{value.name[:100]!r} has type {value.type}, which is not a tensor Tapster can carry",
            hint="export without ZipMap, sequences and optionals (skl2onnx: zipmap=False)",
        )
    shape = tuple(
        dimension if isinstance(dimension, int) and dimension >= 0 else -1
        for dimension in value.shape
    )
    return TensorSpec(name=value.name, datatype=datatype, shape=shape)


def _check_specs(
    declared: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], kind: str
) -> None:
    """The manifest must describe the graph; it may close a dimension that the graph leaves open."""
    graph = {spec.name: spec for spec in found}
    for spec in declared:
        actual = graph.get(spec.name)
        if actual is None or actual.datatype != spec.datatype or not _alike(spec, actual):
            raise TapsterError(
                "unprocessable",
                f"the graph's {kind} are not those of the package's signature:"
                f" {spec.name[:100]!r} differs",
                hint="seal the package again from the graph it was made of",
            )
    if kind == "inputs" and len(graph) != len(declared):
        extra = ", ".join(sorted(graph.keys() - {spec.name for spec in declared}))[:200]
        raise TapsterError(
            "unprocessable", f"the graph takes inputs that the signature does not name: {extra}"
        )


def _alike(declared: TensorSpec, actual: TensorSpec) -> bool:
    if not actual.shape:  # a graph may leave even the rank open
        return True
    return len(declared.shape) == len(actual.shape) and all(
        -1 in (a, b) or a == b for a, b in zip(declared.shape, actual.shape, strict=True)
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (-1, given) for given, size in zip(shape, wanted, strict=True)
    )


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('n' if size == -1 else str(size) for size in shape)}]"


def _bad_input(message: str, name: str, specs: dict[str, TensorSpec]) -> TapsterError:
    wanted = "; ".join(f"{s.name} {s.datatype} {_shape(s.shape)}" for s in specs.values())
    return TapsterError(
        "invalid", message, hint=f"the model takes: {wanted[:500]}", field=name[:100]
    )


class _Alarms:
    """One thread, started at first need, that ends runs at their deadlines."""

    def __init__(self) -> None:
        self._armed: dict[int, tuple[float, Any]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def arm(self, deadline: float, options: Any) -> None:
        with self._changed:
            sooner = all(deadline < other for other, _ in self._armed.values())
            self._armed[id(options)] = (deadline, options)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
            elif sooner:
                self._changed.notify()

    def disarm(self, options: Any) -> None:
        with self._changed:
            self._armed.pop(id(options), None)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key, (deadline, options) in list(self._armed.items()):
                    if deadline <= now:
                        options.terminate = True
                        del self._armed[key]
                first = min((deadline for deadline, _ in self._armed.values()), default=None)
                self._changed.wait(None if first is None else max(0.0, first - now))


_alarms: Final = _Alarms()


def _ended(stop: Stop | None) -> TapsterError:
    if stop is not None and stop.called:
        return TapsterError("cancelled", "nobody waits for the answer any more")
    return _late()


def _late() -> TapsterError:
    return TapsterError(
        "deadline", "the model did not finish in time", hint="send fewer rows, or allow more time"
    )


def _closed(*_: object) -> list[Array]:
    raise TapsterError("unavailable", "the model has been unloaded", hint="try again")
