"""Support vector machines; probabilities by Platt's sigmoid on cross-validated margins."""

from typing import Any

import numpy as np

from tapster.training.trainers import EVERY, Needs, Setting, Space
from tapster.training.trainers.linear import affine, normalised, two_columns
from tapster.training.trainers.sklearn_graphs import emit_sklearn


class LinearSvm:
    """A linear margin (LIBLINEAR); a regression's tube is epsilon-insensitive."""

    name = "linear-svm"
    tasks = EVERY
    needs = Needs(scale=True)
    requires: tuple[str, ...] = ()
    largest = 50_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """A mild penalty."""
        return {"c": 0.1}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {"c": draw.suggest_float("c", 1e-3, 10.0, log=True)}

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.svm import LinearSVC, LinearSVR

        common = {"C": parameters["c"], "random_state": setting.seed, "max_iter": 5000}
        if setting.task == "regression":
            return LinearSVR(loss="squared_epsilon_insensitive", epsilon=0.05, dual=False, **common)
        return calibrated(LinearSVC(dual=False, **common), setting.seed)

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """The margins, and for classes their sigmoids."""
        if task == "regression":
            return affine(graph, features, estimator.coef_.reshape(1, -1), estimator.intercept_)
        fitted = estimator.calibrated_classifiers_[0]
        machine, sigmoids = fitted.estimator, fitted.calibrators
        slope = np.array([[sigmoid.a_] for sigmoid in sigmoids])
        offset = np.array([sigmoid.b_ for sigmoid in sigmoids])
        # p = 1 / (1 + exp(a f + b)), and f is itself affine.
        margins = affine(
            graph,
            features,
            -slope * machine.coef_,
            -slope[:, 0] * np.ravel(machine.intercept_) - offset,
        )
        shares = graph.add("Sigmoid", margins)
        return two_columns(graph, shares) if len(sigmoids) == 1 else normalised(graph, shares)


class RbfSvm:
    """A Gaussian kernel (LIBSVM); time grows with the square of the rows."""

    name = "rbf-svm"
    tasks = EVERY
    needs = Needs(scale=True)
    requires: tuple[str, ...] = ()
    largest = 5_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """`gamma` is a multiple of 1 / (columns x variance)."""
        return {"c": 3.0, "gamma": 1.0}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "c": draw.suggest_float("c", 1e-1, 1e2, log=True),
            "gamma": draw.suggest_float("gamma", 0.03, 5.0, log=True),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        from sklearn.svm import SVC, SVR

        # With standardised columns this is scikit-learn's "scale" times the parameter.
        gamma = parameters["gamma"] / max(1, setting.columns)
        if setting.task == "regression":
            return SVR(C=parameters["c"], gamma=gamma, epsilon=0.05)
        machine = SVC(C=parameters["c"], gamma=gamma, random_state=setting.seed)
        return calibrated(machine, setting.seed)

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """See Trainer."""
        return emit_sklearn(graph, estimator, features, task)


def calibrated(machine: Any, seed: int) -> Any:
    """Probabilities for a margin: sigmoids fitted on three folds, the machine on all rows."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    return CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
