"""What a model is worth on rows it never saw, as data: metrics, confusion, curves, residuals."""

from typing import Any, Final

import numpy as np

from tapster.contract.inference import Array
from tapster.training import metrics
from tapster.training.targets import Target, spelled

POINTS: Final = 200
CURVES: Final = 20
BINS: Final = 10


def evaluate(target: Target, values: Array, scores: Array, seed: int) -> dict[str, Any]:
    """Metrics with intervals, and the task's figures, for held-out rows.

    `scores` are probabilities [n, classes] or predictions [n].
    """
    report: dict[str, Any] = {"metrics": metrics.report(target.task, values, scores, seed)}
    if not target.classes:
        return report | {"residuals": residuals(values, scores)}
    labels = [spelled(label) for label in target.classes]
    report["confusion"] = {"labels": labels, "counts": confusion(values, scores)}
    shown = [1] if len(labels) == 2 else range(min(len(labels), CURVES))
    for name, curve in (("roc", roc), ("precision_recall", precision_recall)):
        drawn = {labels[c]: curve(values == c, scores[:, c]) for c in shown}
        report[name] = {label: points for label, points in drawn.items() if points}
    report["calibration"] = {labels[c]: calibration(values == c, scores[:, c]) for c in shown}
    return report


def confusion(values: Array, scores: Array) -> list[list[int]]:
    """Counts [true class][predicted class]."""
    from sklearn.metrics import confusion_matrix

    classes = np.arange(scores.shape[1])
    counts = confusion_matrix(values, scores.argmax(axis=1), labels=classes)
    return [[int(count) for count in row] for row in counts]


def roc(positive: Array, score: Array) -> dict[str, list[float]]:
    """False and true positive rates, thinned to 200 points; empty where a side has no row."""
    from sklearn.metrics import roc_curve

    if positive.all() or not positive.any():
        return {}
    false, true, _ = roc_curve(positive, score)
    return {"fpr": _thin(false), "tpr": _thin(true)}


def precision_recall(positive: Array, score: Array) -> dict[str, list[float]]:
    """Precision and recall, thinned to 200 points; empty where there is no positive row."""
    from sklearn.metrics import precision_recall_curve

    if not positive.any():
        return {}
    precision, recall, _ = precision_recall_curve(positive, score)
    return {"precision": _thin(precision), "recall": _thin(recall)}


def calibration(positive: Array, score: Array) -> list[dict[str, float]]:
    """Mean score, share of positives and rows for each tenth of the scores that has rows."""
    tenth = np.minimum((np.asarray(score, np.float64) * BINS).astype(int), BINS - 1)
    return [
        {
            "score": float(score[tenth == t].mean()),
            "share": float(positive[tenth == t].mean()),
            "rows": int((tenth == t).sum()),
        }
        for t in range(BINS)
        if (tenth == t).any()
    ]


def residuals(values: Array, scores: Array) -> dict[str, Any]:
    """Truth minus prediction: quantiles, and up to 200 points of (prediction, residual)."""
    rest = values - scores
    levels = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]
    step = max(1, len(rest) // POINTS)
    return {
        "quantiles": {
            str(q): float(v) for q, v in zip(levels, np.quantile(rest, levels), strict=True)
        },
        "predicted": [float(v) for v in scores[::step][:POINTS]],
        "residual": [float(v) for v in rest[::step][:POINTS]],
    }


def _thin(curve: Array) -> list[float]:
    if len(curve) <= POINTS:
        return [float(v) for v in curve]
    return [float(v) for v in curve[np.linspace(0, len(curve) - 1, POINTS).astype(int)]]
