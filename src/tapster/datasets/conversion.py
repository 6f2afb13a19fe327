"""Polars expressions between the types of a dataset. Parsing never raises: a misfit is null."""

from datetime import date, datetime
from typing import Final

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import shown

DTYPES: Final[dict[str, pl.DataType]] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
    "text": pl.String(),
}
# Spellings of "missing" in columns of any type but text, where they may be words.
MISSING: Final = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "none", "#N/A", "?"]
_TRUE: Final = ["true", "t", "yes", "y", "1"]
_FALSE: Final = ["false", "f", "no", "n", "0"]
_DATETIMES: Final = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)
_ZONED: Final = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")


_KINDS: Final = {
    pl.Duration: "number",
    pl.String: "text",
    pl.Categorical: "text",
    pl.Enum: "text",
    pl.Time: "text",
    pl.Null: "text",
    pl.Boolean: "boolean",
    pl.Date: "date",
    pl.Datetime: "datetime",
}


def kind_of(dtype: pl.DataType) -> str:
    """The dataset type that holds a polars type; "" if none does."""
    family = dtype.base_type()
    if dtype.is_integer():
        return "number" if family in {pl.UInt64, pl.Int128, pl.UInt128} else "integer"
    if dtype.is_float() or dtype.is_decimal():
        return "number"
    return _KINDS.get(family, "")


def settle(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A typed column in the form a dataset stores: see `DTYPES`; "" and NaN become null."""
    kind = kind_of(dtype)
    if kind == "text":
        return blank_to_null(column.cast(pl.String))
    if kind == "number":
        seconds = column.dt.total_microseconds() / 1e6 if dtype == pl.Duration else column
        return seconds.cast(pl.Float64).fill_nan(None)
    if kind == "datetime":
        if getattr(dtype, "time_zone", None):
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.dt.cast_time_unit("us")
    return column.cast(DTYPES[kind])


def blank_to_null(column: pl.Expr) -> pl.Expr:
    """Text as a dataset stores it: the empty text is missing."""
    return pl.when(column != "").then(column)


def convert(column: pl.Expr, dtype: pl.DataType, kind: str) -> pl.Expr:
    """A stored column (of a type in `DTYPES`) as `kind`; what does not fit becomes null."""
    if dtype == DTYPES[kind] and kind != "text":
        return column
    if kind == "integer" and dtype == pl.Float64:
        return pl.when(column == column.round()).then(column.cast(pl.Int64, strict=False))
    if {dtype, DTYPES[kind]} <= {pl.Date(), pl.Datetime("us")}:
        return column.cast(DTYPES[kind])
    if dtype.is_numeric() or dtype == pl.Boolean:
        if kind == "boolean":
            return pl.when((column == 0) | (column == 1)).then(column == 1)
        if kind in {"integer", "number"}:
            return column.cast(DTYPES[kind], strict=False)
    return parse(_spell(column, dtype), kind)


def parse(column: pl.Expr, kind: str) -> pl.Expr:
    """Text as `kind`; missing spellings and misfits become null."""
    if kind == "text":
        return blank_to_null(column)
    bare = column.str.strip_chars()
    if kind == "integer":
        return bare.cast(pl.Int64, strict=False)
    if kind == "number":
        return bare.cast(pl.Float64, strict=False).fill_nan(None)
    if kind == "boolean":
        low = bare.str.to_lowercase()
        return pl.when(low.is_in(_TRUE)).then(True).when(low.is_in(_FALSE)).then(False)
    if kind == "date":
        return _of_calendar(bare.str.to_date("%Y-%m-%d", strict=False), date)
    plain = [bare.str.to_datetime(form, strict=False, time_unit="us") for form in _DATETIMES]
    zoned = [
        bare.str.to_datetime(form, strict=False, time_unit="us").dt.replace_time_zone(None)
        for form in _ZONED
    ]
    day = bare.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return _of_calendar(pl.coalesce(*plain, *zoned, day), datetime)


def beyond_calendar(column: pl.Expr, family: type[date]) -> pl.Expr:
    """Where a date or datetime lies outside the years 1 to 9999, which ISO-8601 and Python have."""
    return ~column.is_between(pl.lit(family.min), pl.lit(family.max))


def _of_calendar(column: pl.Expr, family: type[date]) -> pl.Expr:
    return pl.when(~beyond_calendar(column, family)).then(column)


def misfit(column: pl.Expr, dtype: pl.DataType, kind: str) -> pl.Expr:
    """Where a column has a value that `convert` to `kind` would lose."""
    present = column.is_not_null()
    if dtype == pl.String:
        if kind == "text":
            return pl.lit(value=False)
        present = present & ~column.str.strip_chars().is_in(MISSING)
    return present & convert(column, dtype, kind).is_null()


def refuse_misfit(
    table: pl.LazyFrame, safe: str, name: str, kind: str, lost: pl.Expr | None = None
) -> None:
    """Raise TapsterError(invalid) naming the first row whose value does not fit `kind`.

    `lost`, when given, says where a value does not.
    """
    if lost is None:
        lost = misfit(pl.col(safe), table.select(safe).collect_schema()[safe], kind)
    rows = table.select(safe).with_row_index("row", offset=1)
    found = rows.filter(lost).head(1).collect()
    if found.height:
        row, value = found.row(0)
        raise TapsterError(
            "invalid",
            f"column {shown(name)} is not {kind}: row {row:,} holds {shown(str(value))}",
            hint="correct the value, or give the column another type (text takes everything)",
            field=name,
        )


def _spell(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Datetime("us"):
        return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.f")
    return column.cast(pl.String)
