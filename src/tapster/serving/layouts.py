"""The same columns in another model's tensors.

Two models of one table may order their columns differently. Since both encode a column's value
alike, the tensors of one are a rearrangement of those of the other.
"""

from collections.abc import Callable

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Column, Signature, TensorSpec
from tapster.serving.work import Inputs, packed_input

Relay = Callable[[Inputs], Inputs]


def relay(given: Signature, wanted: Signature) -> Relay:
    """Turns inputs made for `given` into those of `wanted`.

    Raises TapsterError(unprocessable) unless both take the same tensors, or the same columns.
    """
    if given.inputs == wanted.inputs and given.columns == wanted.columns:
        return _unchanged
    kinds = {column.name: column.kind for column in given.columns}
    if not kinds or kinds != {column.name: column.kind for column in wanted.columns}:
        raise TapsterError("unprocessable", "the models do not take the same inputs")
    return _Rearranged(given, wanted)


def _unchanged(inputs: Inputs) -> Inputs:
    return inputs


class _Rearranged:
    def __init__(self, given: Signature, wanted: Signature) -> None:
        places = {column.name: (column.tensor, column.position) for column in given.columns}
        self._packed = packed_input(given)
        self._tensors = [
            (spec, [places[column.name] for column in _of(spec, wanted)]) for spec in wanted.inputs
        ]

    def __call__(self, inputs: Inputs) -> Inputs:
        if isinstance(inputs, bytes):
            assert self._packed is not None
            name, width = self._packed
            inputs = {name: np.frombuffer(inputs, np.float32).reshape(-1, width)}
        return {spec.name: _gather(inputs, spec, places) for spec, places in self._tensors}


def _of(spec: TensorSpec, signature: Signature) -> list[Column]:
    own = [column for column in signature.columns if column.tensor == spec.name]
    return sorted(own, key=lambda column: column.position)


def _gather(inputs: dict[str, Array], spec: TensorSpec, places: list[tuple[str, int]]) -> Array:
    columns = [inputs[tensor][:, position] for tensor, position in places]
    return np.stack(columns, axis=1).astype(NUMPY_TYPE[spec.datatype], copy=False)
