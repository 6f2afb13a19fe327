"""Inputs drawn from an ONNX signature, and the answers a graph gives to them.

A bare ONNX file brings no golden inputs. What we can hold it to is itself: the same inputs must
give the same answers here, after every load and on every machine.
"""

import hashlib
import math
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Signature, TensorSpec, Tolerance
from tapster.runtimes import parity
from tapster.runtimes.onnx import cleaned, open_session
from tapster.runtimes.parity import Vector

BATCHES: Final = (1, 2, 3)
# Sizes to try for dimensions that a graph leaves open besides the batch: lengths, widths, sides.
_SIZES: Final = (4, 8, 16, 32, 64, 128, 224, 1)
_WORDS: Final = ("", "a", "b", "yes", "no", "0", "1", "red", "Straße", "\N{SNOWMAN}")
_MAX_ELEMENTS: Final = 1 << 24


def record_own_answers(model: bytes, signature: Signature, tolerance: Tolerance) -> bytes:
    """Parity vectors of `model` on inputs drawn from its signature, at batch sizes 1 to 3.

    Raises TapsterError(unprocessable) when the graph runs on none of the shapes tried, or gives
    other answers when asked again (a random operator, say).
    """
    if not signature.inputs or not signature.outputs:
        raise TapsterError("unprocessable", "the model has no inputs or no outputs")
    session = open_session(model, 1)
    names = [spec.name for spec in signature.outputs]
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    seed = int.from_bytes(hashlib.sha256(model).digest()[:8])
    size = _working_size(session, signature, shapes, seed)
    vectors = []
    for batch in BATCHES:
        generator = np.random.default_rng([seed, batch])
        inputs = _draw(signature, shapes, batch, size, generator)
        answers = _run(session, names, inputs)
        again = _run(session, names, inputs)
        if found := parity.compare(answers, again, tolerance):
            raise TapsterError(
                "unprocessable",
                f"the model gives another answer to the same input: {found[0]}",
                hint="remove random operators (dropout in training mode, sampling) and export"
                " it again",
            )
        vectors.append(Vector(inputs, answers))
    independent = all(_rows_alone(session, names, vector, tolerance) for vector in vectors)
    return parity.record_batches(
        [Vector(vector.inputs, vector.outputs, independent) for vector in vectors]
    )


def _rows_alone(session: Any, names: list[str], batch: Vector, tolerance: Tolerance) -> bool:
    """Whether each row of a batch gets by itself the answer that it got among its neighbours."""
    tensors = (*batch.inputs.values(), *batch.outputs.values())
    sizes = {len(tensor) if tensor.ndim else -1 for tensor in tensors}
    if len(sizes) > 1 or -1 in sizes:
        return False
    size = sizes.pop()
    for row in range(size):
        one = slice(row, row + 1)
        try:
            alone = _run(session, names, {n: array[one] for n, array in batch.inputs.items()})
        except TapsterError:
            return False
        if parity.compare({n: array[one] for n, array in batch.outputs.items()}, alone, tolerance):
            return False
    return True


def _working_size(
    session: Any, signature: Signature, shapes: dict[str, tuple[Any, ...]], seed: int
) -> int:
    """The first of _SIZES on which the graph runs."""
    names = [spec.name for spec in signature.outputs]
    reason = ""
    for size in _SIZES:
        try:
            inputs = _draw(signature, shapes, 1, size, np.random.default_rng(seed))
            _run(session, names, inputs)
        except TapsterError as error:
            reason = reason or error.message
            continue
        return size
    raise TapsterError(
        "unprocessable",
        f"the model runs on no input drawn from its signature: {reason}",
        hint="export it with the sizes of all dimensions but the batch fixed",
    )


def _run(session: Any, names: list[str], inputs: dict[str, Array]) -> dict[str, Array]:
    try:
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:
        raise TapsterError("unprocessable", cleaned(error)) from None


def _draw(
    signature: Signature,
    shapes: dict[str, tuple[Any, ...]],
    batch: int,
    size: int,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Inputs with an open first dimension set to `batch` and every other open one to `size`."""
    batched = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], str)}
    drawn = {}
    for spec in signature.inputs:
        shape = tuple(
            fixed if fixed >= 0 else batch if axis == 0 or symbol in batched else size
            for axis, (fixed, symbol) in enumerate(zip(spec.shape, shapes[spec.name], strict=True))
        )
        if math.prod(shape) > _MAX_ELEMENTS:
            raise TapsterError("unprocessable", f"input {spec.name[:100]!r} is too large to try")
        drawn[spec.name] = _values(spec, shape, generator)
    return drawn


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
