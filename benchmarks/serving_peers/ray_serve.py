# /// script
# dependencies = ["ray[serve]==2.60.0", "tritonclient[grpc]==2.73.0", "onnxruntime", "numpy"]
# ///
"""Ray Serve with ONNX Runtime: one replica behind its proxy, HTTP and gRPC.

Set up for throughput as its documents say (RAY_SERVE_THROUGHPUT_OPTIMIZED), without access log and
dashboard. For gRPC it serves the stubs of Triton's client.

`python ray_serve.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from starlette.responses import JSONResponse

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
STUBS = "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


class Server:
    """The model behind the Open Inference path and ModelInfer."""

    def __init__(self, folder: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.name = Path(folder).name
        self.session = ort.InferenceSession(Path(folder) / "model.onnx", options)
        self.names = [output.name for output in self.session.get_outputs()]

    async def __call__(self, request: Any) -> Any:
        """Score the rows of an HTTP request."""
        (tensor,) = (await request.json())["inputs"]
        rows = np.array(tensor["data"], NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
        arrays = self.session.run(None, {tensor["name"]: rows})
        outputs = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[array.dtype.name],
                "data": array.ravel().tolist(),
            }
            for name, array in zip(self.names, arrays, strict=True)
        ]
        return JSONResponse({"model_name": self.name, "outputs": outputs})

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802 - the service's name
        """Score the rows of a gRPC request."""
        from tritonclient.grpc import service_pb2  # type: ignore[import-not-found]

        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        rows = np.frombuffer(raw, NUMPY[tensor.datatype]).reshape(tensor.shape)
        arrays = self.session.run(None, {tensor.name: rows})
        infer_output = service_pb2.ModelInferResponse.InferOutputTensor
        return service_pb2.ModelInferResponse(
            model_name=self.name,
            outputs=[
                infer_output(name=name, shape=array.shape, datatype=DATATYPES[array.dtype.name])
                for name, array in zip(self.names, arrays, strict=True)
            ],
            raw_output_contents=[array.tobytes() for array in arrays],
        )


def main(folder: Path, port: int, grpc_port: int) -> None:
    """Serve until told to stop; the cluster ends with this process."""
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where replicas find our messages
    import ray  # type: ignore[import-not-found]
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions  # type: ignore[import-not-found]

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _temp_dir=str(folder / "ray"),
        log_to_driver=False,
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[STUBS]),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    deployed = serve.deployment(Server, max_ongoing_requests=1000)
    serve.run(deployed.bind(str(folder)), route_prefix=f"/v2/models/{folder.name}/infer")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
