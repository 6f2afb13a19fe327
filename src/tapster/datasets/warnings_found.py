"""Columns that a person should look at before training on them."""

from typing import Any, Final

from tapster.datasets.columns import shown

_NAMES_OF_IDS: Final = {"id", "uuid", "guid", "key", "index", "row", "rowid"}
MANY: Final = 50


def find(
    columns: list[dict[str, Any]], rows: int, duplicates: dict[str, Any]
) -> list[dict[str, Any]]:
    """[{"kind", "column", "message"}]: constant, id-like, high-cardinality, missing, duplicates."""
    found = [warning for column in columns for warning in _of_column(column, rows)]
    if duplicates["count"]:
        share = duplicates["count"] / rows
        found.append(
            {
                "kind": "duplicates",
                "column": "",
                "message": f"{duplicates['count']:,} rows ({share:.1%}) repeat an earlier one",
            }
        )
    return found


def _of_column(column: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    name, distinct, missing = shown(column["name"]), column["distinct"], column["missing"]
    present = rows - missing
    checks = [
        ("empty", not present, f"{name} has no values"),
        (
            "constant",
            present and distinct <= 1 and not missing,
            f"{name} has the same value in every row",
        ),
        ("id-like", _is_id(column, present), f"{name} looks like an identifier: all values differ"),
        (
            "high-cardinality",
            column["type"] == "text" and distinct > MANY and not _is_id(column, present),
            f"{name} has {distinct:,} different texts",
        ),
        (
            "missing",
            present and missing > rows / 2,
            f"{name} is missing in {missing / max(rows, 1):.1%} of the rows",
        ),
        (
            "imprecise",
            column["type"] == "integer"
            and present
            and max(abs(column["min"]), abs(column["max"])) > 1 << 24,
            f"{name} has whole numbers above 2^24, which models see rounded to 32-bit floats",
        ),
    ]
    return [
        {"kind": kind, "column": column["name"], "message": message}
        for kind, holds, message in checks
        if holds
    ]


def _is_id(column: dict[str, Any], present: int) -> bool:
    """All values differ: told of texts and whole numbers; of a long table within a few per cent."""
    if present < 20 or column["type"] not in {"text", "integer"}:
        return False
    exact = present <= 1_000_000
    if column["distinct"] < present * (1.0 if exact else 0.97):
        return False
    if column["type"] == "text":
        return True
    span = column["max"] - column["min"] + 1
    words = set(column["name"].lower().replace("-", "_").replace(" ", "_").split("_"))
    return bool(words & _NAMES_OF_IDS) or span <= present * 1.05
