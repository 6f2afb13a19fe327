"""What the Open Inference services say of the server and of models, without running any."""

from importlib.metadata import version
from typing import Any, Final

from msgspec.json import encode

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import TensorSpec
from tapster.serving import slots as layout
from tapster.serving.engine import Endpoint, Target
from tapster.serving.gate import Pass
from tapster.serving.model import Model
from tapster.serving.rest.open_models import PLATFORM
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service
from tapster.serving.rpc.messages import message

EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "statistics",
)
MAX_BATCH: Final = 1024
_TYPES: Final = {"BYTES": "TYPE_STRING"}


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
    assert holder is not None
    endpoint = service.engine.find(holder.tenant, request.name)
    found = endpoint is not None and endpoint.target(request.version, "") is not None
    return message("inference.ModelReadyResponse")(ready=found)


def model_metadata(service: Service, holder: Pass | None, request: Any) -> Any:
    """A model's tensors, and its columns and classes as JSON."""
    target = _target(service, holder, request)
    model = target.model
    answer = message("inference.ModelMetadataResponse")(
        name=target.endpoint.plan.name,
        versions=[each.version for each in target.endpoint.targets],
        platform=PLATFORM.get(model.manifest.runtime, model.manifest.runtime),
    )
    for into, specs in (
        (answer.inputs, model.signature.inputs),
        (answer.outputs, model.signature.outputs),
    ):
        for spec in specs:
            into.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    if model.signature.columns:
        columns = [
            {"name": c.name, "kind": c.kind, "input": c.tensor, "position": c.position}
            for c in model.signature.columns
        ]
        answer.parameters["columns"].string_param = encode(columns).decode()
        answer.parameters["classes"].string_param = encode(model.signature.classes).decode()
    return answer


def model_config(service: Service, holder: Pass | None, request: Any) -> Any:
    """A model as Triton would configure it: dimensions without the batch's, where it has one."""
    target = _target(service, holder, request)
    model = target.model
    answer = message("inference.ModelConfigResponse")()
    config = answer.config
    config.name = target.endpoint.plan.name
    config.platform = PLATFORM.get(model.manifest.runtime, model.manifest.runtime)
    config.backend = model.manifest.runtime
    batched = _batched(model)
    config.max_batch_size = MAX_BATCH if batched else 0
    for into, specs in (
        (config.input, model.signature.inputs),
        (config.output, model.signature.outputs),
    ):
        for spec in specs:
            shape = spec.shape[1:] if batched else spec.shape
            into.add(name=spec.name, data_type=_type(spec), dims=shape)
    if batched:
        window = target.endpoint.plan.options.window or 0.0
        config.dynamic_batching.max_queue_delay_microseconds = round(window * 1e6)
    config.model_transaction_policy.decoupled = False
    config.response_cache.enable = target.endpoint.plan.options.cache > 0
    return answer


def model_statistics(service: Service, holder: Pass | None, request: Any) -> Any:
    """What a model, or every model of the caller, has answered, over all workers."""
    assert holder is not None
    if request.name:
        route = Route("rpc", name=request.name, version=request.version)
        endpoint = service.endpoint(holder, route)
        named = [service.target(endpoint, route)] if request.version else endpoint.targets
        targets = [(endpoint, target) for target in named]
    else:
        found = service.engine.visible(holder.tenant)
        targets = [(endpoint, target) for endpoint in found for target in endpoint.targets]
    answer = message("inference.ModelStatisticsResponse")()
    for endpoint, target in targets:
        _count(answer.model_stats.add(), service, endpoint, target)
    return answer


def repository_index(service: Service, holder: Pass | None, request: Any) -> Any:
    """The caller's models that take traffic."""
    assert holder is not None
    answer = message("inference.RepositoryIndexResponse")()
    for endpoint in service.engine.visible(holder.tenant):
        for target in endpoint.targets:
            answer.models.add(name=endpoint.plan.name, version=target.version, state="READY")
        if not endpoint.targets and not request.ready:
            answer.models.add(name=endpoint.plan.name, state="UNAVAILABLE", reason="loading")
    return answer


def model_load(service: Service, holder: Pass | None, request: Any) -> Any:
    """Models are there from the moment they are deployed, so this only looks whether one is."""
    name = request.model_name or request.repository_name
    assert holder is not None
    route = Route("rpc", name=name)
    service.target(service.endpoint(holder, route), route)
    return message("inference.RepositoryModelLoadResponse")(model_name=name, is_loaded=True)


def model_unload(service: Service, holder: Pass | None, request: Any) -> Any:
    """Refused: what takes traffic is the control plane's to decide."""
    assert holder is not None
    service.endpoint(holder, Route("rpc", name=request.model_name or request.repository_name))
    raise TapsterError(
        "unprocessable",
        "an endpoint is not taken away through the inference port",
        hint="use `tapster endpoints delete`",
    )


def _target(service: Service, holder: Pass | None, request: Any) -> Target:
    assert holder is not None
    route = Route("rpc", name=request.name, version=request.version)
    return service.target(service.endpoint(holder, route), route)


def _batched(model: Model) -> bool:
    signature = model.signature
    return all(s.shape and s.shape[0] == -1 for s in (*signature.inputs, *signature.outputs))


def _type(spec: TensorSpec) -> str:
    return _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}")


def _count(into: Any, service: Service, endpoint: Endpoint, target: Target) -> None:
    plan = endpoint.plan
    number = service.slots.place(plan.tenant, plan.name, target.version)
    totals = service.slots.totals(number)
    into.name, into.version = plan.name, target.version
    into.last_inference = 1000 * _changed(service, number)
    into.inference_count = totals[layout.ROWS]
    into.execution_count = totals[layout.BATCHES]
    good = totals[layout.OK]
    stats = into.inference_stats
    for name, count, spent in (
        ("success", good, layout.LATENCY_SUM),
        ("queue", good, layout.WAIT_SUM),
        ("compute_infer", good, layout.COMPUTE),
    ):
        duration = getattr(stats, name)
        duration.count, duration.ns = count, totals[spent]
    stats.fail.count = totals[layout.CLIENT_ERRORS] + totals[layout.SERVER_ERRORS]
    stats.cache_hit.count = totals[layout.CACHE_HITS]
    stats.cache_miss.count = totals[layout.CACHE_MISSES]


def _changed(service: Service, number: int) -> int:
    """When a place last answered, as far as any worker knows: seconds since 1970."""
    at = layout.WORKER_WORDS + number * layout.PLACE_WORDS + layout.CHANGED
    regions = service.slots.regions().values()
    return max((service.slots.words[region + at] for region in regions), default=0)
