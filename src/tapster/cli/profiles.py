"""A dataset's profile for people: one line a column, bars for distributions, warnings."""

import shutil
from typing import Any, Final

from tapster.cli.output import PIPE_WIDTH, inert
from tapster.cli.tables import dataset, split, table, text
from tapster.contract.control import DatasetVersion, Split

BARS: Final = " ▁▂▃▄▅▆▇█"
WIDTH: Final = 20
SHOWN: Final = 60
NARROW: Final = 110  # columns of a terminal on which the long form does not fit
HEADERS: Final = ("COLUMN", "TYPE", "MISSING", "DISTINCT", "MIN", "MEDIAN", "MAX", "VALUES")


def bars(counts: list[int], width: int = WIDTH) -> str:
    """Counts as a row of bars; the highest fills its cell, what is not zero is seen."""
    if len(counts) > width:
        step = len(counts) / width
        counts = [sum(counts[int(i * step) : int((i + 1) * step)]) for i in range(width)]
    top = max(counts, default=0)
    return "".join(BARS[-(-count * 8 // top)] if top else BARS[0] for count in counts)


def view(version: DatasetVersion, profile: dict[str, Any], splits: list[Split]) -> Any:
    """The whole profile."""
    from rich.console import Group

    columns, rows = profile.get("columns", []), max(profile.get("rows", 0), 1)
    wide = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns >= NARROW
    parts: list[Any] = [
        dataset(version),
        table(HEADERS, (_line(column, rows, wide) for column in columns[:SHOWN]), HEADERS[1:]),
    ]
    if len(columns) > SHOWN:
        parts.append(f"and {len(columns) - SHOWN:,} further columns: see --json")
    if association := profile.get("target"):
        parts.append(_associations(association))
        parts += _warnings(association)
    parts += _notes(profile)
    parts += [f"made from {_parent(parent)}" for parent in version.parents]
    return Group(*parts, *(split(each) for each in splits))


def _line(column: dict[str, Any], rows: int, wide: bool) -> list[Any]:
    median = (column.get("quantiles") or {}).get("0.5")
    return [
        column["name"],
        column["type"],
        f"{column['missing'] / rows:.1%}" if column["missing"] else "",
        column["distinct"],
        *(_short(value) for value in (column.get("min"), median, column.get("max"))),
        _values(column, rows, wide),
    ]


def _short(value: Any) -> str:
    return "" if value is None else text(value)[:19]


def _values(column: dict[str, Any], rows: int, wide: bool) -> str:
    """A histogram for numbers and dates, shares of the most frequent values for the rest."""
    histogram = column.get("histogram")
    if histogram:
        return bars(histogram["counts"], WIDTH if wide else WIDTH // 2)
    classes = column.get("classes", [])
    return ", ".join(
        f"{text(c['value'])[:16]} {c['count'] / rows:.0%}" for c in classes[: 4 if wide else 1]
    )


def _notes(profile: dict[str, Any]) -> list[str]:
    duplicates = profile.get("duplicate_rows", {}).get("count", 0)
    lines = [f"{duplicates:,} rows repeat an earlier one"] if duplicates else []
    return lines + _warnings(profile)


def _warnings(found: dict[str, Any]) -> list[str]:
    return [f"warning: {inert(each['message'])}" for each in found.get("warnings", [])]


def _parent(parent: dict[str, Any]) -> str:
    return f"{parent.get('dataset')}@{parent.get('version')}"


def _associations(found: dict[str, Any]) -> Any:
    """How columns go together with the target, the most informative first."""
    measures = {
        "INFORMATION (0..1)": "normalised",
        "CORRELATION": "correlation",
        "RANK CORRELATION": "spearman",
    }
    rows = found["columns"][:SHOWN]
    known = {title: key for title, key in measures.items() if any(r[key] is not None for r in rows)}
    headers = [f"WITH {found['target']}", *known]
    return table(headers, ([row["name"], *(row[key] for key in known.values())] for row in rows))
