"""What the Open Inference Protocol says of the server and its models.

Source: the protocol's `required_api` page; the extensions are those of Triton's documents.
"""

from typing import Any, Final

from tapster.serving import slots as layout
from tapster.serving.engine import Endpoint, Target
from tapster.serving.model import COLD, FAILED, LOADING, READY
from tapster.serving.slots import Slots

# Of a version, in Triton's words; one that sleeps on disk answers all the same.
STATES: Final = {READY: "READY", COLD: "READY", LOADING: "LOADING", FAILED: "UNAVAILABLE"}
PLATFORM: Final = {"onnx": "onnx_onnxv1"}
EXTENSIONS: Final = ["binary_tensor_data", "model_repository", "statistics"]


def describe(target: Target, name: str) -> dict[str, Any]:
    """The metadata of a model that is called so: its tensors, and as parameters of ours its
    columns, and the members of an ensemble with their weights."""
    model = target.model
    signature = model.signature
    described: dict[str, Any] = {
        "name": name,
        "versions": [each.version for each in target.endpoint.targets],
        "platform": PLATFORM.get(model.manifest.runtime, model.manifest.runtime),
        "inputs": [_spec(spec) for spec in signature.inputs],
        "outputs": [_spec(spec) for spec in signature.outputs],
    }
    parameters: dict[str, Any] = {}
    if signature.columns:
        parameters["columns"] = [
            {"name": c.name, "kind": c.kind, "input": c.tensor, "position": c.position}
            for c in signature.columns
        ]
        parameters["classes"] = list(signature.classes)
    if target.members:
        parameters["members"] = {member.name: member.weight for member in target.members}
    return described | {"parameters": parameters} if parameters else described


def index(name: str, versions: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """A model's lines in the repository's index, from (version, state, error)."""
    return [
        {"name": name, "version": version, "state": STATES[state], "reason": error}
        for version, state, error in versions
    ]


def statistics(slots: Slots, endpoint: Endpoint, target: Target) -> dict[str, Any]:
    """What a version has answered for an endpoint, over all workers; times in nanoseconds.

    `inference_count` counts rows, `execution_count` batches, `last_inference` is in milliseconds
    since 1970.
    """
    plan, number = endpoint.plan, target.hold.number
    totals = slots.totals(number)
    good, bad = totals[layout.OK], totals[layout.CLIENT_ERRORS] + totals[layout.SERVER_ERRORS]

    def spent(count: int, time: int | None) -> dict[str, int]:
        return {"count": count, "ns": 0 if time is None else totals[time]}

    return {
        "name": plan.name,
        "version": target.version,
        "last_inference": 1000 * _changed(slots, number),
        "inference_count": totals[layout.ROWS],
        "execution_count": totals[layout.BATCHES],
        "inference_stats": {
            "success": spent(good, layout.LATENCY_SUM),
            "fail": spent(bad, None),
            "queue": spent(good, layout.WAIT_SUM),
            "compute_input": spent(good, None),
            "compute_infer": spent(good, layout.COMPUTE),
            "compute_output": spent(good, None),
            "cache_hit": spent(totals[layout.CACHE_HITS], None),
            "cache_miss": spent(totals[layout.CACHE_MISSES], None),
        },
        "batch_stats": [],
    }


def _changed(slots: Slots, number: int) -> int:
    """When a place last answered, as far as any worker knows: seconds since 1970."""
    at = layout.WORKER_WORDS + number * layout.PLACE_WORDS + layout.CHANGED
    return max((slots.words[region + at] for region in slots.regions().values()), default=0)


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
