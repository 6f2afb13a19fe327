"""The tokens that a request to a text model brings: known before it runs, so they are reserved
exactly.

A model reads tokens if it has an integer input `input_ids` [rows, length]. A request brings as
many as its `attention_mask` has elements that are not zero, whatever their value; without a mask of
the same shape, as many as `input_ids` has elements. A row brings at least one: nothing runs free.
Source: Hugging Face transformers, "Glossary", input IDs and attention mask (1 for a token that is
attended to, 0 for padding); optimum gives the inputs of exported ONNX graphs the same names.

Counted is what the caller sent, before any batch is made of it. Tokens that a model writes are not
known before: see `Hold.tokens`.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from tapster.contract.manifest import Datatype, Signature
from tapster.serving.work import Inputs

IDS: Final = "input_ids"
MASK: Final = "attention_mask"
INTEGERS: Final[frozenset[Datatype]] = frozenset(
    {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
)

Count = Callable[[Inputs], int]


def counter(signature: Signature) -> Count | None:
    """What counts the tokens of requests to a model; None if it reads none."""
    specs = {spec.name: spec for spec in signature.inputs}
    ids, mask = specs.get(IDS), specs.get(MASK)
    if ids is None or ids.datatype not in INTEGERS or len(ids.shape) != 2:
        return None
    return partial(_count, masked=mask is not None and mask.datatype != "BYTES")


def _count(inputs: Inputs, masked: bool) -> int:
    assert not isinstance(inputs, bytes)  # integers are never packed
    ids = inputs[IDS]
    mask = inputs[MASK] if masked else None
    if mask is None or mask.shape != ids.shape:
        return max(ids.size, len(ids))
    empty = len(mask) - np.count_nonzero(mask.any(axis=1))
    return int(np.count_nonzero(mask) + empty)
