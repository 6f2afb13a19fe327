"""What every source becomes: a lazy table with safe column names beside the public ones.

Inside, columns are called c0, c1 ... : a public name may be anything, `^.*$` included, which a
polars expression would take for a pattern.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.datasets.columns import check_names, shown
from tapster.datasets.conversion import kind_of, settle

Advance = Callable[[float, str], None]


@dataclass
class Table:
    """A source, opened. `loose` is as in `inference.infer`; `digest` names the source's content."""

    frame: pl.LazyFrame
    names: list[str]
    digest: str
    rows: int
    loose: dict[str, bool] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    notes: list[dict[str, str]] = field(default_factory=list)

    @property
    def public(self) -> dict[str, str]:
        """Public name by safe name."""
        return dict(zip(safe_names(len(self.names)), self.names, strict=True))


def safe_names(count: int) -> list[str]:
    """c0, c1 ..."""
    return [f"c{position}" for position in range(count)]


def settled(frame: pl.LazyFrame, source: str) -> tuple[pl.LazyFrame, list[str]]:
    """A typed table in a dataset's types under safe names, and its public names.

    Raises TapsterError(invalid) naming a column of a type that no dataset can hold.
    """
    schema = frame.collect_schema()
    names = check_names(schema.names(), source)
    safe = safe_names(len(names))
    for name, dtype in zip(names, schema.dtypes(), strict=True):
        if not kind_of(dtype):
            raise TapsterError(
                "invalid",
                f"column {shown(name)} of {source} holds {str(dtype).lower()}, "
                "which a dataset cannot",
                hint="flatten it into columns of numbers, texts, booleans or dates first",
                field=name,
            )
    renamed = frame.rename(dict(zip(schema.names(), safe, strict=True)))
    kinds = zip(safe, schema.dtypes(), strict=True)
    return renamed.select(settle(pl.col(c), dtype).alias(c) for c, dtype in kinds), names


def same_columns(first: Sequence[str], other: Sequence[str], file: str) -> None:
    """Raise TapsterError(invalid) unless a further file has the first one's columns in order."""
    if list(first) == list(other):
        return
    missing = [shown(name) for name in first if name not in set(other)]
    extra = [shown(name) for name in other if name not in set(first)]
    what = f"lacks {', '.join(missing[:5])}" if missing else ""
    if extra:
        what += f"{' and ' if what else ''}has {', '.join(extra[:5])} besides"
    raise TapsterError(
        "invalid",
        f"the files of a folder must have the same columns; {file} "
        + (what or "has them in another order"),
        hint="import the files as datasets of their own, or give them one header",
        field=file,
    )


def write_parquet(frame: pl.LazyFrame, path: Path, rows: int, advance: Advance) -> None:
    """Stream a table into a Parquet file, counting rows. Raises TapsterError(storage_full)."""
    done = 0

    def count(batch: pl.DataFrame) -> pl.DataFrame:
        nonlocal done
        done += batch.height
        advance(min(1.0, done / max(1, rows)), f"{done:,} rows")
        return batch

    try:
        frame.map_batches(count, streamable=True, validate_output_schema=False).sink_parquet(
            path, compression="zstd", row_group_size=100_000, statistics=True
        )
    except (pl.exceptions.ComputeError, OSError) as error:
        raise full_disk(error) or error from error


def full_disk(error: Exception) -> TapsterError | None:
    """The error to tell if polars (or the system) found the disk full; None if it was not that."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        return storage_error(error)
    for number in (28, 122):
        if f"(os error {number})" in text:
            return storage_error(OSError(number, ""))
    return None
