# /// script
# dependencies = ["litserve", "onnxruntime", "numpy"]
# ///
"""LitServe with ONNX Runtime, batching what waits; its two processes share the core.

`python litserve_api.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
FOLDER = Path(sys.argv[1])
Answer = dict[str, Any]


class Server(litserve.LitAPI):  # type: ignore[misc]
    """The model behind the Open Inference path."""

    def setup(self, device: str) -> None:
        """Open the graph in the inference process."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(FOLDER / "model.onnx", options)
        self.source = self.session.get_inputs()[0].name
        self.names = [output.name for output in self.session.get_outputs()]

    def decode_request(self, request: Answer) -> Any:
        """The request's rows."""
        (tensor,) = request["inputs"]
        return np.array(tensor["data"], NUMPY[tensor["datatype"]]).reshape(tensor["shape"])

    def batch(self, inputs: list[Any]) -> tuple[Any, list[int]]:
        """Rows of several requests, and where one ends and the next begins."""
        return np.concatenate(inputs), np.cumsum([len(rows) for rows in inputs])[:-1].tolist()

    def predict(self, batch: tuple[Any, list[int]]) -> list[list[Any]]:
        """Score a batch; the outputs of each request."""
        rows, edges = batch
        arrays = self.session.run(None, {self.source: rows})
        return [list(parts) for parts in zip(*(np.split(a, edges) for a in arrays), strict=True)]

    def unbatch(self, output: list[list[Any]]) -> list[list[Any]]:
        """They are apart already."""
        return output

    def encode_response(self, output: list[Any]) -> Answer:
        """The answer of the Open Inference protocol."""
        outputs = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[array.dtype.name],
                "data": array.ravel().tolist(),
            }
            for name, array in zip(self.names, output, strict=True)
        ]
        return {"model_name": FOLDER.name, "outputs": outputs}


if __name__ == "__main__":
    path = f"/v2/models/{FOLDER.name}/infer"
    api = Server(max_batch_size=32, batch_timeout=0.0, api_path=path)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
