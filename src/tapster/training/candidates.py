"""Candidates and what cross-validation says of them."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapster.training import metrics, trainers
from tapster.training.features import Features, Floats, Index
from tapster.training.models import Problem, ask, fit_matrix
from tapster.training.preprocessing import Preprocessor
from tapster.training.targets import Target
from tapster.training.trainers import Needs
from tapster.training.vocabulary import gain

Fold = tuple[Index, Index]
CACHED_BYTES = 256 << 20


@dataclass
class Candidate:
    """An algorithm with parameters. `scores` are one a fold, in the metric's own unit.

    `state` is waiting, scored, pruned (clearly worse, so stopped), skipped or failed. A finalist
    was scored on further folds and stands above those that were not.
    """

    algorithm: str
    parameters: dict[str, Any]
    scores: list[float] = field(default_factory=list)
    state: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    finalist: bool = False

    @property
    def value(self) -> float:
        """The mean over folds; NaN before the first."""
        return float(np.mean(self.scores)) if self.scores else float("nan")

    def row(self, metric: str) -> dict[str, Any]:
        """The leaderboard's line, without times: equal runs give equal lines."""
        mean = self.value
        spread = float(np.std(self.scores)) if len(self.scores) > 1 else np.nan
        return {
            "algorithm": self.algorithm,
            "parameters": self.parameters,
            "metric": metric,
            "value": mean if np.isfinite(mean) else None,
            "std": spread if np.isfinite(spread) else None,
            "folds": len(self.scores),
            "state": self.state,
            "reason": self.reason,
        }


class Judge:
    """Fits candidates on the training rows of folds and scores them on the others."""

    def __init__(
        self,
        features: Features,
        target: Target,
        folds: list[Fold],
        metric: str,
        problem: Problem,
    ) -> None:
        self.features, self.target, self.folds = features, target, folds
        self.metric, self.problem = metric, problem
        self._prepared: dict[tuple[int, Needs], tuple[Preprocessor, Floats, Floats]] = {}
        self._bytes = 0

    def score(self, candidate: Candidate, fold: int) -> float:
        """Score one fold and write it down; more is better (`vocabulary.gain`).

        Raises whatever the estimator raises.
        """
        started = time.monotonic()
        trainer = trainers.get(candidate.algorithm)
        preprocessor, train, valid = self._prepare(fold, trainer.needs)
        (rows, others), values = self.folds[fold], self.target.values
        model = fit_matrix(
            candidate.algorithm,
            candidate.parameters,
            self.problem,
            (preprocessor, train),
            values[rows],
        )
        number = metrics.value(self.metric, values[others], ask(model, valid))
        candidate.scores.append(number)
        candidate.seconds += time.monotonic() - started
        if not np.isfinite(number):
            raise ValueError(f"{self.metric} is not defined on fold {fold + 1}")
        return gain(self.metric, number)

    def defined(self, fold: int) -> bool:
        """Whether the metric has a value on the fold's rows (r2 wants a target that varies)."""
        values, classes = self.target.values[self.folds[fold][1]], len(self.target.classes)
        alike = np.full((len(values), classes), 1 / classes) if classes else np.zeros(len(values))
        return bool(np.isfinite(metrics.value(self.metric, values, alike)))

    def gain(self, candidate: Candidate) -> float:
        """The candidate's mean such that more is better; -inf before its first fold."""
        mean = candidate.value
        return gain(self.metric, mean) if np.isfinite(mean) else -np.inf

    def _prepare(self, fold: int, needs: Needs) -> tuple[Preprocessor, Floats, Floats]:
        key = (fold, needs)
        if key in self._prepared:
            return self._prepared[key]
        rows, others = self.folds[fold]
        preprocessor = Preprocessor(needs, self.problem.seed)
        train = preprocessor.fit_transform(
            self.features.take(rows), self.target.values[rows], len(self.target.classes)
        )
        ready = preprocessor, train, preprocessor.transform(self.features.take(others))
        size = train.nbytes + ready[2].nbytes
        if self._bytes + size <= CACHED_BYTES:
            self._bytes += size
            self._prepared[key] = ready
        return ready


def folds_of(target: Target, rows: Index, count: int, seed: int) -> list[Fold]:
    """Cross-validation folds over `rows`, each class in every fold."""
    from sklearn.model_selection import KFold, StratifiedKFold

    make = StratifiedKFold if target.classes else KFold
    splits = make(count, shuffle=True, random_state=seed).split(rows, target.values[rows])
    return [(rows[train], rows[valid]) for train, valid in splits]
