# /// script
# dependencies = ["tritonclient[grpc]==2.73.0", "onnxruntime", "numpy"]
# ///
"""gRPC's own asyncio server in front of ONNX Runtime, called in the event loop.

Only the generated stubs are taken from Triton's client. Answers are raw contents, the cheapest.

`python grpcio_onnx.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from tritonclient.grpc import (  # type: ignore[import-not-found]
    service_pb2,
    service_pb2_grpc,
)

DATATYPES = {"float32": "FP32", "int64": "INT64"}
NUMPY = {datatype: name for name, datatype in DATATYPES.items()}


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The model behind ModelInfer."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(folder / "model.onnx", options)
        self.names = [output.name for output in self.session.get_outputs()]

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        """Score the rows."""
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        rows = np.frombuffer(raw, NUMPY[tensor.datatype]).reshape(tensor.shape)
        arrays = self.session.run(None, {tensor.name: rows})
        infer_output = service_pb2.ModelInferResponse.InferOutputTensor
        return service_pb2.ModelInferResponse(
            model_name=request.model_name,
            outputs=[
                infer_output(name=name, shape=array.shape, datatype=DATATYPES[array.dtype.name])
                for name, array in zip(self.names, arrays, strict=True)
            ],
            raw_output_contents=[array.tobytes() for array in arrays],
        )


async def main(folder: Path, port: int) -> None:
    """Serve until told to stop."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(folder), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[3])))
