"""A dataset's profile for people: one line a column, bars for distributions, warnings."""

from typing import Any, Final

from tapster.cli.output import inert
from tapster.cli.tables import dataset, split, table, text
from tapster.contract.control import DatasetVersion, Split

BARS: Final = " ▁▂▃▄▅▆▇█"
WIDTH: Final = 20


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

    columns = profile.get("columns", [])
    if isinstance(columns, dict):
        columns = [{"name": name, **entry} for name, entry in columns.items()]
    parts: list[Any] = [dataset(version), table(HEADERS, (_line(c) for c in columns))]
    return Group(*parts, *(split(each) for each in splits))


HEADERS: Final = ("COLUMN", "TYPE", "MISSING", "DISTINCT", "MIN", "MEDIAN", "MAX", "DISTRIBUTION")


def _line(column: dict[str, Any]) -> list[Any]:
    return [inert(column["name"]), text(column.get("type")), "", "", "", "", "", ""]
