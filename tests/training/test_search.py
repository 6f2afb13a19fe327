"""Grid, random and TPE; pruning; a fixed number of trials; honest leaderboards."""

import json
from typing import Any

import numpy as np
import pytest

from tapster.training.candidates import Judge, folds_of
from tapster.training.features import Features
from tapster.training.models import Problem
from tapster.training.search import Plan, Search, grid_points
from tapster.training.targets import Target


def search(algorithms: list[str], **plan: Any) -> Search:
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(120, 4)).astype(np.float32)
    codes = (numbers[:, 0] + 0.5 * numbers[:, 1] + generator.normal(0, 0.5, 120) > 0).astype(int)
    target = Target("t", "binary", ["no", "yes"], codes)
    problem = Problem("binary", ["no", "yes"], 0, 1)
    features = Features(numbers, np.empty((120, 0), object))
    folds = folds_of(target, np.arange(120), 3, 0)
    judge = Judge(features, target, folds, "log_loss", problem)
    reports: list[tuple[float, str]] = []

    def report(share: float, message: str, board: list[dict[str, Any]]) -> None:
        reports.append((share, message))

    made = Search(judge, Plan(algorithms, **plan), report)
    made.run()
    shares = [share for share, _ in reports]
    assert shares == sorted(shares)
    return made


def test_a_grid_is_walked_from_end_to_end() -> None:
    made = search(["naive", "logistic"], search="grid", seconds=60)
    tried = [c.parameters for c in made.candidates if c.algorithm == "logistic"][1:]
    assert tried == list(grid_points("logistic", "binary"))
    assert made.ranking()[0].algorithm == "logistic"


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_trials_are_counted_and_repeat(kind: str) -> None:
    first, second = (search(["naive", "logistic"], search=kind, trials=8) for _ in range(2))
    rows = [[c.row("log_loss") for c in made.candidates] for made in (first, second)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 10


def test_hopeless_trials_are_stopped_early() -> None:
    made = search(["logistic"], search="random", trials=20)
    pruned = [c for c in made.candidates if c.state == "pruned"]
    assert pruned
    assert all(len(c.scores) < 3 for c in pruned)
    assert not {id(c) for c in pruned} & {id(c) for c in made.ranking()}


def test_a_candidate_that_fails_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapster.training.trainers.linear import Logistic

    def build(*_: Any) -> Any:
        raise ValueError("singular")

    monkeypatch.setattr(Logistic, "build", build)
    made = search(["naive", "logistic", "knn"], trials=0)
    states = {row["algorithm"]: (row["state"], row["reason"]) for row in made.leaderboard()}
    assert states["logistic"] == ("failed", "ValueError: singular")
    assert states["knn"][0] == "scored"


def test_a_fold_without_a_score_leaves_a_leaderboard_that_is_json() -> None:
    numbers = np.random.default_rng(0).normal(size=(60, 1)).astype(np.float32)
    # The second fold to judge by has one value only: r2 is not defined there.
    target = Target("t", "regression", [], np.r_[numbers[:20, 0], np.zeros(20), numbers[40:, 0]])
    rows = [np.arange(start, start + 20) for start in (0, 20, 40)]
    folds = [(np.setdiff1d(np.arange(60), valid), valid) for valid in rows]
    features = Features(numbers, np.empty((60, 0), object))
    judge = Judge(features, target, folds, "r2", Problem("regression", [], 0, 1))
    boards: list[list[dict[str, Any]]] = []
    made = Search(judge, Plan(["naive", "ridge"], trials=0), lambda *said: boards.append(said[2]))
    made.run()
    failed = json.loads(json.dumps([*boards, made.leaderboard()], allow_nan=False))[-1]
    assert [row["reason"] for row in failed] == ["ValueError: r2 is not defined on fold 2"] * 2


def test_a_further_fold_without_a_score_does_not_cost_the_best_their_place() -> None:
    numbers = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    numbers[:20] = 1.0
    target = Target("t", "regression", [], numbers.sum(axis=1).astype(np.float64))
    features = Features(numbers, np.empty((60, 0), object))
    problem, rows = Problem("regression", [], 0, 1), np.arange(60)
    alike = [(rows[20:], rows[:20]), (rows[::2], rows[1::2])]
    first, more = (Judge(features, target, folds, "r2", problem) for folds in (alike[1:], alike))
    names = ["naive", "ridge", "ols", "lasso", "elastic-net", "knn"]
    made = Search(first, Plan(names, trials=0), lambda *_: None)
    made.run()
    before = made.ranking()
    made.look_again(more)
    assert [c.state for c in before] == ["scored"] * len(before)
    assert [len(c.scores) for c in before[:4]] == [2] * 4
    assert made.ranking()[0].algorithm == before[0].algorithm == "ols"


def test_time_that_is_spent_ends_the_screening_but_something_is_scored() -> None:
    made = search(["naive", "logistic", "mlp", "xgboost"], seconds=0.001)
    states = {row["algorithm"]: row["state"] for row in made.leaderboard()}
    assert states == {
        "logistic": "scored", "naive": "scored", "mlp": "skipped", "xgboost": "skipped",
    }  # fmt: skip


def test_the_best_are_compared_again_and_stand_first() -> None:
    made = search(["naive", "logistic", "knn", "linear-svm"], trials=6)
    judge = made.judge
    more = folds_of(judge.target, np.arange(120), 3, 1)
    again = Judge(judge.features, judge.target, more, "log_loss", judge.problem)
    made.look_again(again)
    finalists = [c for c in made.candidates if c.finalist]
    assert {len(c.scores) for c in finalists} == {6}
    assert made.ranking()[: len(finalists)] == sorted(finalists, key=lambda c: c.value)
