"""Metrics, leaderboards and confusion matrices for people."""

from collections.abc import Sequence
from typing import Any, Final

from tapster.cli.output import inert
from tapster.cli.tables import algorithm, facts, model, size, table, text, when
from tapster.contract.control import Job, ModelVersion

MATRIX_LIMIT: Final = 12
RELATED: Final = ("parents", "children", "same_data")


def live(job: Job) -> Any:
    """The leaderboard in the making, if the job has one."""
    board = job.data.get("leaderboard")
    return leaderboard(board) if board else None


def leaderboard(board: list[dict[str, Any]]) -> Any:
    """Candidates, best first, as cross-validation ranks them."""
    metric = str(board[0].get("metric", "value"))
    headers = ["RANK", "ALGORITHM", metric.upper(), "SPREAD", "FOLDS", "STATE"]
    return table(
        headers,
        (
            [
                row["rank"],
                row["algorithm"],
                _number(row["value"]),
                _number(row["std"]),
                row["folds"],
                ": ".join(part for part in (row["state"], row["reason"]) if part),
            ]
            for row in board
        ),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def trained(made: ModelVersion, evaluation: dict[str, Any]) -> Any:
    """What to show when training has ended."""
    from rich.console import Group

    board = evaluation.get("leaderboard")
    parts = [leaderboard(board)] if board else []
    parts += [f"warning: {inert(text(each))}" for each in evaluation.get("warnings", [])]
    parts += [metrics(made.metrics), f"registered {model(made)}"]
    return Group(*parts, f"serve it:  tapster deploy {made.model}@{made.version}")


def metrics(found: dict[str, Any]) -> Any:
    """Held-out metrics with their 95 % intervals."""
    return table(
        ["METRIC (held out)", "VALUE", "95 % INTERVAL"],
        ([name, _value(entry), _interval(entry)] for name, entry in found.items()),
    )


def _value(entry: Any) -> Any:
    return entry.get("value") if isinstance(entry, dict) else entry


def _interval(entry: Any) -> str:
    if not isinstance(entry, dict) or entry.get("low") is None:
        return ""
    return f"{entry['low']:.4g} to {entry['high']:.4g}"


def comparison(found: Sequence[ModelVersion]) -> Any:
    """Metrics side by side, one column a version."""
    names = list(dict.fromkeys(name for version in found for name in version.metrics))
    headers = ["METRIC", *(f"{v.model}@{v.version}" for v in found)]
    about = [
        ["algorithm", *(algorithm(v) for v in found)],
        ["aliases", *(" ".join(v.aliases) for v in found)],
        ["size", *(size(v.bytes) for v in found)],
    ]
    lines = [[name, *(_cell(v.metrics.get(name)) for v in found)] for name in names]
    return table(headers, about + lines)


def _cell(entry: Any) -> str:
    interval = _interval(entry)
    return text(_value(entry)) + (f" ({interval})" if interval else "")


def confusion(classes: list[Any], matrix: list[list[int]]) -> Any:
    """Rows are the truth, columns the prediction."""
    if len(classes) > MATRIX_LIMIT:
        return f"the confusion matrix of {len(classes)} classes is in --json"
    headers = ["TRUE \\ PREDICTED", *(inert(text(name)) for name in classes)]
    return table(headers, ([name, *row] for name, row in zip(classes, matrix, strict=True)))


def view(version: ModelVersion, evaluation: dict[str, Any], lineage: dict[str, Any]) -> Any:
    """Everything about one version."""
    from rich.console import Group

    parts: list[Any] = [
        model(version),
        facts(_about(version)),
    ]
    if version.lineage:
        parts.append(facts(_origin(version.lineage)))
    if version.metrics:
        parts.append(metrics(version.metrics))
    if confused := evaluation.get("confusion"):
        parts.append(confusion(confused["labels"], confused["counts"]))
    related = {name: " ".join(lineage.get(name, [])) for name in RELATED}
    return Group(*parts, facts(related)) if any(related.values()) else Group(*parts)


def _origin(lineage: dict[str, Any]) -> dict[str, Any]:
    """Where a version came from; of an import, what is known of that."""
    hidden = {"environment"} if lineage.get("dataset") else {"dataset_version", "seed"}
    return {name: value for name, value in lineage.items() if name not in hidden}


def _about(version: ModelVersion) -> dict[str, Any]:
    columns = version.signature.get("columns", [])
    return {
        "owner": version.owner,
        "shared with": ", ".join("all" if each == "*" else each for each in version.shared),
        "aliases": " ".join(version.aliases),
        "description": version.description,
        "tags": version.tags,
        "created": when(version.created),
        "job": version.job,
        "signed by": version.signer,
        "isolated": "; ".join(version.unvetted),
        "takes": ", ".join(f"{c['name']} ({c['kind']})" for c in columns) or _tensors(version),
        "classes": ", ".join(text(name) for name in version.signature.get("classes", [])),
    }


def _tensors(version: ModelVersion) -> str:
    inputs = version.signature.get("inputs", [])
    return ", ".join(f"{i['name']} {i['datatype']} {i['shape']}" for i in inputs)
