"""The baseline that knows only the target: class shares, or the mean."""

from typing import Any

import numpy as np

from tapster.training.trainers import EVERY, Needs, Setting, Space


class Naive:
    """Predicts the prior (and so the majority class), or the mean, whatever the row."""

    name = "naive"
    tasks = EVERY
    needs = Needs()
    requires: tuple[str, ...] = ()
    largest = 1 << 62

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """No parameters."""
        return {}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """No parameters."""
        return {}

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.dummy import DummyClassifier, DummyRegressor

        if setting.task == "regression":
            return DummyRegressor(strategy="mean")
        return DummyClassifier(strategy="prior")

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """A constant row, as often as there are rows: features x 0 + constant."""
        if task == "regression":
            row = np.asarray(estimator.constant_, np.float32).reshape(1)
        else:
            row = np.asarray(estimator.class_prior_, np.float32)
        rows = graph.add("Shape", features, start=0, end=1)
        width = graph.constant(np.array([len(row)], np.int64))
        return str(
            graph.add("Expand", graph.constant(row), graph.add("Concat", rows, width, axis=0))
        )
