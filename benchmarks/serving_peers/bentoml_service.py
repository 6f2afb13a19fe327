# /// script
# dependencies = ["bentoml", "uvicorn[standard]", "onnxruntime", "numpy"]
# ///
"""BentoML with ONNX Runtime, called in the event loop, in one worker.

`python bentoml_service.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort
from pydantic import BaseModel

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
FOLDER = Path(os.environ.setdefault("MODEL_FOLDER", sys.argv[1]))


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
class Server:
    """The model behind the Open Inference path."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(FOLDER / "model.onnx", options)
        self.names = [output.name for output in self.session.get_outputs()]

    @bentoml.api(route=f"/v2/models/{FOLDER.name}/infer")  # type: ignore[untyped-decorator]
    async def infer(self, inputs: list[Tensor]) -> Answer:
        """Score the rows."""
        (tensor,) = inputs
        rows = np.array(tensor.data, NUMPY[tensor.datatype]).reshape(tensor.shape)
        arrays = self.session.run(None, {tensor.name: rows})
        outputs = [
            Tensor(
                name=name,
                shape=list(array.shape),
                datatype=DATATYPES[array.dtype.name],
                data=array.ravel().tolist(),
            )
            for name, array in zip(self.names, arrays, strict=True)
        ]
        return Answer(model_name=FOLDER.name, outputs=outputs)


if __name__ == "__main__":
    here = Path(__file__).resolve()
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    serve = [sys.executable, "-m", "bentoml", "serve", f"{here.stem}:Server", "--quiet"]
    place = ["--working-dir", str(here.parent), "--host", "127.0.0.1", "--port", sys.argv[2]]
    os.execv(sys.executable, [*serve, *place])
