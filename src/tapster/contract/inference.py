"""Requests and answers as every wire sees them once parsed."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tapster.contract.manifest import Datatype

Array = npt.NDArray[Any]

# BYTES tensors are numpy object arrays of str; BF16 has no numpy type and is carried as uint16.
NUMPY_TYPE: Final[dict[Datatype, Any]] = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "BF16": np.uint16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array with its Open Inference datatype; its shape is the array's."""

    name: str
    datatype: Datatype
    array: Array


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Inputs by name, each with the batch as first dimension; `outputs` empty means all."""

    inputs: dict[str, Array]
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferResponse:
    """Outputs in the signature's order, with the version that gave them."""

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
