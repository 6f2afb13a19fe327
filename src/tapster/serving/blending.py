"""The weighted mean of models' answers.

Floats are averaged in 64 bits and rounded once. A classifier's label is the one whose mean score
is highest; of equal ones the first in the order of its classes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Datatype, Signature
from tapster.runtimes.parity import PREDICTION, PROBABILITIES

FLOATS: Final[frozenset[Datatype]] = frozenset({"FP16", "FP32", "FP64"})


class Blend:
    """The mean over the outputs of one signature. Raises TapsterError(unprocessable) for outputs
    that have no mean."""

    def __init__(self, signature: Signature) -> None:
        names = [spec.name for spec in signature.outputs]
        self._types = [NUMPY_TYPE[spec.datatype] for spec in signature.outputs]
        self._label = self._scores = -1
        if signature.classes and {PREDICTION, PROBABILITIES} <= set(names):
            self._label, self._scores = names.index(PREDICTION), names.index(PROBABILITIES)
            self._classes = np.array(signature.classes, self._types[self._label])
        for index, spec in enumerate(signature.outputs):
            if index != self._label and spec.datatype not in FLOATS:
                raise TapsterError(
                    "unprocessable", f"the output {spec.name!r} is {spec.datatype}: it has no mean"
                )

    def __call__(self, answers: Sequence[Sequence[Array]], weights: Sequence[float]) -> list[Array]:
        """An array an output, from each member's arrays and its weight. Weights sum to one."""
        means = [
            None if index == self._label else _mean([arrays[index] for arrays in answers], weights)
            for index in range(len(self._types))
        ]
        if self._label >= 0:
            scores = means[self._scores]
            assert scores is not None
            best = self._classes[np.argmax(scores, axis=-1)]
            means[self._label] = best.reshape(answers[0][self._label].shape)
        with np.errstate(over="ignore"):
            return [
                mean.astype(kind, copy=False)
                for mean, kind in zip(means, self._types, strict=True)
                if mean is not None
            ]


def _mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    if any(array.shape != arrays[0].shape for array in arrays):
        raise TapsterError("internal", "the members' answers differ in shape")
    total: Array = arrays[0].astype(np.float64) * weights[0]
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array.astype(np.float64) * weight
    return total
