"""`tapster train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapster.cli.output import Json, client, command, emit, print_json, read_recipe


def add_to(app: typer.Typer) -> None:
    """Put the command on the root."""
    command(
        app,
        "train",
        "tapster train wine --target quality --model wine-quality --follow",
        "tapster train wine --target quality --model wq --algorithm random_forest --trials 30",
    )(train)


def train(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET[@VERSION]", help="What to learn from.")
    ],
    *,
    target: Annotated[str, typer.Option(help="Column to predict.")],
    model: Annotated[str, typer.Option(help="Name to register the winner under.")],
    task: Annotated[str | None, typer.Option(help="auto, binary, multiclass, regression.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="auto, or one of them.")] = None,
    search: Annotated[str | None, typer.Option(help="grid, random or tpe.")] = None,
    trials: Annotated[int | None, typer.Option(help="Parameter sets to try.")] = None,
    cv: Annotated[int | None, typer.Option(help="Folds of cross-validation.")] = None,
    metric: Annotated[str | None, typer.Option(help="What to compare by.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for the search.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="JSON or TOML file of steps.")] = None,
    split: Annotated[str | None, typer.Option(help="A recorded split to use.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a run exactly.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs earlier.")] = None,
    device: Annotated[str | None, typer.Option(help="auto or cpu.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Train and compare models; the winner becomes a version of MODEL."""
    options: dict[str, Any] = {
        "task": task,
        "algorithm": algorithm,
        "search": search,
        "trials": trials,
        "cv": cv,
        "metric": metric,
        "time_limit": time_limit,
        "recipe": read_recipe(recipe),
        "split": split,
        "seed": seed,
        "priority": priority,
        "device": device,
    }
    with client() as tapster:
        job = tapster.train(dataset, target, model, **options)
        if not follow:
            emit(as_json, job, lambda: _started(job.id))
            return
        _follow(tapster, job, as_json)


def _started(job: str) -> str:
    return f"training goes on as job {job}\nwatch it:  tapster jobs show {job} --follow"


def _follow(tapster: Any, job: Any, as_json: bool) -> None:
    from tapster.cli import evaluations
    from tapster.cli.progress import shown

    try:
        with shown(f"train {job.spec.get('model', '')}", evaluations.live) as bar:
            ended = tapster.wait(job, bar.job)
    except KeyboardInterrupt:
        if as_json:
            print_json(job)
        return
    made = tapster.model_of(ended)
    evaluation = tapster.models_evaluation(f"{made.model}@{made.version}")
    emit(as_json, ended, lambda: evaluations.trained(made, evaluation))
