"""Inputs drawn from a signature, or given as examples, and the answers a model gives to them.

A bare model brings no golden answers. What we can hold it to is itself: the same inputs must give
the same answers here, after every load and on every machine.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Signature, TensorSpec, Tolerance
from tapster.runtimes import LoadedModel, parity
from tapster.runtimes.onnx import OnnxModel, open_session
from tapster.runtimes.parity import Vector

BATCHES: Final = (1, 2, 3)
# Sizes to try for dimensions that a graph leaves open besides the batch: lengths, widths, sides.
_SIZES: Final = (4, 8, 16, 32, 64, 128, 224, 1)
_WORDS: Final = ("", "a", "b", "yes", "no", "0", "1", "red", "Straße", "\N{SNOWMAN}")
_MAX_ELEMENTS: Final = 1 << 24

# A tensor's dimensions: a size, or a name (equal names are equal sizes), or None.
Shapes = Mapping[str, tuple[Any, ...]]
# The inputs of a batch of so many rows.
Source = Callable[[int], dict[str, Array]]


def record_own_answers(model: bytes, signature: Signature, tolerance: Tolerance) -> bytes:
    """Parity vectors of an ONNX model on inputs drawn from its signature, at batch sizes 1 to 3.

    Raises TapsterError(unprocessable) when the graph runs on none of the shapes tried, or gives
    other answers when asked again (a random operator, say).
    """
    session = open_session(model, 1)
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    seed = int.from_bytes(hashlib.sha256(model).digest()[:8])
    loaded = OnnxModel(session, signature)
    return record(loaded, drawn(loaded, shapes, seed), tolerance)


def record(model: LoadedModel, source: Source, tolerance: Tolerance) -> bytes:
    """Parity vectors of a loaded model on inputs from `source`, at batch sizes 1 to 3.

    Raises TapsterError(unprocessable) when it gives other answers when asked again, and what
    running it raises.
    """
    vectors = []
    for batch in BATCHES:
        inputs = source(batch)
        answers = _run(model, inputs)
        again = _run(model, inputs)
        if found := parity.compare(answers, again, tolerance):
            raise TapsterError(
                "unprocessable",
                f"the model gives another answer to the same input: {found[0]}",
                hint="remove what is random in it (dropout in training mode, sampling) and export"
                " it again",
            )
        vectors.append(Vector(inputs, answers))
    independent = all(_rows_alone(model, vector, tolerance) for vector in vectors)
    return parity.record_batches(
        [Vector(vector.inputs, vector.outputs, independent) for vector in vectors]
    )


def drawn(model: LoadedModel, shapes: Shapes, seed: int) -> Source:
    """Random inputs of sizes that the model runs on; the same for the same seed.

    Raises TapsterError(unprocessable) when it runs on none of those tried.
    """
    signature = model.signature
    if not signature.inputs or not signature.outputs:
        raise TapsterError("unprocessable", "the model has no inputs or no outputs")
    size = _working_size(model, shapes, seed)
    return lambda batch: _draw(signature, shapes, batch, size, np.random.default_rng([seed, batch]))


def exemplified(signature: Signature, examples: Mapping[str, Any]) -> Source:
    """Inputs cut from examples, which are rows of values for each input.

    Raises TapsterError(unprocessable) for examples that do not fit the signature.
    """
    given = {}
    for spec in signature.inputs:
        try:
            given[spec.name] = np.array(examples[spec.name], NUMPY_TYPE[spec.datatype])
        except (KeyError, ValueError, TypeError, OverflowError):
            raise _unfit(spec) from None
        if given[spec.name].ndim != len(spec.shape) or not given[spec.name].size:
            raise _unfit(spec)
    return lambda batch: {
        name: rows[np.arange(batch) % len(rows)] if rows.ndim else rows
        for name, rows in given.items()
    }


def _unfit(spec: TensorSpec) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"the examples of input {spec.name[:100]!r} are not {spec.datatype} {list(spec.shape)}",
        hint='write "examples": {"input": [row, row, ...]} with a list of rows for every input',
        field="examples",
    )


def _rows_alone(model: LoadedModel, batch: Vector, tolerance: Tolerance) -> bool:
    """Whether each row of a batch gets by itself the answer that it got among its neighbours."""
    tensors = (*batch.inputs.values(), *batch.outputs.values())
    sizes = {len(tensor) if tensor.ndim else -1 for tensor in tensors}
    if len(sizes) > 1 or -1 in sizes:
        return False
    size = sizes.pop()
    for row in range(size):
        one = slice(row, row + 1)
        try:
            alone = _run(model, {n: array[one] for n, array in batch.inputs.items()})
        except TapsterError:
            return False
        if parity.compare({n: array[one] for n, array in batch.outputs.items()}, alone, tolerance):
            return False
    return True


def _working_size(model: LoadedModel, shapes: Shapes, seed: int) -> int:
    """The first of _SIZES on which the model runs."""
    reason = ""
    for size in _SIZES:
        try:
            _run(model, _draw(model.signature, shapes, 1, size, np.random.default_rng(seed)))
        except TapsterError as error:
            if error.code in {"deadline", "unavailable"}:  # it hung or died: do not insist
                raise
            reason = reason or error.message
            continue
        return size
    raise TapsterError(
        "unprocessable",
        f"the model runs on no input drawn from its signature: {reason}",
        hint="export it with the sizes of all dimensions but the batch fixed; or send a folder"
        " with a model.json that gives examples",
    )


def _run(model: LoadedModel, inputs: dict[str, Array]) -> dict[str, Array]:
    names = [spec.name for spec in model.signature.outputs]
    try:
        return dict(zip(names, model.run(inputs, names), strict=True))
    except TapsterError as error:
        if error.code != "invalid":
            raise
        raise TapsterError("unprocessable", error.message, hint=error.hint) from None


def _draw(
    signature: Signature,
    shapes: Shapes,
    batch: int,
    size: int,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Inputs with an open first dimension set to `batch` and every other open one to `size`."""
    batched = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], str)}
    made = {}
    for spec in signature.inputs:
        shape = tuple(
            fixed if fixed >= 0 else batch if axis == 0 or symbol in batched else size
            for axis, (fixed, symbol) in enumerate(zip(spec.shape, shapes[spec.name], strict=True))
        )
        if math.prod(shape) > _MAX_ELEMENTS:
            raise TapsterError("unprocessable", f"input {spec.name[:100]!r} is too large to try")
        made[spec.name] = _values(spec, shape, generator)
    return made


def _values(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if spec.datatype == "BYTES":
        words = np.array(_WORDS, dtype=np.object_)
        return np.asarray(generator.choice(words, size=shape), dtype=np.object_)
    if spec.datatype == "BOOL":
        return generator.random(shape) < 0.5
    dtype = np.dtype(NUMPY_TYPE[spec.datatype])
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    # Small: integers are most often indices into a table of unknown length.
    return np.asarray(generator.integers(0, 2, size=shape)).astype(dtype)
