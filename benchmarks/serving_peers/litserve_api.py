# /// script
# dependencies = ["litserve", "onnxruntime", "numpy"]
# ///
"""LitServe with ONNX Runtime, batching what waits; its two processes share the core.

`python litserve_api.py MODEL_FOLDER PORT`
"""

import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort

Answer = dict[str, Any]


class Forest(litserve.LitAPI):  # type: ignore[misc]
    """The model behind the Open Inference path."""

    def setup(self, device: str) -> None:
        """Open the graph in the inference process."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(Path(sys.argv[1]) / "model.onnx"), options)

    def decode_request(self, request: Answer) -> Any:
        """The request's one row."""
        return np.array(request["inputs"][0]["data"], np.float32)

    def predict(self, rows: Any) -> list[Any]:
        """Score a batch of rows."""
        labels, shares = self.session.run(None, {"numeric": rows})
        return list(zip(labels.tolist(), shares.tolist(), strict=True))

    def encode_response(self, output: Any) -> Answer:
        """The answer of the Open Inference protocol."""
        label, shares = output
        return {
            "model_name": "forest",
            "outputs": [
                {"name": "label", "shape": [1], "datatype": "INT64", "data": [label]},
                {
                    "name": "probabilities",
                    "shape": [1, len(shares)],
                    "datatype": "FP32",
                    "data": shares,
                },
            ],
        }


if __name__ == "__main__":
    api = Forest(max_batch_size=32, batch_timeout=0.0, api_path="/v2/models/forest/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
