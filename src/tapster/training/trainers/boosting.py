"""LightGBM and XGBoost (extra `boost`)."""

import re
from typing import Any, Final

from tapster.training.trainers import EVERY, Needs, Setting, Space
from tapster.training.trainers.thresholds import floor

ONNXMLTOOLS_OPSET: Final = 15


class LightGbm:
    """LightGBM; its thresholds are floored to float32, so that they split float32 data alike."""

    name = "lightgbm"
    tasks = EVERY
    # A column without holes in training gives no branch for them: preprocessing fills those.
    needs = Needs(target=True, missing="native")
    requires: tuple[str, ...] = ("lightgbm",)
    largest = 1 << 62

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """LightGBM's own, with smaller leaves for few rows."""
        return {
            "trees": 100, "learning_rate": 0.1, "leaves": 31,
            "min_leaf": 20 if rows > 500 else 5, "l2": 0.001, "rows": 1.0, "columns": 0.8,
        }  # fmt: skip

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "trees": draw.suggest_int("trees", 50, 400, log=True),
            "learning_rate": draw.suggest_float("learning_rate", 0.02, 0.3, log=True),
            "leaves": draw.suggest_int("leaves", 4, 63, log=True),
            "min_leaf": draw.suggest_int("min_leaf", 3, 50, log=True),
            "l2": draw.suggest_float("l2", 1e-3, 10.0, log=True),
            "rows": draw.suggest_float("rows", 0.5, 1.0),
            "columns": draw.suggest_float("columns", 0.3, 1.0),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        import lightgbm

        make = lightgbm.LGBMRegressor if setting.task == "regression" else lightgbm.LGBMClassifier
        return make(
            n_estimators=parameters["trees"],
            learning_rate=parameters["learning_rate"],
            num_leaves=parameters["leaves"],
            min_child_samples=parameters["min_leaf"],
            reg_lambda=parameters["l2"],
            subsample=parameters["rows"],
            subsample_freq=1,
            colsample_bytree=parameters["columns"],
            random_state=setting.seed,
            n_jobs=setting.threads,
            deterministic=True,
            force_row_wise=True,
            verbosity=-1,
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """See Trainer."""
        from lightgbm import Booster
        from onnxmltools import convert_lightgbm

        booster = Booster(model_str=floored(estimator.booster_.model_to_string()))
        model = convert_lightgbm(
            booster,
            name="estimator",
            initial_types=_inputs(estimator),
            target_opset=ONNXMLTOOLS_OPSET,
            zipmap=False,
        )
        return str(graph.splice(model, features)[0 if task == "regression" else 1])


class XgBoost:
    """XGBoost with histograms."""

    name = "xgboost"
    tasks = EVERY
    needs = Needs(target=True, missing="native")
    requires: tuple[str, ...] = ("xgboost",)
    largest = 1 << 62

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """Shallower and slower than XGBoost's own."""
        return {
            "trees": 150, "learning_rate": 0.1, "depth": 5, "min_weight": 1.0, "l2": 1.0,
            "rows": 0.9, "columns": 0.8,
        }  # fmt: skip

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "trees": draw.suggest_int("trees", 50, 400, log=True),
            "learning_rate": draw.suggest_float("learning_rate", 0.02, 0.3, log=True),
            "depth": draw.suggest_int("depth", 2, 9),
            "min_weight": draw.suggest_float("min_weight", 0.5, 20.0, log=True),
            "l2": draw.suggest_float("l2", 1e-2, 10.0, log=True),
            "rows": draw.suggest_float("rows", 0.5, 1.0),
            "columns": draw.suggest_float("columns", 0.3, 1.0),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        import xgboost

        make = xgboost.XGBRegressor if setting.task == "regression" else xgboost.XGBClassifier
        return make(
            n_estimators=parameters["trees"],
            learning_rate=parameters["learning_rate"],
            max_depth=parameters["depth"],
            min_child_weight=parameters["min_weight"],
            reg_lambda=parameters["l2"],
            subsample=parameters["rows"],
            colsample_bytree=parameters["columns"],
            tree_method="hist",
            random_state=setting.seed,
            n_jobs=setting.threads,
            verbosity=0,
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """See Trainer."""
        from onnxmltools import convert_xgboost

        model = convert_xgboost(
            estimator,
            name="estimator",
            initial_types=_inputs(estimator),
            target_opset=ONNXMLTOOLS_OPSET,
        )
        return str(graph.splice(model, features)[0 if task == "regression" else 1])


def floored(text: str) -> str:
    """A LightGBM model's text with every threshold at the next float32 below or at it.

    For float32 data `x <= t` is the same question; ONNX would round thresholds to the nearest
    float32, which may be a data value above.
    """

    def spelled(line: re.Match[str]) -> str:
        return line[1] + " ".join(f"{value:.17g}" for value in floor(line[2].split()))

    # `tree_sizes` counts bytes that have changed; without it LightGBM parses tree by tree.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^(threshold=)(.+)$", spelled, text, flags=re.MULTILINE)


def _inputs(estimator: Any) -> list[tuple[str, Any]]:
    from onnxmltools.convert.common.data_types import FloatTensorType

    return [("features", FloatTensorType([None, estimator.n_features_in_]))]
