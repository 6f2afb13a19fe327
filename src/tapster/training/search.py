"""Which algorithm with which parameters: screening, then search, then a second look.

With a number of trials a search is the same every time; without one it lasts until its time is
spent, and how far it gets depends on the machine.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tapster.training import trainers
from tapster.training.candidates import Candidate, Judge
from tapster.training.trainers import Space
from tapster.training.vocabulary import gain

# Quick and dependable first: what is cut off by a short time limit is what comes last.
ORDER: Final = (
    "naive", "logistic", "ridge", "lightgbm", "rbf-svm", "random-forest", "mlp",
    "hist-gradient-boosting", "knn", "xgboost", "elastic-net", "linear-svm", "lasso", "ols",
)  # fmt: skip
NAIVE: Final = "naive"
SCREENING: Final = 0.5
SEARCHING: Final = 0.8
TUNED: Final = 3
FINALISTS: Final = 4

Report = Callable[[float, str, list[dict[str, Any]]], None]


@dataclass
class Plan:
    """How to search. `seconds` None is no limit; `trials` None is as many as the time allows."""

    algorithms: list[str]
    search: str = "tpe"
    trials: int | None = None
    seconds: float | None = None


@dataclass
class Search:
    """One search: candidates in the order they were tried, best first in `ranking`."""

    judge: Judge
    plan: Plan
    report: Report
    candidates: list[Candidate] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Screen every algorithm with its defaults, then tune the best ones."""
        ordered = sorted(self.plan.algorithms, key=_order)
        for number, name in enumerate(ordered):
            self._say(0.4 * number / len(ordered), f"trying {name}")
            self._screen(name)
        if self.plan.trials != 0:
            self._tune()

    def ranking(self) -> list[Candidate]:
        """Candidates that were scored on every fold they were given, best first.

        Finalists come first: the others' means are those of fewer folds, and luckier.
        """
        scored = [c for c in self.candidates if c.state == "scored"]
        return sorted(scored, key=lambda c: (c.finalist, self.judge.gain(c)), reverse=True)

    def leaderboard(self) -> list[dict[str, Any]]:
        """The best line of each algorithm, best first; then those that were not scored."""
        seen: dict[str, Candidate] = {}
        others = [c for c in self.candidates if c.state != "scored"]
        for candidate in [*self.ranking(), *others]:
            seen.setdefault(candidate.algorithm, candidate)
        rows = [candidate.row(self.judge.metric) for candidate in seen.values()]
        return [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]

    def look_again(self, more: Judge) -> None:
        """Score the finalists on further folds: the best of many trials is partly luck.

        Folds are walked in step, so that all finalists have the same ones when time runs out. One
        without a value of the metric says nothing of them.
        """
        finalists = self.ranking()[:FINALISTS]
        if len({id(c) for c in finalists}) < 2:
            return
        for fold in range(len(more.folds)):
            if self._spent(1.0) or self._slow(finalists):
                break
            if not more.defined(fold):
                continue
            self._say(0.8 + 0.1 * fold / len(more.folds), "comparing the best again")
            for candidate in finalists:
                candidate.finalist = True
                try:
                    more.score(candidate, fold)
                except Exception as error:
                    _fail(candidate, error)

    def _slow(self, finalists: list[Candidate]) -> bool:
        if self.plan.seconds is None:
            return False
        step = sum(c.seconds / max(1, len(c.scores)) for c in finalists)
        return time.monotonic() - self.started + step > self.plan.seconds

    def _screen(self, name: str) -> None:
        trainer, rows = trainers.get(name), len(self.judge.features)
        candidate = Candidate(name, trainer.defaults(self.judge.target.task, rows))
        self.candidates.append(candidate)
        scored = any(c.state == "scored" and c.algorithm != NAIVE for c in self.candidates)
        if scored and self._spent(SCREENING):
            candidate.state, candidate.reason = "skipped", "no time was left"
            return
        leader = max((c for c in self.candidates if c.state == "scored"), key=self.judge.gain,
                     default=None)  # fmt: skip
        self._score(candidate, lambda step: step >= 1 and self._behind(candidate, leader))

    def _score(self, candidate: Candidate, hopeless: Callable[[int], bool]) -> None:
        """Walk the folds until done, hopeless or failed."""
        try:
            for fold in range(len(self.judge.folds)):
                self.judge.score(candidate, fold)
                last = fold + 1 == len(self.judge.folds)
                if not last and hopeless(fold):
                    candidate.state, candidate.reason = "pruned", "clearly worse than the best"
                    return
                if not last and self._too_slow(candidate):
                    candidate.state, candidate.reason = "skipped", "too slow for the time limit"
                    return
            candidate.state = "scored"
        except Exception as error:
            _fail(candidate, error)

    def _behind(self, candidate: Candidate, leader: Candidate | None) -> bool:
        """Whether every fold so far is worse than the leader's worst."""
        if leader is None or NAIVE in {candidate.algorithm, leader.algorithm}:
            return False
        worst = min(gain(self.judge.metric, score) for score in leader.scores)
        return max(gain(self.judge.metric, score) for score in candidate.scores) < worst

    def _too_slow(self, candidate: Candidate) -> bool:
        """Whether the folds left would take the search past its time."""
        alone = not any(c.state == "scored" and c.algorithm != NAIVE for c in self.candidates)
        if self.plan.seconds is None or alone:
            return False
        left = len(self.judge.folds) - len(candidate.scores)
        needed = left * candidate.seconds / len(candidate.scores)
        return time.monotonic() - self.started + needed > SEARCHING * self.plan.seconds

    def _tune(self) -> None:
        best: dict[str, Candidate] = {}
        for candidate in self.ranking():
            best.setdefault(candidate.algorithm, candidate)
        task = self.judge.target.task
        names = [name for name in best if grid_of(name, task)][:TUNED]
        studies = [_Study(self, name, best[name].seconds) for name in names]
        done = 0
        for study in itertools.cycle(studies) if studies else ():
            if done == self.plan.trials or all(s.exhausted for s in studies):
                break
            if done and self._spent(SEARCHING):
                break
            if study.exhausted:
                continue
            share = done / self.plan.trials if self.plan.trials else self._share() / SEARCHING
            self._say(0.4 + 0.4 * min(1.0, share), f"searching {study.name}")
            study.step()
            done += 1

    def _share(self) -> float:
        limit = self.plan.seconds
        return 0.0 if limit is None else (time.monotonic() - self.started) / limit

    def _spent(self, share: float) -> bool:
        return self._share() >= share

    def _say(self, fraction: float, message: str) -> None:
        self.report(fraction, message, self.leaderboard())


class _Study:
    """Optuna's suggestions for one algorithm, pruned fold by fold against their median."""

    def __init__(self, search: Search, name: str, seconds: float) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.name, self.exhausted = search, name, False
        seed = search.judge.problem.seed
        sampler: Any = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
            if search.plan.search == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._grid: Iterator[dict[str, Any]] | None = None
        if search.plan.search == "grid":
            self._grid = grid_points(name, search.judge.target.task)

    def step(self) -> None:
        """One trial."""
        from optuna.trial import TrialState

        if self._grid is not None:
            point = next(self._grid, None)
            if point is None:
                self.exhausted = True
                return
            self.study.enqueue_trial(point)
        trial, judge = self.study.ask(), self.search.judge
        space = trainers.get(self.name).space(trial, judge.target.task)
        candidate = Candidate(self.name, space)
        self.search.candidates.append(candidate)

        def hopeless(fold: int) -> bool:
            trial.report(judge.gain(candidate), fold)
            return trial.should_prune()

        self.search._score(candidate, hopeless)
        if candidate.state == "scored":
            self.study.tell(trial, judge.gain(candidate))
        else:
            self.study.tell(trial, state=TrialState.PRUNED)


class _Grid:
    """A Space that writes down a few values of every parameter instead of drawing one."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Four values, ends included."""
        if log:
            ratio = (high / low) ** (1 / 3)
            self.values[name] = [low, low * ratio, low * ratio**2, high]
        else:
            self.values[name] = [low + (high - low) * share / 3 for share in range(4)]
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Three values, ends included."""
        middle = round(math.sqrt(low * high)) if log else (low + high) // 2
        self.values[name] = sorted({low, middle, high})
        return low

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """All of them."""
        self.values[name] = list(choices)
        return choices[0]


def grid_of(name: str, task: str) -> dict[str, list[Any]]:
    """The values a grid search tries for each parameter of an algorithm."""
    grid = _Grid()
    draw: Space = grid
    trainers.get(name).space(draw, task)
    return grid.values


def grid_points(name: str, task: str) -> Iterator[dict[str, Any]]:
    """Every combination of `grid_of`."""
    values = grid_of(name, task)
    for point in itertools.product(*values.values()):
        yield dict(zip(values, point, strict=True))


def _order(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _fail(candidate: Candidate, error: Exception) -> None:
    first = (str(error).splitlines() or [""])[0]
    candidate.state, candidate.reason = "failed", f"{type(error).__name__}: {first}"[:200]
