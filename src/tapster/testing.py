"""For authors of plug-ins and tests: made-up data, and the contracts of the four seams.

Each `check_*` holds a plug-in to its protocol with real parts and raises AssertionError.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.core.blobs import BlobStore
from tapster.jobs.context import JobContext
from tapster.jobs.executors import Executor
from tapster.runtimes import Runtime

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


def check_blob_store(store: BlobStore, scratch: Path) -> None:
    """Hold an empty blob store to its contract; `scratch` is a folder to write in."""

    def folder(name: str, text: str) -> Path:
        made = scratch / name
        (made / "inside").mkdir(parents=True)
        (made / "inside" / "file").write_text(text)
        return made

    assert list(store.keys()) == []
    assert store.put("tenant/kind/one", folder("a", "first")) == len("first")
    assert not (scratch / "a").exists(), "a folder that was put is consumed"
    store.put("tenant/kind/one", folder("b", "second"))
    content = store.get("tenant/kind/one") / "inside" / "file"
    assert content.read_text() == "first", "what is stored does not change"
    store.put("tenant/kind/two", folder("c", "other"))
    store.sweep()
    assert sorted(store.keys()) == ["tenant/kind/one", "tenant/kind/two"]
    assert store.delete("tenant/kind/one") == len("first")
    assert store.delete("tenant/kind/one") == 0
    assert _refusal(lambda: store.get("tenant/kind/one")) == "not_found"
    assert list(store.keys()) == ["tenant/kind/two"]


def check_executor(executor: Executor, scratch: Path) -> None:
    """Hold an executor to its contract; `scratch` is a folder that its processes see."""
    folder = _lay_out(scratch / "short" / "1", "tapster.testing:echo", {"word": "hello"})
    handle = executor.start(folder)
    _until(lambda: executor.poll(handle).code is not None, "the end of a short job")
    assert executor.poll(handle).code == 0
    assert json.loads((folder / "result.json").read_text()) == {"result": {"word": "hello"}}
    assert "hello" in (folder.parent / "log").read_text(), "what a job prints is its log"

    folder = _lay_out(scratch / "long" / "1", "tapster.testing:linger", {})
    handle = executor.start(folder)
    _until((folder / "report").exists, "the start of a long job")
    _until(lambda: executor.poll(handle).memory > 0, "the memory of a running job")
    executor.cancel(handle)
    code = executor.poll(handle).code
    assert code is not None, "a cancelled job has ended"
    assert code < 0, f"a cancelled job ended by itself, with {code}"
    assert not (folder / "result.json").exists()


def check_runtime(runtime: Runtime, package: Path, digest: str) -> None:
    """Hold a runtime to its contract with a package of its own kind.

    Models that are not run inline are run as a worker would, in a process of their own.
    """
    from tapster.runtimes import LoadedModel, parity
    from tapster.runtimes.isolated import Limits
    from tapster.runtimes.isolated.model import Isolated
    from tapster.runtimes.package import PARITY, open_package

    opened = open_package(package, digest)
    assert opened.manifest.runtime == runtime.name
    inline = runtime.inline(opened.manifest, opened.files)
    assert isinstance(inline, bool)
    model: LoadedModel = (
        runtime.load(opened.manifest, opened.files, 1)
        if inline
        else Isolated.of_package(package, digest, opened.manifest, Limits())
    )
    parity.replay(model, opened.files[PARITY], opened.manifest.tolerance)
    inputs = parity.load(opened.files[PARITY])[0].inputs
    names = [spec.name for spec in opened.manifest.signature.outputs]
    assert len(model.run(inputs, names[:1], time.monotonic() + 60)) == 1
    wrong = {"no such input": np.zeros((1, 1), np.float32)}
    assert _refusal(lambda: model.run(wrong, names)) == "invalid"
    model.close()


def echo(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """A job that prints its task and answers it."""
    print(task["word"], flush=True)
    context.progress(0.5, "echoing")
    return task


def linger(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """A job that ends when it is made to."""
    context.progress(0.5, "lingering")
    while True:
        time.sleep(0.05)


def _lay_out(folder: Path, run: str, task: dict[str, Any]) -> Path:
    (folder / "out").mkdir(parents=True)
    order = {"run": run, "task": task, "inputs": {}, "deadline": None}
    (folder / "task.json").write_text(json.dumps(order))
    return folder


def _refusal(call: Callable[[], object]) -> str:
    """The code of the TapsterError that a call raises; nothing when it raises none."""
    try:
        call()
    except TapsterError as error:
        return error.code
    return ""


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)
