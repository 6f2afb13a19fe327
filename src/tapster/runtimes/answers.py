"""What a foreign model answers, as tensors of its signature."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import NUMPY_TYPE, Array
from tapster.contract.manifest import Signature, TensorSpec


def conform(given: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
    """Outputs by name in the signature's types and shapes, from anything NumPy understands.

    Numbers may change their precision, not their kind: floats do not become integers, nor text
    numbers. Raises TapsterError(internal) naming the output that does not fit.
    """
    return {spec.name: _conforming(given, spec) for spec in signature.outputs}


def _conforming(given: Mapping[str, Any], spec: TensorSpec) -> Array:
    if spec.name not in given:
        raise _unfit(spec, "is missing")
    try:
        array = np.asarray(given[spec.name])
    except (ValueError, TypeError):
        raise _unfit(spec, "is no array") from None
    wanted = np.dtype(NUMPY_TYPE[spec.datatype])
    if spec.datatype == "BYTES":
        if array.dtype.kind not in "OUST":
            raise _unfit(spec, f"is {array.dtype}")
        array = array.astype(np.object_)
    elif not np.can_cast(array.dtype, wanted, "same_kind"):
        raise _unfit(spec, f"is {array.dtype}")
    if len(array.shape) != len(spec.shape) or any(
        size not in (-1, there) for there, size in zip(array.shape, spec.shape, strict=True)
    ):
        raise _unfit(spec, f"has shape {list(array.shape)}")
    return array.astype(wanted, copy=False)


def _unfit(spec: TensorSpec, problem: str) -> TapsterError:
    return TapsterError(
        "internal",
        f"the model's answer {spec.name[:100]!r} {problem}; its signature says"
        f" {spec.datatype} {list(spec.shape)}",
        hint="change the signature or the model, and import it again",
    )
