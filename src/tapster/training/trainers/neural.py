"""Multi-layer perceptrons of scikit-learn."""

from typing import Any

from tapster.training.trainers import EVERY, Needs, Setting, Space
from tapster.training.trainers.sklearn_graphs import emit_sklearn

SHAPES: dict[str, tuple[int, ...]] = {"64": (64,), "128": (128,), "64-64": (64, 64)}


class Mlp:
    """Fully connected layers with rectifiers, trained by Adam or by SGD with momentum."""

    name = "mlp"
    tasks = EVERY
    needs = Needs(scale=True)
    requires: tuple[str, ...] = ()
    largest = 200_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """One layer, Adam."""
        return {"layers": "64", "optimizer": "adam", "alpha": 1.0, "rate": 0.003}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "layers": draw.suggest_categorical("layers", list(SHAPES)),
            "optimizer": draw.suggest_categorical("optimizer", ["adam", "sgd"]),
            "alpha": draw.suggest_float("alpha", 1e-4, 10.0, log=True),
            "rate": draw.suggest_float("rate", 5e-4, 0.02, log=True),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        sgd = parameters["optimizer"] == "sgd"
        make = MLPRegressor if setting.task == "regression" else MLPClassifier
        return make(
            hidden_layer_sizes=SHAPES[parameters["layers"]],
            solver=parameters["optimizer"],
            alpha=parameters["alpha"],
            learning_rate_init=parameters["rate"] * (5 if sgd else 1),
            learning_rate="adaptive" if sgd else "constant",
            max_iter=120,
            n_iter_no_change=8,
            random_state=setting.seed,
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """See Trainer."""
        return emit_sklearn(graph, estimator, features, task)
