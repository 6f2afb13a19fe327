"""What TensorFlow Serving, KServe v1 and OpenAI clients ask of models under /v1/models.

The three families ask at the same paths; every answer has the fields that each looks for.
Source: TensorFlow Serving's RESTful API page and `get_model_status.proto`; KServe's v1 protocol;
OpenAI's models API.
"""

from typing import Any, Final

from tapster.runtimes.parity import PREDICTION, PROBABILITIES
from tapster.serving.engine import Endpoint, Target
from tapster.serving.model import FAILED, LOADING, Model

SIGNATURE: Final = "serving_default"
PREDICT: Final = "predict"
CLASSIFICATION: Final = "classification"
REGRESSION: Final = "regression"
# In TensorFlow Serving's words; a model that sleeps on disk answers, hence is available.
_STATES: Final = {LOADING: "LOADING", FAILED: "END"}
_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
_DTYPES: Final = {
    "BOOL": "DT_BOOL", "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32",
    "INT64": "DT_INT64", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64", "FP16": "DT_HALF", "BF16": "DT_BFLOAT16", "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE", "BYTES": "DT_STRING",
}  # fmt: skip

Document = dict[str, Any]


def listing(endpoints: list[tuple[str, Endpoint]]) -> Document:
    """Every model that a caller may ask, by the name it calls it: `data` for OpenAI's clients,
    `models` for KServe's."""
    return {
        "object": "list",
        "data": [_card(*each) for each in endpoints],
        "models": [name for name, _ in endpoints],
    }


def status(name: str, endpoint: Endpoint, versions: list[tuple[str, str, str]]) -> Document:
    """The state of versions, from (version, state, error), and what the others say of a model."""
    return {
        "model_version_status": [_version(*each) for each in versions],
        "name": name,
        "ready": bool(endpoint.targets),
        **_card(name, endpoint),
    }


def describe(target: Target, name: str) -> Document:
    """The metadata of a model that is called so, as TensorFlow Serving spells it."""
    signature = target.model.signature
    tensors = {
        "inputs": {s.name: _info(s.name, s.datatype, s.shape) for s in signature.inputs},
        "outputs": {s.name: _info(s.name, s.datatype, s.shape) for s in signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {
            "name": name,
            "signature_name": "",
            "version": target.version,
        },
        "metadata": {
            "signature_def": {
                "signature_def": {
                    SIGNATURE: tensors,
                    PREDICT: tensors,
                    **_examples(target.model),
                }
            }
        },
        "columns": [{"name": c.name, "kind": c.kind} for c in signature.columns],
    }


def classifies(model: Model) -> bool:
    """Whether a model gives a probability for each of its classes."""
    return bool(model.labels) and any(s.name == PROBABILITIES for s in model.signature.outputs)


def regresses(model: Model) -> int | None:
    """Which output is one number a row; None for a model that gives something else."""
    if model.labels:
        return None
    outputs = model.signature.outputs
    for index, spec in enumerate(outputs):
        one = len(spec.shape) == 1 or spec.shape[1:] == (1,)
        if spec.datatype in _FLOATS and one and (spec.name == PREDICTION or len(outputs) == 1):
            return index
    return None


def _card(name: str, endpoint: Endpoint) -> Document:
    return {"id": name, "object": "model", "created": 0, "owned_by": endpoint.plan.tenant}


def _version(version: str, state: str, error: str) -> Document:
    code = "FAILED_PRECONDITION" if error else "OK"
    return {
        "version": version,
        "state": _STATES.get(state, "AVAILABLE"),
        "status": {"error_code": code, "error_message": error},
    }


def _examples(model: Model) -> Document:
    """The signatures that take examples, as far as the model fits."""
    given = {"inputs": {"inputs": _info("examples", "BYTES", (-1,))}}
    if classifies(model):
        count = len(model.labels)
        outputs = {
            "classes": _info("classes", "BYTES", (-1, count)),
            "scores": _info(PROBABILITIES, "FP32", (-1, count)),
        }
        method = "tensorflow/serving/classify"
        return {CLASSIFICATION: {**given, "outputs": outputs, "method_name": method}}
    if regresses(model) is not None:
        outputs = {"outputs": _info(PREDICTION, "FP32", (-1,))}
        method = "tensorflow/serving/regress"
        return {REGRESSION: {**given, "outputs": outputs, "method_name": method}}
    return {}


def _info(name: str, datatype: str, shape: tuple[int, ...]) -> Document:
    return {
        "dtype": _DTYPES[datatype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in shape],
            "unknown_rank": False,
        },
        "name": name,
    }
