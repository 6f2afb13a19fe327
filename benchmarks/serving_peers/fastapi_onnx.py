# /// script
# dependencies = ["fastapi", "uvicorn[standard]", "onnxruntime", "numpy"]
# ///
"""FastAPI in front of ONNX Runtime, in one of two ways.

In the event loop (`async def`), which is fastest for so small a model but lets nobody else be
answered while it runs; or with `--threads` as FastAPI's documents have it for calls that block: a
plain `def`, which runs in its thread pool.

`python fastapi_onnx.py MODEL_FOLDER HTTP_PORT GRPC_PORT [--threads]`
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
folder, port = Path(sys.argv[1]), int(sys.argv[2])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(folder / "model.onnx", options)
names = [output.name for output in session.get_outputs()]
app = FastAPI()


class Tensor(BaseModel):
    """One tensor of the Open Inference protocol."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Inference(BaseModel):
    """A request of the Open Inference protocol."""

    inputs: list[Tensor]


class Answer(BaseModel):
    """An answer of the Open Inference protocol."""

    model_name: str
    outputs: list[Tensor]


def score(request: Inference) -> Answer:
    """Score the rows."""
    (tensor,) = request.inputs
    rows = np.array(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)
    arrays = session.run(None, {tensor.name: rows})
    outputs = [
        Tensor(
            name=name,
            shape=list(array.shape),
            datatype=DATATYPES[array.dtype.name],
            data=array.ravel().tolist(),
        )
        for name, array in zip(names, arrays, strict=True)
    ]
    return Answer(model_name=folder.name, outputs=outputs)


async def score_inline(request: Inference) -> Answer:
    """Score the rows in the event loop."""
    return score(request)


app.post(f"/v2/models/{folder.name}/infer")(score if "--threads" in sys.argv else score_inline)

if __name__ == "__main__":
    uvicorn.run(app, port=port, log_level="warning", access_log=False)
