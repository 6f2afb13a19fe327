# /// script
# dependencies = ["mlserver==1.7.1", "fastapi<0.116", "onnxruntime", "numpy"]
# ///
"""MLServer with a runtime of ONNX Runtime, in one process (on one core more only cost).

`python mlserver_runtime.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvloop
from mlserver import (  # type: ignore[import-not-found]
    MLModel,
    MLServer,
    ModelSettings,
    Settings,
)
from mlserver.settings import ModelParameters  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
    ResponseOutput,
)

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}


class Server(MLModel):  # type: ignore[misc]
    """The model as a custom runtime."""

    async def load(self) -> bool:
        """Open the graph."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options)
        self.names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score the rows."""
        (tensor,) = payload.inputs
        rows = np.array(tensor.data.root, NUMPY[tensor.datatype]).reshape(tensor.shape)
        arrays = self.session.run(None, {tensor.name: rows})
        outputs = [
            ResponseOutput(
                name=name,
                shape=array.shape,
                datatype=DATATYPES[array.dtype.name],
                data=array.ravel().tolist(),
            )
            for name, array in zip(self.names, arrays, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main(folder: Path, port: int, grpc_port: int) -> None:
    """Serve until told to stop."""
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        gzip_enabled=False,
    )
    model = ModelSettings(
        name=folder.name,
        implementation=Server,
        parameters=ModelParameters(uri=str(folder / "model.onnx")),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
