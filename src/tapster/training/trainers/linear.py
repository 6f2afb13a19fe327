"""Linear models: least squares with and without penalties, and logistic regression."""

from typing import Any

import numpy as np

from tapster.training.trainers import CLASSIFICATION, REGRESSION, Needs, Setting, Space


class Ols:
    """Ordinary least squares."""

    name = "ols"
    tasks = REGRESSION
    needs = Needs(scale=True)
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
        from sklearn.linear_model import LinearRegression

        return LinearRegression()

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """features @ coef + intercept."""
        return affine(graph, features, estimator.coef_.reshape(1, -1), estimator.intercept_)


class Ridge(Ols):
    """Least squares with an L2 penalty of weight `alpha`."""

    name = "ridge"

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """A mild penalty."""
        return {"alpha": 1.0}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {"alpha": draw.suggest_float("alpha", 1e-3, 1e3, log=True)}

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.linear_model import Ridge as Estimator

        return Estimator(**parameters, random_state=setting.seed)


class Lasso(Ols):
    """Least squares with an L1 penalty."""

    name = "lasso"
    largest = 500_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """A mild penalty."""
        return {"alpha": 0.01}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {"alpha": draw.suggest_float("alpha", 1e-4, 1.0, log=True)}

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.linear_model import Lasso as Estimator

        return Estimator(**parameters, random_state=setting.seed, max_iter=5000)


class ElasticNet(Ols):
    """Least squares with both penalties."""

    name = "elastic-net"
    largest = 500_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """A mild penalty, half of each kind."""
        return {"alpha": 0.01, "l1_ratio": 0.5}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "alpha": draw.suggest_float("alpha", 1e-4, 1.0, log=True),
            "l1_ratio": draw.suggest_float("l1_ratio", 0.05, 0.95),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.linear_model import ElasticNet as Estimator

        return Estimator(**parameters, random_state=setting.seed, max_iter=5000)


class Logistic:
    """Logistic regression with an L1 or L2 penalty; multinomial with L2, one against rest else."""

    name = "logistic"
    tasks = CLASSIFICATION
    needs = Needs(scale=True)
    requires: tuple[str, ...] = ()
    largest = 1 << 62

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """A mild L2 penalty."""
        return {"c": 0.3, "penalty": "l2"}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "c": draw.suggest_float("c", 1e-3, 1e2, log=True),
            "penalty": draw.suggest_categorical("penalty", ["l2", "l1"]),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        if parameters["penalty"] == "l2":
            return LogisticRegression(C=parameters["c"], max_iter=500, random_state=setting.seed)
        sparse = LogisticRegression(
            C=parameters["c"],
            l1_ratio=1.0,
            solver="liblinear",
            max_iter=200,
            random_state=setting.seed,
        )
        return sparse if setting.task == "binary" else OneVsRestClassifier(sparse)

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """Sigmoid or softmax of the linear scores."""
        if hasattr(estimator, "estimators_"):
            parts = estimator.estimators_
            weights = np.vstack([part.coef_ for part in parts])
            margins = affine(graph, features, weights, [part.intercept_[0] for part in parts])
            return normalised(graph, graph.add("Sigmoid", margins))
        margins = affine(graph, features, estimator.coef_, estimator.intercept_)
        if task == "binary":
            return two_columns(graph, graph.add("Sigmoid", margins))
        return str(graph.add("Softmax", margins, axis=1))


def affine(graph: Any, features: str, weights: Any, intercept: Any) -> str:
    """features [n, d] @ weights [k, d] transposed + intercept [k]."""
    matrix = graph.constant(np.asarray(weights, np.float32).T.copy())
    offset = graph.constant(np.atleast_1d(np.asarray(intercept, np.float32)))
    return str(graph.add("Gemm", features, matrix, offset))


def two_columns(graph: Any, positive: str) -> str:
    """[n, 1] probabilities of class 1 as [n, 2]."""
    one = graph.constant(np.ones(1, np.float32))
    return str(graph.add("Concat", graph.add("Sub", one, positive), positive, axis=1))


def normalised(graph: Any, shares: str) -> str:
    """Rows divided by their sums; a row of zeros stays one."""
    axes = graph.constant(np.array([1], np.int64))
    total = graph.add("ReduceSum", shares, axes, keepdims=1)
    floor = graph.constant(np.array([1e-30], np.float32))
    return str(graph.add("Div", shares, graph.add("Max", total, floor)))
