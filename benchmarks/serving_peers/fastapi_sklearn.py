# /// script
# dependencies = ["fastapi", "uvicorn[standard]", "scikit-learn"]
# ///
"""FastAPI in front of a pickled scikit-learn pipeline: the usual few lines.

`python fastapi_sklearn.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

folder, port = Path(sys.argv[1]), int(sys.argv[2])
model = pickle.loads((folder / "model.pickle").read_bytes())
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


@app.post("/v2/models/forest/infer")
async def infer(request: Inference) -> Answer:
    """Score the rows."""
    (tensor,) = request.inputs
    width = tensor.shape[1]
    rows = [tensor.data[at : at + width] for at in range(0, len(tensor.data), width)]
    shares = model.predict_proba(rows)
    labels = model.classes_[shares.argmax(axis=1)].tolist()
    return Answer(
        model_name="forest",
        outputs=[
            Tensor(name="label", shape=[len(rows)], datatype="INT64", data=labels),
            Tensor(
                name="probabilities",
                shape=list(shares.shape),
                datatype="FP64",
                data=shares.ravel().tolist(),
            ),
        ],
    )


if __name__ == "__main__":
    uvicorn.run(app, port=port, log_level="warning", access_log=False)
