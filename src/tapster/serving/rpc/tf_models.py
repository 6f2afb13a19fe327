"""What TensorFlow Serving's services say of a model: its signatures, and the state of versions.

The same as over REST, whose JSON is that of these messages.
"""

from typing import Any, Final

from tapster.serving.endpoints import Endpoint
from tapster.serving.gate import Pass
from tapster.serving.rest import tf_models
from tapster.serving.rest.bodies import invalid
from tapster.serving.rest.routes import Route
from tapster.serving.rest.service import Service
from tapster.serving.rpc.messages import message
from tapster.serving.rpc.tf_serving import named

FIELD: Final = "signature_def"
TYPE_URL: Final = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def metadata(service: Service, holder: Pass | None, request: Any) -> Any:
    """The signatures of a model. Raises TapsterError(invalid) for any other field of metadata."""
    if not request.metadata_field or set(request.metadata_field) != {FIELD}:
        raise invalid(f"metadata_field must be {FIELD!r}")
    endpoint, route = _found(service, holder, request.model_spec)
    target = service.target(endpoint, route)
    described = tf_models.describe(target, route.name)["metadata"][FIELD]
    answer = message("tensorflow.serving.GetModelMetadataResponse")()
    answer.model_spec.name = route.name
    answer.model_spec.version.value = int(target.version)
    known = _filled("tensorflow.serving.SignatureDefMap", described)
    answer.metadata[FIELD].type_url = TYPE_URL
    answer.metadata[FIELD].value = known.SerializeToString()
    return answer


def status(service: Service, holder: Pass | None, request: Any) -> Any:
    """The state of the version that is named, or of all."""
    endpoint, route = _found(service, holder, request.model_spec)
    versions = service.engine.versions(endpoint)
    if route.version or route.label:
        wanted = route.version
        if not any(version == wanted for version, _, _ in versions):
            wanted = service.target(endpoint, route).version
        versions = [each for each in versions if each[0] == wanted]
    found = tf_models.status(route.name, endpoint, versions)["model_version_status"]
    return _filled("tensorflow.serving.GetModelStatusResponse", {"model_version_status": found})


def _found(service: Service, holder: Pass | None, spec: Any) -> tuple[Endpoint, Route]:
    assert holder is not None
    name, version, label = named(spec)
    route = Route("rpc", name=name, version=version, label=label)
    return service.endpoint(holder, route), route


def _filled(name: str, document: dict[str, Any]) -> Any:
    """A message from the JSON that stands for it."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(document, message(name)())
