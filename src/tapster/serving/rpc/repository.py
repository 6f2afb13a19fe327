"""What the Open Inference services say of the server and of models, and models that come and go."""

from importlib.metadata import version
from typing import Any, Final

from msgspec.json import encode

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import TensorSpec
from tapster.serving.endpoints import Endpoint, Target
from tapster.serving.gate import Pass
from tapster.serving.model import FAILED, Model
from tapster.serving.rest import open_models
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service
from tapster.serving.rpc.messages import message

EXTENSIONS: Final = (*open_models.EXTENSIONS, "model_configuration")
MAX_BATCH: Final = 1024
_TYPES: Final = {"BYTES": "TYPE_STRING"}
_HARMLESS: Final = frozenset({"unload_dependents"})


def server_live(service: Service, holder: Pass | None, request: Any) -> Any:
    """Whether the server answers."""
    return message("inference.ServerLiveResponse")(live=True)


def server_ready(service: Service, holder: Pass | None, request: Any) -> Any:
    """Whether a plan is in force, and the worker is not about to stop."""
    return message("inference.ServerReadyResponse")(ready=service.ready)


def server_metadata(service: Service, holder: Pass | None, request: Any) -> Any:
    """The server's name, version and extensions."""
    return message("inference.ServerMetadataResponse")(
        name="tapster", version=version("tapster"), extensions=EXTENSIONS
    )


def model_ready(service: Service, holder: Pass | None, request: Any) -> Any:
    """Whether a model takes requests; one that does not exist is not ready, as Triton has it."""
    service.check(_known(holder), request.name)
    endpoint = service.engine.find(_known(holder).tenant, request.name)
    target = endpoint.target(request.version, "") if endpoint is not None else None
    ready = target is not None and target.state[0] != FAILED
    return message("inference.ModelReadyResponse")(ready=ready)


def model_metadata(service: Service, holder: Pass | None, request: Any) -> Any:
    """A model's tensors, and its columns and classes as JSON."""
    described = open_models.describe(_target(service, holder, request), request.name)
    parameters = described.pop("parameters", {})
    answer = message("inference.ModelMetadataResponse")(**described)
    for name, value in parameters.items():
        answer.parameters[name].string_param = encode(value).decode()
    return answer


def model_config(service: Service, holder: Pass | None, request: Any) -> Any:
    """A model as Triton would configure it: dimensions without the batch's, where it has one."""
    target = _target(service, holder, request)
    model, plan = target.model, target.endpoint.plan
    answer = message("inference.ModelConfigResponse")()
    config = answer.config
    config.name = request.name
    config.backend = model.manifest.runtime
    config.platform = open_models.PLATFORM.get(config.backend, config.backend)
    batched = _batched(model)
    for into, specs in (
        (config.input, model.signature.inputs),
        (config.output, model.signature.outputs),
    ):
        for spec in specs:
            shape = spec.shape[1:] if batched else spec.shape
            into.add(name=spec.name, data_type=_type(spec), dims=shape)
    if batched:
        config.max_batch_size = MAX_BATCH
        window = plan.options.window or 0.0
        config.dynamic_batching.max_queue_delay_microseconds = round(window * 1e6)
    config.model_transaction_policy.decoupled = False
    config.response_cache.enable = plan.options.cache > 0
    return answer


def model_statistics(service: Service, holder: Pass | None, request: Any) -> Any:
    """What a model, or every model of the caller, has answered, over all workers."""
    found: list[tuple[Endpoint, Target]]
    if request.name:
        route = Route("rpc", name=request.name, version=request.version)
        endpoint = service.own(_known(holder), route)
        named = [service.target(endpoint, route)] if route.version else endpoint.targets
        found = [(endpoint, target) for target in named]
    else:
        mine = service.engine.mine(_known(holder))
        found = [(endpoint, target) for endpoint in mine for target in endpoint.targets]
    stats = [open_models.statistics(service.slots, *each) for each in found]
    return message("inference.ModelStatisticsResponse")(model_stats=stats)


def repository_index(service: Service, holder: Pass | None, request: Any) -> Any:
    """The caller's models and the state of their versions."""
    lines = [
        line
        for name, endpoint in service.engine.visible(_known(holder))
        for line in open_models.index(name, service.engine.versions(endpoint))
        if line["state"] == "READY" or not request.ready
    ]
    return message("inference.RepositoryIndexResponse")(models=lines)


async def model_load(service: Service, holder: Pass | None, request: Any) -> Any:
    """Have a model in the memory of every worker."""
    endpoint = _managed(service, holder, request)
    await service.repository.load(endpoint)
    name = endpoint.plan.name
    return message("inference.RepositoryModelLoadResponse")(model_name=name, is_loaded=True)


async def model_unload(service: Service, holder: Pass | None, request: Any) -> Any:
    """Have a model leave the memory of every worker; the next request brings it back."""
    endpoint = _managed(service, holder, request)
    await service.repository.unload(endpoint)
    name = endpoint.plan.name
    return message("inference.RepositoryModelUnloadResponse")(model_name=name, is_unloaded=True)


def _known(holder: Pass | None) -> Pass:
    assert holder is not None  # only public methods are called without
    return holder


def _endpoint(
    service: Service, holder: Pass | None, name: str, number: str = ""
) -> tuple[Endpoint, Route]:
    route = Route("rpc", name=name, version=number)
    return service.endpoint(_known(holder), route), route


def _target(service: Service, holder: Pass | None, request: Any) -> Target:
    return service.target(*_endpoint(service, holder, request.name, request.version))


def _managed(service: Service, holder: Pass | None, request: Any) -> Endpoint:
    """The endpoint whose models come or go. What it serves is not for this port to say."""
    if request.parameters.keys() - _HARMLESS:
        raise TapsterError(
            "invalid",
            "the inference port does not change what a model is",
            hint="import a version and deploy it through the control API",
            field="parameters",
        )
    name = request.model_name or request.repository_name
    return service.own(_known(holder), Route("rpc", name=name))


def _batched(model: Model) -> bool:
    signature = model.signature
    return all(s.shape and s.shape[0] == -1 for s in (*signature.inputs, *signature.outputs))


def _type(spec: TensorSpec) -> str:
    return _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}")
