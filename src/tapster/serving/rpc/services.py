"""Every method that is answered, by its path. What is not here is not answered."""

from typing import Any, Final, cast

from tapster.serving.gate import MANAGE, PREDICT
from tapster.serving.rpc import (
    health,
    open_inference,
    reflection,
    repository,
    tf_models,
    tf_serving,
)
from tapster.serving.rpc.calls import Wire
from tapster.serving.rpc.messages import message, service
from tapster.serving.rpc.methods import Answers, Method
from tapster.serving.rpc.streaming import Inferences
from tapster.serving.tracing import over_grpc

_OPEN: Final = "inference.GRPCInferenceService"
_PREDICTION: Final = "tensorflow.serving.PredictionService"
_MODELS: Final = "tensorflow.serving.ModelService"
_HEALTH: Final = "grpc.health.v1.Health"
# Whoever asks only whether the server is there needs no key.
_PUBLIC: Final = frozenset({(_OPEN, "ServerLive"), (_OPEN, "ServerReady"), (_HEALTH, "Check")})
_MANAGING: Final = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
_ANSWERS: Final[dict[tuple[str, str], Answers]] = {
    (_OPEN, "ServerLive"): repository.server_live,
    (_OPEN, "ServerReady"): repository.server_ready,
    (_OPEN, "ServerMetadata"): repository.server_metadata,
    (_OPEN, "ModelReady"): repository.model_ready,
    (_OPEN, "ModelMetadata"): repository.model_metadata,
    (_OPEN, "ModelConfig"): repository.model_config,
    (_OPEN, "ModelStatistics"): repository.model_statistics,
    (_OPEN, "RepositoryIndex"): repository.repository_index,
    (_OPEN, "RepositoryModelLoad"): repository.model_load,
    (_OPEN, "RepositoryModelUnload"): repository.model_unload,
    (_PREDICTION, "GetModelMetadata"): tf_models.metadata,
    (_MODELS, "GetModelStatus"): tf_models.status,
    (_HEALTH, "Check"): health.check,
}


def all_methods() -> dict[bytes, Method]:
    """Methods by path, `/package.Service/Method`."""
    methods: dict[tuple[str, str], Method] = {
        (_OPEN, "ModelInfer"): Method(wire=cast(Wire, open_inference), large=True),
        (_OPEN, "ModelStreamInfer"): Method(session=Inferences, large=True),
        (_PREDICTION, "Predict"): Method(wire=cast(Wire, tf_serving), large=True),
        (_HEALTH, "Watch"): Method(session=health.Watching, public=True),
    }
    for version, begin in reflection.sessions().items():
        name = f"grpc.reflection.{version}.ServerReflection"
        methods[name, "ServerReflectionInfo"] = Method(session=begin)
    for (owner, name), answers in _ANSWERS.items():
        asked = _request(owner, name)
        public, right = (owner, name) in _PUBLIC, MANAGE if name in _MANAGING else PREDICT
        methods[owner, name] = Method(answers=answers, request=asked, public=public, right=right)
    for (owner, name), method in methods.items():
        method.operation = over_grpc(f"{owner}/{name}")
    return {f"/{owner}/{name}".encode(): method for (owner, name), method in methods.items()}


def _request(owner: str, name: str) -> Any:
    """The class of a method's request."""
    return message(service(owner).methods_by_name[name].input_type.full_name)
