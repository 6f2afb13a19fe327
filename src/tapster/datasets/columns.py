"""What a column may be: its type, its name, and how many of them a table may have."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tapster.contract.errors import TapsterError

TYPES: Final = ("integer", "number", "boolean", "date", "datetime", "text")
FORMATS: Final = ("csv", "tsv", "parquet", "jsonl", "arrow")
INFINITIES: Final = ("refuse", "missing")
MAX_COLUMNS: Final = 10_000
MAX_NAME: Final = 256


def check_count(count: int, source: str) -> None:
    """Raise TapsterError(too_large) if a table has more columns than `MAX_COLUMNS`."""
    if count > MAX_COLUMNS:
        raise TapsterError(
            "too_large",
            f"{source} has {count:,} columns; a dataset takes at most {MAX_COLUMNS:,}",
            hint="keep the columns you need, or turn the table into long form",
        )


def check_names(names: Sequence[str], source: str) -> list[str]:
    """The names a table will have; an empty one (an unnamed index, say) becomes `column_N`.

    Any characters are legitimate but control characters; names are exact and unique. Raises
    TapsterError(invalid) naming the column's position and what is wrong with it.
    """
    check_count(len(names), source)
    taken = set(names)
    result: list[str] = []
    seen: dict[str, int] = {}
    for position, given in enumerate(names, 1):
        name = given if given else _unnamed(position, taken)
        _check_name(name, position, source)
        if name in seen:
            raise TapsterError(
                "invalid",
                f"{source} has two columns named {shown(name)}: {seen[name]} and {position}",
                hint="rename one of them in the source",
                field=name,
            )
        seen[name] = position
        result.append(name)
    return result


def _unnamed(position: int, taken: set[str]) -> str:
    name = f"column_{position}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _check_name(name: str, position: int, source: str) -> None:
    if len(name) > MAX_NAME:
        raise TapsterError(
            "invalid",
            f"column {position} of {source} has a name of {len(name):,} characters, "
            f"beginning {shown(name[:40])}; the limit is {MAX_NAME}",
            hint="shorten the name; or is the header line missing or the separator another?",
        )
    for character in name:
        if unicodedata.category(character) in {"Cc", "Cs"}:
            raise TapsterError(
                "invalid",
                f"column {position} of {source} has the control character "
                f"U+{ord(character):04X} in its name {shown(name)}",
                hint="rename the column in the source",
            )


def check_schema(schema: dict[str, Any]) -> None:
    """Raise TapsterError(invalid) if a schema override names an unknown type."""
    for name, kind in schema.items():
        if kind not in TYPES:
            raise TapsterError(
                "invalid",
                f"schema gives column {shown(name)} the unknown type {kind!r}",
                hint=f"types are {', '.join(TYPES)}",
                field=f"schema.{name}",
            )


def unknown_column(name: str, columns: Iterable[str], field: str = "") -> TapsterError:
    """The error for a column that a table does not have, with the closest names."""
    known = list(columns)
    close = difflib.get_close_matches(name, known[:2000], n=3, cutoff=0.5)
    listed = close or known[:10]
    more = " ..." if not close and len(known) > len(listed) else ""
    return TapsterError(
        "invalid",
        f"there is no column {shown(name)}",
        hint=f"{'did you mean' if close else 'columns are'} "
        + ", ".join(shown(column) for column in listed)
        + more,
        field=field or name,
    )


def shown(text: str, limit: int = 80) -> str:
    """A name or value as a message shows it: quoted, escaped, and cut when long."""
    clipped = text if len(text) <= limit else text[:limit] + "…"
    return repr(clipped)
