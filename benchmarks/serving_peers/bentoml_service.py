# /// script
# dependencies = ["bentoml", "uvicorn[standard]", "onnxruntime", "numpy"]
# ///
"""BentoML with ONNX Runtime, called in the event loop, in one worker.

`python bentoml_service.py MODEL_FOLDER PORT`
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort
from pydantic import BaseModel


class Tensor(BaseModel):
    """One tensor of the Open Inference protocol."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Answer(BaseModel):
    """An answer of the Open Inference protocol."""

    model_name: str
    outputs: list[Tensor]


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Forest:
    """The model behind the Open Inference path."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["FOREST"], options)

    @bentoml.api(route="/v2/models/forest/infer")  # type: ignore[untyped-decorator]
    async def infer(self, inputs: list[Tensor]) -> Answer:
        """Score the rows."""
        (tensor,) = inputs
        rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
        labels, shares = self.session.run(None, {tensor.name: rows})
        return Answer(
            model_name="forest",
            outputs=[
                Tensor(
                    name="label", shape=list(labels.shape), datatype="INT64", data=labels.tolist()
                ),
                Tensor(
                    name="probabilities",
                    shape=list(shares.shape),
                    datatype="FP32",
                    data=shares.ravel().tolist(),
                ),
            ],
        )


if __name__ == "__main__":
    here = Path(__file__).resolve()
    os.environ["FOREST"] = str(Path(sys.argv[1]).resolve() / "model.onnx")
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    serve = [sys.executable, "-m", "bentoml", "serve", f"{here.stem}:Forest", "--quiet"]
    place = ["--working-dir", str(here.parent), "--host", "127.0.0.1", "--port", sys.argv[2]]
    os.execv(sys.executable, [*serve, *place])
