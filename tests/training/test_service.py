"""Submitting: what is refused at once, what a job gets, and what its result registers."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tapster.contract.control import Job
from tapster.contract.errors import TapsterError
from tapster.core.blobs import LocalBlobs
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.core.uploads import Uploads
from tapster.datasets import service as datasets
from tapster.datasets import store
from tapster.jobs.context import JobContext
from tapster.registry import service as registry
from tapster.runtimes.package import check_signature
from tapster.testing import mixed_table
from tapster.training import runner, service
from tapster.training.service import TrainingRequest

TENANT = "default"
DIGEST = "d" * 64


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """An installation that has the dataset `people`."""
    made = Parts(
        settings=load({}, home=tmp_path),
        db=Database(f"sqlite:///{tmp_path / 'tapster.db'}"),
        blobs=LocalBlobs(tmp_path / "blobs"),
        signer=Signer.of(tmp_path / "signing.key"),
        uploads=Uploads(tmp_path / "uploads"),
    )
    made.db.migrate()
    frame = mixed_table(300, 7, "binary")
    folder = tmp_path / "staged"
    folder.mkdir()
    frame.write_parquet(folder / "data.parquet")
    made.blobs.put(datasets.dataset_key(TENANT, DIGEST), folder)
    columns = [{"name": name, "type": "number"} for name in frame.columns]
    with made.db.write() as tx:
        store.add_version(
            tx, TENANT, "people", digest=DIGEST, rows=300, bytes=1, columns=columns,
            source={}, parents=[], job="",
        )  # fmt: skip
    return made


def submit(parts: Parts, **given: Any) -> Job:
    request = {"dataset": "people", "target": "target", "model": "m", **given}
    with parts.db.write() as tx:
        return service.submit(tx, TENANT, TrainingRequest(**request))


@pytest.mark.parametrize(
    ("given", "code", "message", "hint"),
    [
        ({"algorithm": "logstic"}, "invalid", "no algorithm 'logstic'", "did you mean logistic"),
        ({"metric": "acuracy"}, "invalid", "no metric 'acuracy'", "did you mean accuracy"),
        ({"task": "clasification"}, "invalid", "no task", "choose one of: auto, binary"),
        ({"search": "bayes"}, "invalid", "no search 'bayes'", "grid, random, tpe"),
        ({"device": "cuda"}, "invalid", "no device 'cuda'", "auto, cpu"),
        ({"target": "tarjet"}, "invalid", "people@1 has no column 'tarjet'", "mean 'target'"),
        ({"dataset": "peeple"}, "not_found", "no dataset", "people"),
        ({"dataset": "people@7"}, "not_found", "no version 7", "1"),
        ({"model": "../m"}, "invalid", "cannot be the name of a model", "letters"),
        ({"split": "halves"}, "not_found", "has no split", "none yet"),
        ({"cv": 1}, "invalid", "cv 1 is not between 2 and 100", "range"),
        ({"trials": -1}, "invalid", "trials -1 is not between", "range"),
        ({"time_limit": 0.0}, "invalid", "time_limit 0 is not between", "range"),
        ({"seed": -1}, "invalid", "seed -1", "range"),
        (
            {"seed": 10**11},
            "invalid",
            "100,000,000,000 is not between 0 and 4,294,967,286",
            "range",
        ),
        ({"seed": 10**99}, "invalid", "seed of 100 digits is not between", "range"),
        ({"algorithm": "ridge", "task": "binary"}, "invalid", "ridge does not do", "logistic"),
        ({"metric": "r2", "task": "binary"}, "invalid", "metric 'r2' does not fit", "accuracy"),
        ({"recipe": {"steps": [{"op": "scale"}]}}, "unprocessable", "changes values", "clean"),
        ({"recipe": {"steps": [{"op": "scael"}]}}, "invalid", "unknown operation", "scale"),
    ],
)
def test_what_is_cheap_to_know_is_refused_at_once(
    parts: Parts, given: dict[str, Any], code: str, message: str, hint: str
) -> None:
    with pytest.raises(TapsterError) as caught:
        submit(parts, **given)
    assert caught.value.code == code
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_spellings_are_forgiven(parts: Parts) -> None:
    spec = submit(parts, algorithm="Random_Forest", metric="ROC-AUC", task="Binary").spec
    assert (spec["algorithm"], spec["metric"], spec["task"]) == (
        "random-forest", "roc_auc", "binary",
    )  # fmt: skip
    assert (spec["dataset"], spec["dataset_version"]) == ("people", 1)


def test_time_is_limited_unless_trials_are_given(parts: Parts) -> None:
    assert submit(parts).spec["time_limit"] == 60
    assert submit(parts, trials=5).spec["time_limit"] is None
    assert submit(parts, trials=5, time_limit=9).spec["time_limit"] == 9


def test_a_job_trains_and_its_version_is_registered(parts: Parts, tmp_path: Path) -> None:
    job = submit(parts, algorithm="logistic", cv=2)
    with parts.db.read() as tx:
        order = service.load_train(tx, job)
    inputs = {label: parts.blobs.get(key) for label, key in order["blobs"].items()}
    context = JobContext(work=tmp_path / "work", inputs=inputs)
    context.work.mkdir()
    result = runner.run(order["task"], context)
    copy = shutil.copytree(context.work / "out", tmp_path / "again")

    registered = []
    for out in (context.work / "out", copy):
        published = service.publish_train(parts, job, dict(result), out)
        with parts.db.write() as tx:
            registered.append(service.apply_train(tx, job, published))
    assert registered[0] == registered[1]
    assert (registered[0]["model"], registered[0]["version"]) == ("m", 1)

    with parts.db.read() as tx:
        version = registry.resolve(tx, TENANT, "m")
    assert version.lineage["dataset_digest"] == DIGEST
    assert version.metrics == result["metrics"]
    folder = parts.blobs.get(f"{TENANT}/packages/{version.digest}")
    assert check_signature(folder, [parts.signer.public]) == parts.signer.public


def test_the_list_of_algorithms_says_what_each_does() -> None:
    found = {entry["name"]: entry for entry in service.algorithms()}
    assert len(found) >= 14
    assert found["ridge"]["tasks"] == ["regression"]
    assert found["lightgbm"] == {
        "name": "lightgbm",
        "tasks": ["binary", "multiclass", "regression"],
        "missing": [],
        "about": found["lightgbm"]["about"],
    }


def test_the_control_plane_loads_no_library_for_it() -> None:
    code = (
        "import sys; from tapster.training import service, routes; service.algorithms();"
        "heavy = {'sklearn', 'polars', 'onnx', 'skl2onnx', 'optuna', 'lightgbm', 'xgboost',"
        " 'scipy', 'pandas', 'onnxruntime'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_algorithms_that_are_absent_are_named_with_the_remedy(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapster.training.trainers.boosting import LightGbm

    monkeypatch.setattr(LightGbm, "requires", ("a_module_nobody_has",))
    with pytest.raises(TapsterError) as caught:
        submit(parts, algorithm="lightgbm")
    assert "needs a_module_nobody_has" in caught.value.message
    assert "pip install 'tapster[boost]'" in caught.value.hint


def test_auto_goes_without_what_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tapster.training.trainers.boosting import LightGbm
    from tests.training.conftest import Workshop

    monkeypatch.setattr(LightGbm, "requires", ("a_module_nobody_has",))
    frame = pl.DataFrame({"x": range(60)}).with_columns(target=pl.col("x") * 1.5)
    trained = Workshop(tmp_path).train(frame, time_limit=1.0, cv=2)
    assert any("lightgbm is not installed" in text for text in trained.result["warnings"])
    assert "lightgbm" not in {row["algorithm"] for row in trained.result["leaderboard"]}
