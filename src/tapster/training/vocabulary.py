"""The names of metrics: which task has which, and which way is better."""

from typing import Final

BINARY: Final = ("precision", "recall", "f1")
AVERAGED: Final = tuple(f"{m}_{how}" for m in BINARY for how in ("macro", "weighted"))
CLASSIFICATION: Final = (
    "accuracy",
    "balanced_accuracy",
    *BINARY,
    *AVERAGED,
    "roc_auc",
    "log_loss",
    "brier",
)
REGRESSION: Final = ("mae", "rmse", "r2", "mape")
DEFAULT_SECONDS: Final = 60.0
EVERY_METRIC: Final = (*CLASSIFICATION, *REGRESSION)
LOWER_IS_BETTER: Final = frozenset({"log_loss", "brier", "mae", "rmse", "mape"})
DEFAULT: Final = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task; precision, recall and F1 as such only where there are two classes."""
    if task == "regression":
        return REGRESSION
    return tuple(m for m in CLASSIFICATION if task == "binary" or m not in BINARY)


def spelled(name: str) -> str:
    """A metric's name as we spell it: `ROC-AUC` is `roc_auc`."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def gain(metric: str, number: float) -> float:
    """The number with its sign such that more is better."""
    return -number if metric in LOWER_IS_BETTER else number
