"""What the Open Inference Protocol says of the server and its models.

Source: the protocol's `required_api` page; the extensions are those of Triton's documents.
"""

from typing import Any, Final

from tapster.serving.engine import Target

PLATFORM: Final = {"onnx": "onnx_onnxv1"}
EXTENSIONS: Final = ["binary_tensor_data"]


def describe(target: Target) -> dict[str, Any]:
    """The metadata of a model: its tensors, and its columns as parameters of ours."""
    model = target.model
    signature = model.signature
    described: dict[str, Any] = {
        "name": target.endpoint.plan.name,
        "versions": [each.version for each in target.endpoint.targets],
        "platform": PLATFORM.get(model.manifest.runtime, model.manifest.runtime),
        "inputs": [_spec(spec) for spec in signature.inputs],
        "outputs": [_spec(spec) for spec in signature.outputs],
    }
    if signature.columns:
        described["parameters"] = {
            "columns": [
                {"name": c.name, "kind": c.kind, "input": c.tensor, "position": c.position}
                for c in signature.columns
            ],
            "classes": list(signature.classes),
        }
    return described


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
