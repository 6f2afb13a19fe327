"""The messages of Triton's client under the module name that they carry themselves, for pickle."""

from tritonclient.grpc.service_pb2 import (  # type: ignore[import-not-found]
    ModelInferRequest,
    ModelInferResponse,
)

__all__ = ["ModelInferRequest", "ModelInferResponse"]
