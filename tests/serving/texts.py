"""A small encoder of texts, as Hugging Face's are exported, and requests to it on every wire."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapster.contract.manifest import Signature, TensorSpec
from tapster.contract.plan import PackageRef
from tests.serving.packages import put

WORDS = 1000
WIDTH = 4
Rows = Sequence[Sequence[int]]


def graph(*, masked: bool = True) -> onnx.ModelProto:
    """`embedding` [n, 4]: the mean of the vectors of a row's `input_ids`, all `WIDTH` values of
    which are the id; with `masked`, of those that the `attention_mask` is 1 for. Ids beyond
    `WORDS` are an error.
    """
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["vectors"])]
    if masked:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["flat"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["flat", "last"], ["mask"]),
            helper.make_node("Mul", ["vectors", "mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "across"], ["sums"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "across"], ["number"], keepdims=0),
            helper.make_node("Max", ["number", "one"], ["some"]),
            helper.make_node("Div", ["sums", "some"], ["embedding"]),
        ]
    else:
        nodes.append(
            helper.make_node("ReduceMean", ["vectors", "across"], ["embedding"], keepdims=0)
        )
    constants: dict[str, Any] = {
        "table": np.repeat(np.arange(WORDS, dtype=np.float32), WIDTH).reshape(-1, WIDTH),
        "across": np.array([1], np.int64),
    }
    if masked:
        constants |= {"last": np.array([2], np.int64), "one": np.array([1], np.float32)}
    names = ["input_ids", "attention_mask"][: 1 + masked]
    made = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in names],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def encoder(home: Path, *, masked: bool = True) -> PackageRef:
    """The graph as a package."""
    names = ["input_ids", "attention_mask"][: 1 + masked]
    signature = Signature(
        inputs=tuple(TensorSpec(name, "INT64", (-1, -1)) for name in names),
        outputs=(TensorSpec("embedding", "FP32", (-1, WIDTH)),),
    )
    given = {"input_ids": [[1, 2, 3], [4, 5, 6]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    inputs = {name: np.array(given[name], np.int64) for name in names}
    return put(home, "other", graph(masked=masked), signature, inputs)


def ones(ids: Rows) -> Rows:
    """A mask without padding."""
    return [[1] * len(row) for row in ids]


def open_json(ids: Rows, mask: Rows | None = None) -> bytes:
    """A body of the Open Inference Protocol."""
    given = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    inputs = [
        {
            "name": name,
            "datatype": "INT64",
            "shape": list(np.shape(values)),
            "data": np.ravel(values).tolist(),
        }
        for name, values in given.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def open_binary(ids: Rows, mask: Rows) -> tuple[bytes, dict[str, str]]:
    """The same as binary tensors, and the headers that say so."""
    arrays = {"input_ids": np.array(ids, "<i8"), "attention_mask": np.array(mask, "<i8")}
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "datatype": "INT64",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    return head + data, {"Inference_Header_Content_Length": str(len(head))}


def instances(ids: Rows, mask: Rows) -> bytes:
    """A body of TensorFlow Serving's REST API, by rows."""
    rows = [
        {"input_ids": list(one), "attention_mask": list(other)}
        for one, other in zip(ids, mask, strict=True)
    ]
    return json.dumps({"instances": rows}).encode()


def columns(ids: Rows, mask: Rows) -> bytes:
    """The same by columns."""
    given = {"input_ids": ids, "attention_mask": mask}
    return json.dumps(
        {"inputs": {name: np.array(v).tolist() for name, v in given.items()}}
    ).encode()
