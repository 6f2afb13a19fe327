"""Tree ensembles of scikit-learn."""

import copy
import itertools
from typing import Any

from tapster.training.trainers import EVERY, Needs, Setting, Space
from tapster.training.trainers.sklearn_graphs import emit_sklearn
from tapster.training.trainers.thresholds import floor


class RandomForest:
    """Averaged randomised trees (Breiman 2001)."""

    name = "random-forest"
    tasks = EVERY
    # NaN passed through converts silently wrong.
    needs = Needs(target=True, missing="impute")
    requires: tuple[str, ...] = ()
    largest = 200_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """200 trees; features as the literature has them."""
        share = 0.33 if task == "regression" else 0.0
        return {"trees": 200, "min_leaf": 1, "max_features": share, "max_depth": 24}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer; `max_features` 0 is the square root."""
        return {
            "trees": 200,
            "min_leaf": draw.suggest_int("min_leaf", 1, 10, log=True),
            "max_features": draw.suggest_categorical("max_features", [0.0, 0.2, 0.33, 0.6]),
            "max_depth": draw.suggest_categorical("max_depth", [8, 24]),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        make = RandomForestRegressor if setting.task == "regression" else RandomForestClassifier
        return make(
            n_estimators=parameters["trees"],
            # Leaves grow with the data, or the graph would: at most about 3000 a tree.
            min_samples_leaf=max(parameters["min_leaf"], setting.rows // 3000),
            max_features=parameters["max_features"] or "sqrt",
            max_depth=parameters["max_depth"],
            n_jobs=setting.threads,
            random_state=setting.seed,
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """See Trainer."""
        return emit_sklearn(graph, estimator, features, task)


class HistGradientBoosting:
    """Gradient boosting on binned features, with its own branch for missing values."""

    name = "hist-gradient-boosting"
    tasks = EVERY
    needs = Needs(target=True, missing="native")
    requires: tuple[str, ...] = ()
    largest = 1 << 62

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """scikit-learn's own."""
        return {
            "trees": 100,
            "learning_rate": 0.1,
            "leaves": 31,
            "min_leaf": 20,
            "l2": 0.0,
            "max_features": 1.0,
        }

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "trees": draw.suggest_int("trees", 50, 400, log=True),
            "learning_rate": draw.suggest_float("learning_rate", 0.02, 0.3, log=True),
            "leaves": draw.suggest_int("leaves", 4, 63, log=True),
            "min_leaf": draw.suggest_int("min_leaf", 3, 50, log=True),
            "l2": draw.suggest_float("l2", 1e-3, 10.0, log=True),
            "max_features": draw.suggest_float("max_features", 0.3, 1.0),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        regression = setting.task == "regression"
        make = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return make(
            max_iter=parameters["trees"],
            learning_rate=parameters["learning_rate"],
            max_leaf_nodes=parameters["leaves"],
            min_samples_leaf=parameters["min_leaf"],
            l2_regularization=parameters["l2"],
            max_features=parameters["max_features"],
            early_stopping=False,
            random_state=setting.seed,
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """Thresholds are floored to float32 first: ONNX would round some above a data value."""
        rounded = copy.deepcopy(estimator)
        for predictor in itertools.chain.from_iterable(rounded._predictors):
            predictor.nodes["num_threshold"] = floor(predictor.nodes["num_threshold"])
        return emit_sklearn(graph, rounded, features, task)
