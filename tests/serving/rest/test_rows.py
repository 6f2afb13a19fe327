"""Answers by row of what JSON and CSV have no name for: half-precision floats, carried as bits."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tapster.contract.manifest import Signature, TensorSpec
from tapster.serving.rest import plain, tf_serving
from tapster.serving.rest.forms import PLAIN, Form
from tapster.serving.work import Answer

# 1.5 and so on: the upper halves of 32-bit floats.
BITS = np.array([[0x3FC0, 0xC000], [0x0000, 0x4040], [0x3F80, 0x7FC0]], np.uint16)
ROWS = [[1.5, -2.0], [0.0, 3.0], [1.0, float("nan")]]


def call_of(rows: int, form: Form = PLAIN, **more: Any) -> Any:
    outputs = (TensorSpec("y", "BF16", (-1, 2)), TensorSpec("z", "BF16", (-1,)))
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), outputs)
    model = SimpleNamespace(signature=signature, labels=())
    target = SimpleNamespace(model=model)
    return SimpleNamespace(target=target, rows=rows, form=form, lines=b"", by_row=True, **more)


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize("wire", [plain, tf_serving])
def test_bfloat16_is_given_as_numbers(wire: Any, requests: int) -> None:
    answer = Answer([BITS, BITS[:, 0]], 3, requests)
    first, rows = (0, 3) if requests == 1 else (1, 2)
    body = wire.write(call_of(rows), answer, first)
    found = json.loads(body)["predictions"]
    wanted = [{"y": row, "z": row[0]} for row in ROWS[first:]]
    assert str(found) == str(wanted)  # NaN is not equal to itself


def test_bfloat16_is_given_as_numbers_in_tables() -> None:
    answer = Answer([BITS, BITS[:, 0]], 3, 2)
    table = plain.write(call_of(2, Form(as_csv=True)), answer, 1)
    assert table.decode().split() == ["y_0,y_1,z", "0.0,3.0,0.0", "1.0,NaN,1.0"]
