"""The model inside Triton's Python backend: a batch of requests is one run of ONNX Runtime."""

import os
import sys
from typing import Any

sys.path.insert(0, os.environ["PACKAGES"])  # the stub reads no PYTHONPATH

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph."""
        import json

        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = config["parameters"]["model"]["string_value"]
        self.session = ort.InferenceSession(path, options)
        self.source = config["input"][0]["name"]
        self.names = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Score the rows of all requests."""
        given = [pb_utils.get_input_tensor_by_name(one, self.source).as_numpy() for one in requests]
        rows = given[0] if len(given) == 1 else np.concatenate(given)
        arrays = [
            array if array.ndim > 1 else array[:, None]
            for array in self.session.run(self.names, {self.source: rows})
        ]
        responses = []
        start = 0
        for part in given:
            stop = start + len(part)
            tensors = [
                pb_utils.Tensor(name, array[start:stop])
                for name, array in zip(self.names, arrays, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses
