"""The job: from a table to a sealed package that answers as its trainer does."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.runtimes import parity
from tapster.runtimes.onnx import OnnxRuntime
from tapster.runtimes.package import Package, open_package
from tapster.runtimes.rows import encode_rows
from tapster.testing import mixed_table
from tapster.training import comparing, conversion, models
from tapster.training.features import Features
from tapster.training.models import Model
from tests.training.conftest import Trained, Workshop


def line(rows: int) -> pl.DataFrame:
    """`x` tells `target`, and `text` nothing."""
    x = np.random.default_rng(0).normal(size=rows)
    labels = np.where(x > 0, "yes", "no").tolist()
    return pl.DataFrame({"x": x, "text": ["u", "v"] * (rows // 2), "target": labels})


def opened(trained: Trained) -> Package:
    return open_package(trained.package, trained.result["digest"])


def answers(package: Package, rows: list[dict[str, Any]]) -> list[Any]:
    model = OnnxRuntime().load(package.manifest, package.files, threads=1)
    return model.run(encode_rows(package.manifest.signature, rows), ["prediction"])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_package_replays_its_vectors_and_takes_rows(workshop: Workshop, task: Any) -> None:
    algorithm = "ridge" if task == "regression" else "logistic"
    trained = workshop.train(mixed_table(300, 1, task), algorithm=algorithm, seed=4)
    package = opened(trained)
    model = OnnxRuntime().load(package.manifest, package.files, threads=1)
    replayed = parity.replay(model, package.files["parity.msgpack"], package.manifest.tolerance)
    assert replayed > 64
    assert OnnxRuntime().inline(package.manifest, package.files)
    row = {"age": None, "income": 1e4, "visits": 3, "plan": "never seen", "home city": None,
           "channel": "web", "member": True, "joined": "2020-02-29",
           "last seen": "2023-05-01T10:00:00"}  # fmt: skip
    (prediction,) = answers(package, [row, {**row, "member": None, "joined": None}])
    assert prediction.shape == (2,)
    assert package.manifest.task == task
    assert package.manifest.lineage.algorithm == algorithm
    assert package.manifest.lineage.seed == 4
    assert package.manifest.metrics == trained.result["metrics"]


def test_the_evaluation_is_data(workshop: Workshop) -> None:
    trained = workshop.train(mixed_table(400, 2, "binary"), algorithm="logistic")
    report = json.loads((trained.package / "evaluation.json").read_text())
    assert report["rows"] == {"train": 320, "test": 80}
    assert np.sum(report["confusion"]["counts"]) == 80
    assert report["confusion"]["labels"] == ["leaves", "stays"]
    assert set(report["roc"]) == set(report["precision_recall"]) == {"stays"}
    assert sum(tenth["rows"] for tenth in report["calibration"]["stays"]) == 80
    assert [row["algorithm"] for row in report["leaderboard"]] == ["logistic", "naive"]
    assert report["metrics"]["log_loss"]["value"] < report["baseline"]["log_loss"]["value"]


def test_residuals_of_a_regression_are_kept(workshop: Workshop) -> None:
    trained = workshop.train(mixed_table(200, 2, "regression"), algorithm="ols")
    report = json.loads((trained.package / "evaluation.json").read_text())
    assert len(report["residuals"]["residual"]) == 40
    assert set(report["metrics"]) == {"mae", "rmse", "r2", "mape"}


def test_the_same_seed_gives_the_same_package(workshop: Workshop) -> None:
    frame = mixed_table(250, 3, "multiclass")

    def digests(trained: Trained) -> dict[str, str]:
        names = ("model.onnx", "parity.msgpack", "evaluation.json")
        files = {name: (trained.package / name).read_bytes() for name in names}
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    options: dict[str, Any] = {"algorithm": "logistic", "search": "tpe", "trials": 3, "cv": 3}
    first, second, other = (workshop.train(frame, **options, seed=seed) for seed in (1, 1, 2))
    assert digests(first) == digests(second)
    assert digests(first)["model.onnx"] != digests(other)["model.onnx"]


def test_auto_compares_and_the_best_is_promoted(workshop: Workshop) -> None:
    trained = workshop.train(mixed_table(200, 5, "regression"), time_limit=4.0, cv=3)
    board = trained.result["leaderboard"]
    scored = [row for row in board if row["state"] == "scored"]
    assert trained.result["algorithm"] == scored[0]["algorithm"] != "naive"
    assert {row["algorithm"] for row in board} >= {"naive", "ridge", "lightgbm", "mlp", "knn"}
    assert [row["rank"] for row in board] == list(range(1, len(board) + 1))


def test_a_sample_to_search_on_has_every_class_in_every_fold(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "SEARCHED_ROWS", 300)
    x = np.random.default_rng(0).normal(size=3000)
    table = pl.DataFrame(
        {"x": x, "target": ["rare"] * 8 + ["no" if v > 0 else "yes" for v in x[8:]]}
    )
    trained = workshop.train(table, algorithm="logistic", metric="roc_auc")
    assert [row["folds"] for row in trained.result["leaderboard"]] == [5, 5]
    assert "rows to train on; the winner" in " ".join(trained.result["warnings"])


def test_a_recorded_split_is_kept_to(workshop: Workshop) -> None:
    frame = line(300)
    parts = [0, 0, 0, 0, 1, 2] * 50
    trained = workshop.train(frame, parts=parts, algorithm="logistic")
    assert trained.result["rows"] == {"train": 250, "test": 50}
    assert trained.result["metrics"]["accuracy"]["value"] > 0.9
    assert trained.result["leaderboard"][0]["folds"] == 1


def test_a_split_without_rows_to_test_on_is_refused(workshop: Workshop) -> None:
    with pytest.raises(TapsterError, match="0 rows to test on"):
        workshop.train(line(50), parts=[0] * 50, algorithm="logistic")


def test_what_cannot_be_learnt_is_not_promoted(workshop: Workshop) -> None:
    generator = np.random.default_rng(0)
    frame = pl.DataFrame({"x": generator.normal(size=200), "target": generator.normal(size=200)})
    error = workshop.refusal(frame, algorithm="knn")
    assert error.code == "unprocessable"
    assert "no model beats the naive baseline" in error.message
    assert "--algorithm naive" in error.hint
    by_r2 = workshop.refusal(frame, algorithm="knn", metric="r2")
    assert "naive baseline in r2: it has -0." in by_r2.message
    assert workshop.train(frame, algorithm="naive").result["algorithm"] == "naive"


def test_rows_are_cleaned_by_a_recipe_but_values_are_not(workshop: Workshop) -> None:
    twice = pl.concat([line(200), line(200).head(50)])
    recipe = {"steps": [{"op": "drop_duplicates"}]}
    trained = workshop.train(twice, algorithm="logistic", recipe=recipe)
    assert sum(trained.result["rows"].values()) == 200
    assert any("dropped 50 of 250 rows" in text for text in trained.result["warnings"])
    scaled = {"steps": [{"op": "scale", "columns": ["x"]}]}
    error = workshop.refusal(twice, algorithm="logistic", recipe=scaled)
    assert "changes values" in error.message
    assert "tapster data clean" in error.hint


def test_a_rejected_candidate_makes_way_for_the_next(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = conversion.convert

    def wrong_for_ols(model: Model, *rest: Any) -> bytes:
        """What a converter that goes silently wrong leaves: the graph of another model."""
        if model.algorithm != "ols":
            return convert(model, *rest)
        return convert(dataclasses.replace(model, shift=model.shift + 1.0), *rest)

    monkeypatch.setattr(conversion, "convert", wrong_for_ols)
    frame = pl.DataFrame({"x": np.arange(80) / 10.0}).with_columns(target=pl.col("x") * 3 + 0.25)
    trained = workshop.train(frame, trials=0, cv=3)
    assert trained.result["leaderboard"][0]["algorithm"] == "ols"
    (rejected,) = trained.result["rejected"]
    assert rejected["algorithm"] == "ols"
    assert "row 0, prediction: expected" in rejected["reason"]
    assert trained.result["algorithm"] == trained.result["leaderboard"][1]["algorithm"]
    assert any("ols was rejected" in text for text in trained.result["warnings"])
    error = workshop.refusal(frame, algorithm="ols")
    assert "row 0, prediction: expected" in error.message


def test_a_conversion_has_a_time_limit(tmp_path: Path) -> None:
    model = fitted()
    with pytest.raises(TapsterError, match=r"took longer than 0\.01 s"):
        conversion.convert(model, 1, 0, tmp_path / "slow", 0.01)


def test_a_conversion_that_fails_says_why(tmp_path: Path) -> None:
    model = fitted()
    model.estimator = object()
    with pytest.raises(TapsterError, match="logistic could not be converted to ONNX: Attribute"):
        conversion.convert(model, 1, 0, tmp_path / "broken", 60)


def fitted() -> Model:
    numbers = np.arange(20, dtype=np.float32).reshape(-1, 1)
    rows = Features(numbers, np.empty((20, 0), object))
    problem = models.Problem("binary", ["a", "b"], 0, 1)
    target = (np.arange(20) > 9).astype(np.int64)
    return models.fit("logistic", {"c": 1.0, "penalty": "l2"}, problem, rows, target)
