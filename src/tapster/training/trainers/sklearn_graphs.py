"""Writing scikit-learn estimators into a graph through skl2onnx."""

from typing import Any


def emit_sklearn(graph: Any, estimator: Any, features: str, task: str) -> str:
    """The estimator's scores by skl2onnx, float32 throughout (doubles break trees)."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    from tapster.training.graphs import ML_OPSET, OPSET

    classifier = task != "regression"
    model = convert_sklearn(
        estimator,
        name="estimator",
        initial_types=[("features", FloatTensorType([None, estimator.n_features_in_]))],
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options={id(estimator): {"zipmap": False}} if classifier else None,
    )
    return str(graph.splice(model, features)[1 if classifier else 0])
