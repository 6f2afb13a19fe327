"""Metrics with percentile bootstrap intervals, computed for many resamples of the rows at once.

Every metric takes `weights` float64 [b, n] (how often each row counts; ones for the plain value)
and gives [b] values; a value that is not defined is NaN. With ones they equal
`sklearn.metrics`; the tests compare.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tapster.contract.inference import Array
from tapster.training.vocabulary import metrics_of

Doubles = npt.NDArray[np.float64]

SMALL: Final = 2000


def value(metric: str, target: Array, scores: Array) -> float:
    """One metric; scores are probabilities [n, classes], or predictions [n]."""
    ones = np.ones((1, len(target)))
    return float(weighted([metric], target, scores, ones)[metric][0])


def report(
    task: str, target: Array, scores: Array, seed: int
) -> dict[str, dict[str, float | None]]:
    """Each metric of a task: value, and the ends of its 95 % percentile bootstrap interval.

    1000 resamples of the rows, 200 above 2000 rows. Source: Efron and Tibshirani 1993, chapter 13.
    """
    names, rows = list(metrics_of(task)), len(target)
    plain = weighted(names, target, scores, np.ones((1, rows)))
    generator = np.random.default_rng(seed)
    samples: dict[str, list[Doubles]] = {name: [] for name in names}
    for _ in range(20 if rows <= SMALL else 10):
        size = 50 if rows <= SMALL else 20
        drawn = generator.multinomial(rows, np.full(rows, 1.0 / rows), size=size)
        for name, values in weighted(names, target, scores, drawn.astype(np.float64)).items():
            samples[name].append(values)
    return {
        name: {"value": _json(plain[name][0]), **_interval(np.concatenate(samples[name]))}
        for name in names
    }


def _interval(values: Doubles) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"low": None, "high": None}
    low, high = np.percentile(known, [2.5, 97.5])
    return {"low": _json(low), "high": _json(high)}


def _json(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def weighted(
    names: list[str], target: Array, scores: Array, weights: Doubles
) -> dict[str, Doubles]:
    """The named metrics for every row of `weights`."""
    if scores.ndim == 1:
        return {name: _REGRESSION[name](target, scores, weights) for name in names}
    with np.errstate(divide="ignore", invalid="ignore"):
        counted = _counts(target, scores, weights)
        rest = {"roc_auc": roc_auc, "log_loss": log_loss, "brier": brier}
        return {
            name: rest[name](target, scores, weights) if name in rest else counted[name]
            for name in names
        }


def _counts(target: Array, scores: Array, weights: Doubles) -> dict[str, Doubles]:
    """Everything that follows from the confusion matrix. Undefined ratios are 0."""
    classes = scores.shape[1]
    guess = scores.argmax(axis=1)
    hit = weights * (guess == target)
    truth, guessed, hits = (
        _by_class(w, codes, classes)
        for w, codes in ((weights, target), (weights, guess), (hit, target))
    )
    precision, recall = _ratio(hits, guessed), _ratio(hits, truth)
    f1 = _ratio(2 * hits, guessed + truth)
    # As scikit-learn: classes that occur in neither truth nor guess do not count in averages.
    present = (truth + guessed) > 0
    known = truth > 0
    total = weights.sum(axis=1)
    results = {
        "accuracy": hit.sum(axis=1) / total,
        "balanced_accuracy": np.where(known, recall, 0).sum(axis=1) / known.sum(axis=1),
    }
    for name, ratio in (("precision", precision), ("recall", recall), ("f1", f1)):
        results[name] = ratio[:, -1]
        results[f"{name}_macro"] = np.where(present, ratio, 0).sum(axis=1) / present.sum(axis=1)
        results[f"{name}_weighted"] = (ratio * truth).sum(axis=1) / total
    return results


def _by_class(weights: Doubles, codes: Array, classes: int) -> Doubles:
    member = np.eye(classes)[codes]
    sums: Doubles = weights @ member
    return sums


def _ratio(above: Doubles, below: Doubles) -> Doubles:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def log_loss(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Mean negative log of the true class's probability, probabilities clipped at 1e-7."""
    wide = np.asarray(scores, np.float64)
    wide = wide / wide.sum(axis=1, keepdims=True)
    tiny = float(np.finfo(np.float32).eps)
    loss = -np.log(np.clip(wide[np.arange(len(target)), target], tiny, 1 - tiny))
    return _mean(loss, weights)


def brier(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Mean squared distance of the probabilities from the truth; halved for two classes."""
    wide = np.asarray(scores, np.float64)
    square = ((wide - np.eye(wide.shape[1])[target]) ** 2).sum(axis=1)
    return _mean(square / 2 if wide.shape[1] == 2 else square, weights)


def roc_auc(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Area under the ROC curve; with more classes the mean over one against the rest.

    NaN where a class, or its rest, has no row.
    """
    if scores.shape[1] == 2:
        return _auc(target == 1, scores[:, 1], weights)
    parts = [_auc(target == c, scores[:, c], weights) for c in range(scores.shape[1])]
    mean: Doubles = np.mean(parts, axis=0)
    return mean


def _auc(positive: npt.NDArray[np.bool_], score: Array, weights: Doubles) -> Doubles:
    """Share of pairs in the right order, ties counting half (Mann and Whitney 1947)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sorted_weights, yes = weights[:, order], positive[order]
    up = np.add.reduceat(sorted_weights * yes, starts, axis=1)
    down = np.add.reduceat(sorted_weights * ~yes, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    wins = (up * (below + 0.5 * down)).sum(axis=1)
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), np.nan)


def _mean(loss: Doubles, weights: Doubles) -> Doubles:
    mean: Doubles = (weights @ loss) / weights.sum(axis=1)
    return mean


def mae(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Mean absolute error, in the target's unit."""
    return _mean(np.abs(target - scores), weights)


def rmse(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Root of the mean squared error, in the target's unit."""
    return np.sqrt(_mean((target - scores) ** 2, weights))


def r2(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """1 - squared error / squared error of the mean; NaN where the target does not vary."""
    # The difference of two squares keeps no digit of a spread that is small beside the mean.
    centred = target - target.mean()
    mean = _mean(centred, weights)
    around = _mean(centred**2, weights) - mean**2
    error = _mean((target - scores) ** 2, weights)
    fine = around > 1e-12 * np.maximum(mean**2, 1e-300)
    return np.where(fine, 1 - error / np.where(fine, around, 1), np.nan)


def mape(target: Array, scores: Array, weights: Doubles) -> Doubles:
    """Mean absolute error as a share of |target| (of 2e-16 where that is 0, as scikit-learn)."""
    floor = np.maximum(np.abs(target), np.finfo(np.float64).eps)
    return _mean(np.abs(target - scores) / floor, weights)


_REGRESSION: Final[dict[str, Callable[[Any, Any, Doubles], Doubles]]] = {
    "mae": mae,
    "rmse": rmse,
    "r2": r2,
    "mape": mape,
}
