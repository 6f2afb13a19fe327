"""Nouns as tables and lines for people."""

import json
import time
from collections.abc import Iterable
from typing import Any

from tapster.cli.output import inert
from tapster.contract.control import DatasetVersion, Job, ModelVersion, Split


def table(headers: Iterable[str], lines: Iterable[Iterable[Any]], whole: Iterable[str] = ()) -> Any:
    """A table; numbers to the right, anything else to the left, nothing obeyed.

    Cells are folded where the terminal is narrow, but not those of the columns `whole`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(line) for line in lines]
    names = list(headers)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(names))
    for at, header in enumerate(names):
        cells = [line[at] for line in body if line[at] is not None]
        numeric = bool(cells) and all(map(_is_number, cells))
        justify: Any = "right" if numeric else "left"
        fixed = numeric or header in whole
        made.add_column(
            header, justify=justify, overflow="fold", no_wrap=fixed, min_width=len(header)
        )
    for line in body:
        made.add_row(
            *(cell if isinstance(cell, Text) else Text(inert(text(cell))) for cell in line)
        )
    return made if body else Text("nothing there")


def rows(found: list[dict[str, Any]], headers: list[str]) -> Any:
    """Dictionaries as a table of some of their entries."""
    return table(headers, ([row.get(header, "") for header in headers] for row in found))


def facts(found: dict[str, Any]) -> Any:
    """Names and values, nested names joined by dots."""
    return table(["", ""], _flat(found))


def _flat(found: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        elif value not in ("", None, {}, []):
            sized = isinstance(value, int) and not isinstance(value, bool) and value > 1 << 20
            yield before + name, size(value) if sized else value


def text(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def when(moment: float | None) -> str:
    """Local date and time of seconds since 1970."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def dataset(made: DatasetVersion) -> str:
    """One line on a version."""
    return inert(
        f"{made.name}@{made.version}: {made.rows:,} rows, {len(made.columns)} columns, "
        f"{size(made.bytes)}, sha256 {made.digest[:12]}"
    )


def datasets(found: list[DatasetVersion]) -> Any:
    """Datasets."""
    return table(
        ["NAME", "VERSION", "ROWS", "COLUMNS", "SIZE", "CREATED"],
        (
            [d.name, d.version, d.rows, len(d.columns), size(d.bytes), when(d.created)]
            for d in found
        ),
    )


def split(made: Split) -> str:
    """One line on a split."""
    shares = ", ".join(
        f"{name} {count:,}"
        for name, count in zip(("train", "validation", "test"), made.rows, strict=False)
    )
    by = f" by {made.column}" if made.column else ""
    return inert(
        f"split {made.name} of {made.dataset}@{made.version} ({made.kind}{by}, "
        f"seed {made.seed}): {shares}"
    )


def model(made: ModelVersion) -> str:
    """One line on a version."""
    return inert(
        f"{made.model}@{made.version}: {made.task}, runtime {made.runtime}, {size(made.bytes)}, "
        f"sha256 {made.digest[:12]}{', isolated' if made.unvetted else ''}"
    )


def algorithm(made: ModelVersion) -> str:
    """What a version was trained by, as far as one is told."""
    return made.lineage.get("algorithm", "") or ("" if made.owner else "imported")


def models(found: list[ModelVersion]) -> Any:
    """Models; with their owners, if others share some."""
    owners = any(m.owner for m in found)
    return table(
        [
            *("NAME", "VERSION", "TASK", "ALGORITHM", "SIZE", "ALIASES", "CREATED"),
            *(("OWNER",) if owners else ()),
        ],
        (
            [
                m.model,
                m.version,
                m.task,
                algorithm(m),
                size(m.bytes),
                " ".join(m.aliases),
                when(m.created),
                *((m.owner,) if owners else ()),
            ]
            for m in found
        ),
    )


def jobs(found: list[Job]) -> Any:
    """Jobs."""
    return table(
        ["ID", "KIND", "STATUS", "DONE", "PHASE", "CREATED", "TOOK"],
        (
            [j.id, j.kind, j.status, f"{j.progress:.0%}", j.phase, when(j.created), _took(j)]
            for j in found
        ),
    )


def _took(job: Job) -> str:
    if job.started is None:
        return ""
    return f"{(job.finished or time.time()) - job.started:.1f} s"


def job(seen: Job) -> Any:
    """Everything about one job."""
    error = {f"error.{part}": value for part, value in (seen.error or {}).items()}
    return facts(
        {
            "id": seen.id,
            "kind": seen.kind,
            "status": seen.status,
            "progress": f"{seen.progress:.0%} {seen.phase} {seen.message}".strip(),
            "attempt": f"{seen.attempt} of {seen.max_attempts}",
            "created": when(seen.created),
            "took": _took(seen),
            "asked": seen.spec,
            "result": seen.result or {},
            **error,
        }
    )


def calls(endpoint_name: str, rest_url: str) -> str:
    """How an endpoint is called."""
    return (
        f"try it:          tapster predict {endpoint_name} --file rows.csv\n"
        f"plain:           POST {rest_url}/v1/endpoints/{endpoint_name}/predict\n"
        f"Open Inference:  POST {rest_url}/v2/models/{endpoint_name}/infer\n"
        f"TF Serving:      POST {rest_url}/v1/models/{endpoint_name}:predict"
    )


def predictions(answers: list[dict[str, Any]]) -> Any:
    """Predictions; of a classifier with the most probable labels first."""
    headers = ["ROW", "PREDICTION", "PROBABILITIES"]
    lines = [
        [at, answer.get("prediction", answer), _likely(answer.get("probabilities") or {})]
        for at, answer in enumerate(answers, 1)
    ]
    width = 3 if any(line[2] for line in lines) else 2
    return table(headers[:width], (line[:width] for line in lines))


def _likely(probabilities: dict[str, float]) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])[:4]
    return "  ".join(f"{label} {share:.1%}" for label, share in ranked)
