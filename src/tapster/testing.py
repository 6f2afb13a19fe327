"""For authors of plug-ins and tests: made-up data, and the contract of trainers."""

import json
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

Task = Literal["binary", "multiclass", "regression"]


def mixed_table(rows: int, seed: int, task: Task) -> pl.DataFrame:
    """A customer table of every kind of column, with missing values and rare categories.

    Numbers, a count, booleans, a date, a datetime, categories (few, many, rare) and a `target`
    that depends on all of them: text (binary, multiclass) or a float.
    """
    draw = np.random.default_rng(seed)
    age = draw.normal(45, 14, rows).clip(18, 95)
    income = np.exp(draw.normal(10, 0.6, rows))
    visits = draw.poisson(4, rows)
    plan = draw.choice(["basic", "plus", "pro"], rows, p=[0.5, 0.3, 0.2])
    city = np.array([f"city {n}" for n in (draw.zipf(1.6, rows) - 1).clip(0, 79)])
    channel = draw.choice(
        ["web", "shop", "phone", "carrier pigeon"], rows, p=[0.6, 0.3, 0.09, 0.01]
    )
    member = draw.random(rows) < 0.4
    joined = draw.integers(16_000, 19_500, rows)
    seen = 19_500 + draw.random(rows) * 200

    weight = {name: (hash_of(name) % 100) / 50 - 1 for name in np.unique(city)}
    signal = (
        0.9 * np.sin(age / 9)
        + 0.8 * (np.log(income) - 10)
        + 0.25 * (visits - 4) * np.where(member, 1.0, -0.4)
        + np.select([plan == "basic", plan == "plus"], [-0.7, 0.1], 0.9)
        + np.array([weight[name] for name in city])
        + (joined - 17_750) / 2500
    )
    signal = signal + draw.normal(0, 0.6, rows)
    frame = pl.DataFrame(
        {
            "age": age.round(1),
            "income": income.round(2),
            "visits": visits,
            "plan": plan.tolist(),
            "home city": city.tolist(),
            "channel": channel.tolist(),
            "member": member.tolist(),
            "joined": joined,
            "last seen": seen,
        }
    ).with_columns(
        pl.col("joined").cast(pl.Int32).cast(pl.Date),
        (pl.col("last seen") * 86_400_000).cast(pl.Int64).cast(pl.Datetime("ms")),
    )
    frame = frame.with_columns(
        pl.when(pl.Series(draw.random(rows) < share)).then(None).otherwise(pl.col(name)).alias(name)
        for name, share in (
            ("age", 0.1), ("income", 0.15), ("plan", 0.08), ("home city", 0.05),
            ("member", 0.05), ("joined", 0.05),
        )
    )  # fmt: skip
    return frame.with_columns(_target(signal, task))


def _target(signal: npt.NDArray[np.float64], task: Task) -> pl.Series:
    if task == "regression":
        return pl.Series("target", (100 + 20 * signal).round(3))
    if task == "binary":
        return pl.Series("target", np.where(signal > 0.5, "stays", "leaves").tolist())
    cuts = np.quantile(signal, [0.4, 0.75])
    return pl.Series(
        "target", np.array(["low", "middle", "high"])[np.digitize(signal, cuts)].tolist()
    )


def hash_of(text: str) -> int:
    """A small number that depends on the text alone (Python's own hash is salted)."""
    return sum((index + 1) * ord(letter) * 31 for index, letter in enumerate(text))


def check_trainer(name: str, parameters: dict[str, Any] | None = None) -> None:
    """Hold the installed trainer `name` to its contract, with its defaults or `parameters`.

    For each of its tasks, on mixed data: parameters are JSON and searched ones have defaults;
    the same seed fits the same model; ONNX answers as the estimator does, on rows with missing
    values and unseen categories, with vetted operators only. Raises AssertionError.
    """
    from tapster.training import trainers
    from tapster.training.search import grid_of

    trainer = trainers.get(name)
    assert trainer.name == name, f"{name} calls itself {trainer.name}"
    for task in sorted(trainer.tasks):
        defaults = trainer.defaults(task, 240)
        assert json.loads(json.dumps(defaults)) == defaults, f"{name}: defaults are not JSON"
        undefined = set(grid_of(name, task)) - set(defaults)
        assert not undefined, f"{name}: no default for {undefined}"
        _check_answers(name, task, defaults if parameters is None else parameters)


def _check_answers(name: str, task: str, parameters: dict[str, Any]) -> None:
    from tapster.runtimes.operators import vet
    from tapster.training import features, goldens, models, targets

    table = mixed_table(640, 3, task)  # type: ignore[arg-type]
    target = targets.read(table["target"], task, [])
    columns = features.columns_of(table.drop("target"), [])
    every = features.encode(table.drop("target"), columns, [])
    known, values = every.take(slice(240)), target.values[:240]
    problem = models.Problem(target.task, target.classes, 0, 1)
    model, again = (models.fit(name, parameters, problem, known, values) for _ in range(2))
    same = (model.scores(every) == again.scores(every)).all()
    assert same, f"{name}: the same seed fits another model"

    graph = models.to_onnx(model, known.numeric.shape[1], known.text.shape[1])
    assert vet(graph) == [], f"{name}: {vet(graph)}"
    signature = models.signature_of(model, columns)
    tolerance = goldens.tolerance_of(model, 0.0 if target.classes else float(values.std()))
    for rows in (goldens.golden_rows(known, 1), every):
        found = goldens.check(model, graph, signature, tolerance, rows)
        assert not found, f"{name}, {task}: {found[0]}"
