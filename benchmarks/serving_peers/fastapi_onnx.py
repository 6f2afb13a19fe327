# /// script
# dependencies = ["fastapi", "uvicorn[standard]", "onnxruntime", "numpy"]
# ///
"""FastAPI in front of ONNX Runtime, in one of two ways.

In the event loop (`async def`), which is fastest for so small a model but lets nobody else be
answered while it runs; or with `--threads` as FastAPI's documents have it for calls that block: a
plain `def`, which runs in its thread pool.

`python fastapi_onnx.py MODEL_FOLDER PORT [--threads]`
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

folder, port = Path(sys.argv[1]), int(sys.argv[2])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(str(folder / "model.onnx"), options)
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
    rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
    labels, shares = session.run(None, {tensor.name: rows})
    return Answer(
        model_name="forest",
        outputs=[
            Tensor(name="label", shape=list(labels.shape), datatype="INT64", data=labels.tolist()),
            Tensor(
                name="probabilities",
                shape=list(shares.shape),
                datatype="FP32",
                data=shares.ravel().tolist(),
            ),
        ],
    )


async def score_inline(request: Inference) -> Answer:
    """Score the rows in the event loop."""
    return score(request)


if "--threads" in sys.argv:
    app.post("/v2/models/forest/infer")(score)
else:
    app.post("/v2/models/forest/infer")(score_inline)

if __name__ == "__main__":
    uvicorn.run(app, port=port, log_level="warning", access_log=False)
