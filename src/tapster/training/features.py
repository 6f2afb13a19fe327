"""A table as the two tensors a graph takes, `numeric` and `text`, and a target."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Column, ColumnKind
from tapster.runtimes.rows import days

EXACT: Final = 2**24
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Features:
    """`numeric` is float32 [n, k] with NaN for missing; `text` object [n, m] with "" for it."""

    numeric: Floats
    text: Array

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, index: Array | slice) -> "Features":
        """The rows of an index array, mask or slice."""
        return Features(self.numeric[index], self.text[index])

    def tensors(self) -> dict[str, Array]:
        """The graph's inputs: those of `numeric` and `text` that have columns."""
        both = {"numeric": self.numeric, "text": self.text}
        return {name: array for name, array in both.items() if array.shape[1]}


def columns_of(frame: pl.DataFrame, warnings: list[str]) -> tuple[Column, ...]:
    """Where each column's value goes. Columns of nested or binary types are left out, with a word.

    Raises TapsterError(unprocessable) when nothing is left to learn from.
    """
    columns: list[Column] = []
    positions = {"numeric": 0, "text": 0}
    for name, dtype in frame.schema.items():
        kind = kind_of(dtype)
        if kind is None:
            warnings.append(f"column {name!r} has type {called(dtype)} and was left out")
            continue
        tensor = "text" if kind == "text" else "numeric"
        columns.append(Column(name, kind, tensor, positions[tensor]))
        positions[tensor] += 1
    if not columns:
        raise TapsterError(
            "unprocessable",
            "there is no column to learn from besides the target",
            hint="train on a dataset with at least one more column",
        )
    return tuple(columns)


def anonymous(series: pl.Series) -> pl.Series:
    """The series under a harmless name: polars reads one like "^.*$" as a pattern."""
    return series.alias("values")


def kind_of(dtype: pl.DataType) -> ColumnKind | None:
    """How values of a polars type travel; None for types that a row cannot carry."""
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return "text"
    kinds: dict[Any, ColumnKind] = {
        pl.Boolean: "boolean",
        pl.Date: "date",
        pl.Datetime: "datetime",
    }
    return kinds.get(dtype.base_type())


def called(dtype: pl.DataType) -> str:
    """The type as people know it; a polars type that no dataset has keeps its name."""
    return kind_of(dtype) or str(dtype)


def encode(frame: pl.DataFrame, columns: tuple[Column, ...], warnings: list[str]) -> Features:
    """The table's features. Raises TapsterError(unprocessable) for infinities."""
    rows = frame.height
    numeric = [
        _numbers(anonymous(frame[c.name]), c, warnings) for c in columns if c.tensor == "numeric"
    ]
    text = [_text(anonymous(frame[c.name])) for c in columns if c.tensor == "text"]
    _say_what_is_useless(frame, columns, warnings)
    return Features(
        np.column_stack(numeric) if numeric else np.empty((rows, 0), np.float32),
        np.column_stack(text) if text else np.empty((rows, 0), object),
    )


def _numbers(series: pl.Series, column: Column, warnings: list[str]) -> Floats:
    if column.kind in {"date", "datetime"}:
        return _days(series, column)
    values = series.cast(pl.Float64).to_numpy().astype(np.float64, copy=False)
    refuse_infinities(values, column.name)
    whole = np.nan_to_num(values, nan=0.0)
    if series.dtype.is_integer() and len(whole) and np.abs(whole).max() > EXACT:
        warnings.append(
            f"column {column.name!r} has integers above 2^24: models see them rounded to float32"
        )
    return values.astype(np.float32)


def refuse_infinities(values: npt.NDArray[np.float64], name: str) -> None:
    """Raise TapsterError(unprocessable) if a float32 could not hold every value."""
    bad = int((np.abs(np.nan_to_num(values, nan=0.0)) > np.finfo(np.float32).max).sum())
    if bad:
        raise TapsterError(
            "unprocessable",
            f"column {name!r} has {bad} infinite values (or beyond 3.4e38)",
            hint="replace or drop them with `tapster data clean`, then train on the new version",
            field=name,
        )


def _days(series: pl.Series, column: Column) -> Floats:
    text = series.dt.to_string("iso:strict" if column.kind == "datetime" else "iso")
    try:
        table = {value: days(value, column.kind) for value in text.unique().drop_nulls()}
    except ValueError as error:
        raise TapsterError(
            "unprocessable",
            f"column {column.name!r} has a date that cannot be read back: {error}",
            hint="years go from 1 to 9999; drop such rows with `tapster data clean`",
            field=column.name,
        ) from None
    return np.array([table.get(v, np.nan) for v in text], np.float64).astype(np.float32)


def _text(series: pl.Series) -> Array:
    return series.cast(pl.String).fill_null("").to_numpy().astype(object)


def _say_what_is_useless(
    frame: pl.DataFrame, columns: tuple[Column, ...], warnings: list[str]
) -> None:
    for column in columns:
        series = anonymous(frame[column.name])
        if series.null_count() == frame.height:
            warnings.append(f"column {column.name!r} has no values; the model learns nothing of it")
        elif series.n_unique() == 1:
            warnings.append(f"column {column.name!r} is constant; the model learns nothing of it")
