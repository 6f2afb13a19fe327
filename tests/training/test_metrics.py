"""Our metrics are scikit-learn's, for every resample at once."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tapster.training import metrics
from tapster.training.vocabulary import metrics_of, spelled


def sample(classes: int, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    # Sixty-fourths: exact in float32, so ties are ties on both sides.
    counts = generator.multinomial(64 - classes, np.full(classes, 1 / classes), size=rows) + 1
    return generator.integers(0, classes, rows), (counts / 64).astype(np.float32)


def of_sklearn(target: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    guess, classes = scores.argmax(axis=1), scores.shape[1]
    wide = scores.astype(np.float64)
    single = wide[:, 1] if classes == 2 else wide
    found = {
        "accuracy": reference.accuracy_score(target, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(target, guess),
        "log_loss": reference.log_loss(target, wide, labels=range(classes)),
        "roc_auc": reference.roc_auc_score(target, single, multi_class="ovr"),
        "brier": reference.brier_score_loss(target, single, labels=list(range(classes))),
    }
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        if classes == 2:
            found[name] = score(target, guess)
        for how in ("macro", "weighted"):
            found[f"{name}_{how}"] = score(target, guess, average=how, zero_division=0)
    return found


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_metrics_are_those_of_scikit_learn(classes: int) -> None:
    target, scores = sample(classes)
    task = "binary" if classes == 2 else "multiclass"
    expected = of_sklearn(target, scores)
    assert set(expected) == set(metrics_of(task))
    for name, number in expected.items():
        assert metrics.value(name, target, scores) == pytest.approx(number, abs=1e-6), name


@pytest.mark.parametrize("offset", [5.0, 1.7e9, 1.7e12])
def test_regression_metrics_are_those_of_scikit_learn(offset: float) -> None:
    generator = np.random.default_rng(0)
    # Far from zero: a time in seconds or milliseconds, its spread in minutes.
    spread = max(2.0, offset * 1e-6)
    target = generator.normal(offset, spread, 200)
    scores = (target + generator.normal(0, spread / 2, 200)).astype(np.float32)
    expected = {
        "mae": reference.mean_absolute_error(target, scores),
        "rmse": reference.root_mean_squared_error(target, scores),
        "r2": reference.r2_score(target, scores),
        "mape": reference.mean_absolute_percentage_error(target, scores),
    }
    for name, number in expected.items():
        assert metrics.value(name, target, scores) == pytest.approx(number, rel=1e-9), name


def test_weights_count_rows_as_repeating_them_would() -> None:
    target, scores = sample(3, 50)
    counts = np.random.default_rng(1).integers(0, 4, 50)
    names = list(metrics_of("multiclass"))
    weighted = metrics.weighted(names, target, scores, counts[None].astype(np.float64))
    rows = np.repeat(np.arange(50), counts)
    for name in names:
        plain = metrics.value(name, target[rows], scores[rows])
        assert weighted[name][0] == pytest.approx(plain, abs=1e-9), name


def test_intervals_hold_the_value_and_repeat() -> None:
    target, scores = sample(2)
    report = metrics.report("binary", target, scores, seed=5)
    assert report == metrics.report("binary", target, scores, seed=5)
    for entry in report.values():
        low, value, high = entry["low"], entry["value"], entry["high"]
        assert low is not None
        assert value is not None
        assert high is not None
        assert low < value < high


def test_what_is_not_defined_is_none() -> None:
    target, scores = np.zeros(20, np.int64), sample(2, 20)[1]
    assert metrics.report("binary", target, scores, 0)["roc_auc"] == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_an_interval_of_the_mean_has_the_width_that_theory_gives() -> None:
    generator = np.random.default_rng(2)
    target, scores = generator.normal(0, 1, 400), np.zeros(400, np.float32)
    entry = metrics.report("regression", target, scores, 0)["mae"]
    assert entry["low"] is not None
    assert entry["high"] is not None
    expected = 2 * 1.96 * np.abs(target).std() / 20
    assert entry["high"] - entry["low"] == pytest.approx(expected, rel=0.1)


def test_names_are_read_however_people_spell_them() -> None:
    assert spelled("ROC-AUC") == spelled("roc auc") == "roc_auc"
