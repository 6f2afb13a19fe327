"""Every algorithm, every task: trained on mixed data, written as ONNX, and asked the same."""

import numpy as np
import polars as pl
import pytest

from tapster.contract.manifest import Column
from tapster.runtimes.operators import vet
from tapster.testing import mixed_table
from tapster.training import features, goldens, models, targets, trainers
from tapster.training.features import Features
from tapster.training.models import Model, Problem
from tapster.training.search import grid_of, grid_points

EVERY = [
    (name, task)
    for name in trainers.names()
    for task in trainers.TASKS
    if task in trainers.get(name).tasks
]


def encoded(task: str, rows: int = 240) -> tuple[Features, targets.Target, list[Column]]:
    frame = mixed_table(rows, 3, task)  # type: ignore[arg-type]
    target = targets.read(frame["target"], task, [])
    columns = features.columns_of(frame.drop("target"), [])
    return features.encode(frame.drop("target"), columns, []), target, list(columns)


def trained(name: str, task: str, parameters: dict[str, object] | None = None) -> tuple[Model, ...]:
    rows, target, _ = encoded(task)
    chosen = trainers.get(name).defaults(task, len(rows)) if parameters is None else parameters
    problem = Problem(target.task, target.classes, 0, 1)
    return (models.fit(name, chosen, problem, rows, target.values),)


def differences(model: Model, task: str) -> list[object]:
    rows, target, columns = encoded(task)
    graph = models.to_onnx(model, rows.numeric.shape[1], rows.text.shape[1])
    signature = models.signature_of(model, tuple(columns))
    spread = 0.0 if target.classes else float(target.values.std())
    tolerance = goldens.tolerance_of(model, spread)
    strangers = encoded(task, 400)[0]
    assert vet(graph) == []
    return [
        mismatch
        for asked in (goldens.golden_rows(rows, 1), strangers)
        for mismatch in goldens.check(model, graph, signature, tolerance, asked)
    ]


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_onnx_answers_as_the_trainer_does(name: str, task: str) -> None:
    (model,) = trained(name, task)
    assert differences(model, task) == []


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [
        ("logistic", "binary", {"c": 0.5, "penalty": "l1"}),
        ("logistic", "multiclass", {"c": 0.5, "penalty": "l1"}),
        ("knn", "binary", {"neighbours": 5, "weights": "uniform"}),
        ("knn", "regression", {"neighbours": 5, "weights": "uniform"}),
        ("mlp", "multiclass", {"layers": "64-64", "optimizer": "sgd", "alpha": 0.1, "rate": 0.003}),
    ],
)
def test_other_parameters_convert_too(name: str, task: str, parameters: dict[str, object]) -> None:
    (model,) = trained(name, task, parameters)
    assert differences(model, task) == []


@pytest.mark.parametrize("name", trainers.names())
def test_defaults_have_the_parameters_that_a_search_draws(name: str) -> None:
    trainer = trainers.get(name)
    for task in trainer.tasks:
        defaults, values = trainer.defaults(task, 500), grid_of(name, task)
        assert set(values) <= set(defaults)
        first = next(grid_points(name, task))
        assert set(first) == set(values)
        assert trainer.name == name


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
