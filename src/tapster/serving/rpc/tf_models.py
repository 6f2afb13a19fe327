"""What TensorFlow Serving's services say of a model: its signature, and the state of versions."""

from typing import Any, Final

from tapster.contract.manifest import TensorSpec
from tapster.serving.engine import Endpoint
from tapster.serving.gate import Pass
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.tf_serving import NUMBERS, SIGNATURE, named

FIELD: Final = "signature_def"
METHOD: Final = "tensorflow/serving/predict"
TYPE_URL: Final = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
_AVAILABLE: Final = "AVAILABLE"


def metadata(service: Service, holder: Pass | None, request: Any) -> Any:
    """The signature of a model. Raises TapsterError(invalid) for any other field of metadata."""
    if not request.metadata_field or set(request.metadata_field) != {FIELD}:
        raise invalid(f"metadata_field must be {FIELD!r}")
    endpoint, route = _found(service, holder, request.model_spec)
    target = service.target(endpoint, route)
    known = message("tensorflow.serving.SignatureDefMap")()
    definition = known.signature_def[SIGNATURE]
    definition.method_name = METHOD
    for into, specs in (
        (definition.inputs, target.model.signature.inputs),
        (definition.outputs, target.model.signature.outputs),
    ):
        for spec in specs:
            _describe(into[spec.name], spec)
    answer = message("tensorflow.serving.GetModelMetadataResponse")()
    answer.model_spec.name = endpoint.plan.name
    answer.model_spec.version.value = int(target.version)
    answer.metadata[FIELD].type_url = TYPE_URL
    answer.metadata[FIELD].value = known.SerializeToString()
    return answer


def status(service: Service, holder: Pass | None, request: Any) -> Any:
    """The state of the version that is named, or of all."""
    endpoint, route = _found(service, holder, request.model_spec)
    one = route.version or route.label
    targets = [service.target(endpoint, route)] if one else endpoint.targets
    answer = message("tensorflow.serving.GetModelStatusResponse")()
    for target in targets:
        state = answer.model_version_status.add(version=int(target.version), state=_AVAILABLE)
        state.status.error_code = 0
    return answer


def _found(service: Service, holder: Pass | None, spec: Any) -> tuple[Endpoint, Route]:
    assert holder is not None
    name, version, label = named(spec)
    route = Route("rpc", name=name, version=version, label=label)
    return service.endpoint(holder, route), route


def _describe(into: Any, spec: TensorSpec) -> None:
    """Fill a TensorInfo."""
    into.name = spec.name
    into.dtype = NUMBERS[spec.datatype]
    for size in spec.shape:
        into.tensor_shape.dim.add(size=size)
