"""From a mixed table to 1,000 served answers, against the trainer's own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tapster
from tapster.contract.control import ModelVersion
from tapster.contract.inference import Array
from tapster.core.blobs import LocalBlobs
from tapster.testing import Task, mixed_table
from tapster.training import features, models, targets
from tests.conftest import Server

ROWS = 1000


def _unseen(seed: int) -> pl.DataFrame:
    """Rows the model has not seen: missing values, unseen categories, extremes."""
    rows = mixed_table(ROWS, seed, "binary").drop("target")
    draw = np.random.default_rng(seed)
    strange = pl.Series(draw.random(ROWS) < 0.2)
    far = pl.Series(draw.random(ROWS) < 0.05)
    return rows.with_columns(
        pl.when(strange).then(pl.lit("Ünknown 🏙 city")).otherwise("home city").alias("home city"),
        pl.when(strange).then(pl.lit("'; drop table")).otherwise("plan").alias("plan"),
        pl.when(far).then(pl.lit(1e30)).otherwise("income").alias("income"),
    )


def _trainers_own(
    server: Server, model: ModelVersion, reference: str, task: Task, rows: pl.DataFrame
) -> dict[str, Array]:
    """Train again in this process, as the lineage says, and ask scikit-learn's own model."""
    lineage: dict[str, Any] = model.lineage
    blobs = LocalBlobs(server.home / "blobs")
    folder = blobs.get(f"default/datasets/{lineage['dataset_digest']}")
    frame = pl.read_parquet(folder / "data.parquet")
    target = targets.read(frame["target"], task, [])
    known = frame.drop("target")
    columns = features.columns_of(known, [])
    train, _ = targets.hold_out(target, lineage["seed"])
    problem = models.Problem(target.task, target.classes, lineage["seed"], threads=2)
    fitted = models.fit(
        lineage["algorithm"],
        lineage["parameters"],
        problem,
        features.encode(known, columns, []).take(train),
        target.values[train],
    )
    return fitted.outputs(features.encode(rows, columns, []))


@pytest.mark.parametrize(
    ("task", "algorithm"),
    [
        ("binary", "hist-gradient-boosting"),
        ("multiclass", "logistic"),
        ("regression", "random-forest"),
        ("binary", "lightgbm"),
    ],
)
def test_a_thousand_served_answers_are_the_trainers_own(
    server: Server, tmp_path: Path, task: Task, algorithm: str
) -> None:
    name = f"mixed-{task}-{algorithm}"
    path = tmp_path / "table.csv"
    mixed_table(1500, 7, task).write_csv(path)
    with tapster.connect(server.url, key=server.key) as client:
        data = client.data_add(name, path)
        job = client.train(
            f"{name}@{data.version}", "target", name, algorithm=algorithm, cv=2, seed=3
        )
        model = client.model_of(client.wait(job))
        client.deploy(f"{name}@{model.version}", name)
        rows = _unseen(11)
        served = client.predict(name, rows)
    own = _trainers_own(server, model, name, task, rows)
    assert len(served) == ROWS
    if task == "regression":
        got = np.array([one["prediction"] for one in served])
        np.testing.assert_allclose(got, own["prediction"], rtol=1e-4, atol=1e-3)
        return
    classes = [str(label) for label in model.signature["classes"]]
    got = np.array([[one["probabilities"][label] for label in classes] for one in served])
    np.testing.assert_allclose(got, own["probabilities"], atol=1e-4)
    best = np.sort(own["probabilities"], axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-3
    labels = np.array([one["prediction"] for one in served])
    assert (labels == own["prediction"])[clear].all()
    assert clear.sum() > ROWS * 0.9
    assert all(math.isfinite(value) for value in got.ravel())
