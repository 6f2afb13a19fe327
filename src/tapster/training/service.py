"""Starting a training job, and registering what it made. Imports nothing heavy."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict
from sqlalchemy import Connection

from tapster.contract.control import DatasetVersion, Job
from tapster.contract.errors import TapsterError
from tapster.core.parts import Parts
from tapster.datasets import declarations
from tapster.datasets import service as datasets
from tapster.jobs import service as jobs
from tapster.jobs.service import Handler
from tapster.registry import packages
from tapster.registry import service as registry
from tapster.tenancy.limits import quotas
from tapster.training import trainers
from tapster.training.recipes import refuse_values
from tapster.training.vocabulary import DEFAULT_SECONDS, EVERY_METRIC, metrics_of, spelled

SEARCHES: Final = ("grid", "random", "tpe")
DEVICES: Final = ("auto", "cpu")
KIND: Final = "train"
# What a training job may take in all (seconds), by the time that its search may: it also reads the
# data, fits the winner once more, converts it and proves it.
_MARGIN: Final = 2.0
_OVERHEAD: Final = 120.0
_LONGEST: Final = 24 * 3600.0


@dataclass
class TrainingRequest:
    """What to train. None and "" mean: choose for me.

    Without `trials` a search lasts `time_limit` seconds (60 unless given); with `trials` it has
    that many, and no time limit unless one is given, so that a run repeats exactly.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    target: str
    model: str
    task: str = "auto"
    algorithm: str = "auto"
    search: str = ""
    trials: int | None = None
    cv: int | None = None
    metric: str = ""
    time_limit: float | None = None
    recipe: dict[str, Any] | None = None
    split: str = ""
    seed: int = 0
    priority: int = 0
    device: str = "auto"


def submit(tx: Connection, tenant: str, request: TrainingRequest) -> Job:
    """Queue a training job. Raises TapsterError for everything that is cheap to know now."""
    spec = checked(request)
    version = datasets.resolve(tx, tenant, request.dataset)
    if request.recipe:
        declarations.check(request.recipe, version.columns)
        refuse_values(request.recipe)
    _check_target(version, request.target)
    if request.split:
        datasets.find_split(tx, tenant, request.dataset, request.split)
    spec |= {"dataset": version.name, "dataset_version": version.version}
    return _queue(tx, tenant, spec)


def _queue(tx: Connection, tenant: str, spec: dict[str, Any]) -> Job:
    """Queue a checked request, with the time that the tenant's limits leave it set aside.

    Raises TapsterError(exhausted) when that is not even the time that the search is to take.
    """
    search = spec["time_limit"]
    most = _MARGIN * search + _OVERHEAD if search else _LONGEST
    seconds = quotas.allowance(tx, tenant, float(search or DEFAULT_SECONDS), most)
    job = jobs.submit(
        tx, tenant, kind=KIND, spec=spec, priority=spec["priority"], time_limit=seconds
    )
    quotas.reserve(tx, tenant, job.id, seconds)
    return job


def checked(request: TrainingRequest) -> dict[str, Any]:
    """The request as a job's spec, in our spelling. Raises TapsterError(invalid)."""
    spec = asdict(request)
    spec["algorithm"] = one_of(
        "algorithm", request.algorithm.lower().replace("_", "-"), ["auto", *trainers.names()]
    )
    spec["task"] = one_of("task", request.task.lower(), ["auto", *trainers.TASKS])
    spec["device"] = one_of("device", request.device.lower(), DEVICES)
    if request.search:
        spec["search"] = one_of("search", request.search.lower(), SEARCHES)
    if request.metric:
        spec["metric"] = one_of("metric", spelled(request.metric), EVERY_METRIC)
    _check_numbers(request)
    _check_fit(spec)
    registry.check_name(request.model)
    if request.recipe and request.split:
        raise TapsterError(
            "invalid",
            "a recipe drops rows, and the recorded split is of the rows as they are",
            hint="clean first (`tapster data clean`), then split the new version",
            field="split",
        )
    if request.time_limit is None and request.trials is None:
        spec["time_limit"] = DEFAULT_SECONDS
    return spec


def one_of(what: str, given: str, known: Sequence[str]) -> str:
    """`given` if it is known; else TapsterError(invalid) with what is close to it."""
    if given in known:
        return given
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise TapsterError(
        "invalid",
        f"there is no {what} {given[:100]!r}",
        hint=f"{hint}choose one of: {', '.join(known)}",
        field=what,
    )


def algorithms() -> list[dict[str, Any]]:
    """Every algorithm: its name, tasks, and the modules it lacks here."""
    found = [(name, trainers.get(name)) for name in trainers.names()]
    return [
        {
            "name": name,
            "tasks": [task for task in trainers.TASKS if task in trainer.tasks],
            "missing": trainers.absent(trainer),
            "about": (type(trainer).__doc__ or "").split("\n")[0],
        }
        for name, trainer in found
    ]


def metrics() -> dict[str, list[str]]:
    """The metrics of each task."""
    return {task: list(metrics_of(task)) for task in trainers.TASKS}


def load_train(tx: Connection, job: Job) -> dict[str, Any]:
    """The job's task and the blobs it reads. See jobs.service.Handler."""
    spec = job.spec
    ref = f"{spec['dataset']}@{spec['dataset_version']}"
    version = datasets.resolve(tx, job.tenant, ref)
    task = {**spec, "dataset_digest": version.digest}
    blobs = {"data": datasets.dataset_key(job.tenant, version.digest)}
    if spec.get("split"):
        split, key = datasets.find_split(tx, job.tenant, ref, spec["split"])
        task["split_lineage"] = {
            "name": split.name, "kind": split.kind, "seed": split.seed,
            "fractions": split.fractions, "column": split.column,
        }  # fmt: skip
        blobs["split"] = key
    return {"task": task, "blobs": blobs}


def publish_train(parts: Parts, job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Sign the package and store it under its digest."""
    package = packages.publish(parts, job.tenant, out / "package")
    if package["digest"] != result["digest"]:
        raise TapsterError("internal", "the package is not the one that training reported")
    return {**result, "package": package}


def apply_train(tx: Connection, job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Register the package; the same digest again is the same version."""
    made = registry.register_published(tx, job, job.spec["model"], result["package"])
    rest = {name: value for name, value in result.items() if name != "package"}
    return {**rest, "model": made.model, "version": made.version}


HANDLERS: Final[dict[str, Handler]] = {
    KIND: Handler("tapster.training.runner:run", load_train, publish_train, apply_train)
}


def _check_target(version: DatasetVersion, target: str) -> None:
    names = [column["name"] for column in version.columns]
    if target in names:
        return
    close = difflib.get_close_matches(target, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise TapsterError(
        "invalid",
        f"dataset {version.name}@{version.version} has no column {target[:100]!r} to predict",
        hint=f"{hint}its columns are: {shown}",
        field="target",
    )


def _check_numbers(request: TrainingRequest) -> None:
    bounds: list[tuple[str, float | None, float, float]] = [
        ("trials", request.trials, 0, 100_000),
        ("cv", request.cv, 2, 100),
        ("time_limit", request.time_limit, 1, 7 * 24 * 3600),
        ("seed", request.seed, 0, 2**32 - 10),
    ]
    for name, number, low, high in bounds:
        if number is not None and not low <= number <= high:
            raise TapsterError(
                "invalid",
                f"{name} {_number(number)} is not between {_number(low)} and {_number(high)}",
                hint=f"give a {name} in that range, or leave it out",
                field=name,
            )


def _number(number: float) -> str:
    if isinstance(number, float):
        return f"{number:g}"
    return f"{number:,}" if abs(number) < 10**30 else f"of {len(str(abs(number)))} digits"


def _check_fit(spec: dict[str, Any]) -> None:
    """Whether algorithm, metric and task go together, as far as they are known."""
    name, task = spec["algorithm"], spec["task"]
    if name != "auto":
        trainer = trainers.get(name)
        if missing := trainers.absent(trainer):
            raise trainers.not_installed(name, missing)
        if task != "auto" and task not in trainer.tasks:
            fitting = [n for n in trainers.names() if task in trainers.get(n).tasks]
            raise TapsterError(
                "invalid",
                f"{name} does not do {task}",
                hint=f"choose one of: {', '.join(fitting)}",
                field="algorithm",
            )
    if spec["metric"] and task != "auto" and spec["metric"] not in metrics_of(task):
        raise TapsterError(
            "invalid",
            f"metric {spec['metric']!r} does not fit the task {task}",
            hint=f"choose one of: {', '.join(metrics_of(task))}",
            field="metric",
        )
