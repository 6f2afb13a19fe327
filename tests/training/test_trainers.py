"""Every algorithm, every task: trained on mixed data, written as ONNX, and asked the same."""

import tracemalloc

import numpy as np
import polars as pl
import pytest

from tapster.contract.manifest import Column, Tolerance
from tapster.testing import check_trainer
from tapster.training import features, goldens, metrics, models, trainers
from tapster.training.features import Features
from tapster.training.models import Problem
from tapster.training.preprocessing import Preprocessor
from tapster.training.trainers import Needs


@pytest.mark.parametrize("name", trainers.names())
def test_every_algorithm_keeps_the_contract(name: str) -> None:
    check_trainer(name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("logistic", {"c": 0.5, "penalty": "l1"}),
        ("knn", {"neighbours": 5, "weights": "uniform"}),
        ("mlp", {"layers": "64-64", "optimizer": "sgd", "alpha": 0.1, "rate": 0.003}),
    ],
)
def test_other_parameters_keep_it_too(name: str, parameters: dict[str, object]) -> None:
    check_trainer(name, parameters)


@pytest.mark.parametrize("different", [3, 100])
def test_one_long_text_costs_no_more_than_its_length(different: int) -> None:
    words = np.array([f"word {row % different}" for row in range(400)], object).reshape(-1, 1)
    words[0, 0] = "long" * 50_000
    rows = Features(np.zeros((400, 0), np.float32), words)
    target = np.arange(400) % 2
    Preprocessor(Needs(), 0).fit_transform(rows, target, 2)  # what is imported is not counted
    tracemalloc.start()
    try:
        Preprocessor(Needs(), 0).fit_transform(rows, target, 2)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unit", [1e-9, 1e-13, 1e-25, 1e20])
def test_the_unit_of_a_column_does_not_matter(unit: float) -> None:
    x = np.random.default_rng(0).normal(size=(200, 1))
    rows = Features((x * unit).astype(np.float32), np.empty((200, 0), object))
    model = models.fit("ridge", {"alpha": 1.0}, Problem("regression", [], 0, 1), rows, x[:, 0])
    assert np.abs(model.scores(rows) - x[:, 0]).max() < 0.1


@pytest.mark.parametrize("name", [n for n in trainers.names() if trainers.get(n).needs.target])
@pytest.mark.parametrize(("offset", "unit"), [(0.0, 1e-12), (1.7e9, 1e4)])
def test_the_unit_of_a_target_does_not_matter(name: str, offset: float, unit: float) -> None:
    generator = np.random.default_rng(0)
    rows = Features(generator.normal(size=(600, 3)).astype(np.float32), np.empty((600, 0), object))
    shape = rows.numeric[:, 0] + np.sin(2 * rows.numeric[:, 1])
    trainer, problem = trainers.get(name), Problem("regression", [], 0, 1)
    columns = tuple(Column(f"x{n}", "number", "numeric", n) for n in range(3))
    target = offset + unit * shape.astype(np.float64)
    model = models.fit(name, trainer.defaults("regression", 600), problem, rows, target)
    assert metrics.value("r2", target, model.scores(rows)) > 0.9
    signature = models.signature_of(model, columns)
    # As near as the answers' own float32 allows: at 1.7e9 it counts in steps of 128.
    near = Tolerance(atol=1e-4 * unit, rtol=1.2e-7)
    assert not goldens.check(model, models.to_onnx(model, 3, 0), signature, near, rows)


def test_a_model_of_one_useless_column_still_converts() -> None:
    rows = Features(np.full((20, 1), 7, np.float32), np.empty((20, 0), object))
    problem = Problem("binary", ["a", "b"], 0, 1)
    target = np.arange(20) % 2
    for name in ("naive", "logistic", "hist-gradient-boosting"):
        model = models.fit(name, trainers.get(name).defaults("binary", 20), problem, rows, target)
        column = features.columns_of(pl.DataFrame({"x": [7.0]}), [])
        signature = models.signature_of(model, column)
        graph = models.to_onnx(model, 1, 0)
        tolerance = goldens.tolerance_of(model, 0.0)
        asked = goldens.golden_rows(rows, 0)
        assert goldens.check(model, graph, signature, tolerance, asked) == []


@pytest.mark.parametrize(
    "classes",
    [["no", "yes 😀"], [3, 7], [False, True], [0.5, 1.5]],
    ids=["text", "whole", "boolean", "fraction"],
)
def test_labels_come_out_as_they_went_in(classes: list[object]) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(60, 2)).astype(np.float32)
    target = (numbers[:, 0] > 0).astype(np.int64)
    rows = Features(numbers, np.empty((60, 0), object))
    problem = Problem("binary", classes, 0, 1)  # type: ignore[arg-type]
    model = models.fit("logistic", {"c": 1.0, "penalty": "l2"}, problem, rows, target)
    column = features.columns_of(pl.DataFrame({"x": [1.0], "y": [1.0]}), [])
    signature = models.signature_of(model, column)
    graph = models.to_onnx(model, 2, 0)
    assert goldens.check(model, graph, signature, goldens.tolerance_of(model, 0), rows) == []
    answers = model.outputs(rows)["prediction"]
    assert (answers == np.array(classes, answers.dtype)[target]).mean() > 0.9
    assert signature.classes == tuple(classes)
