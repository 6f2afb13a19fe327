"""Operations of a recipe that make new numbers: scaling, encoding, dates, binning."""

from typing import Any, Final

import polars as pl

from tapster.datasets.columns import shown
from tapster.datasets.conversion import DTYPES
from tapster.datasets.declarations import refuse
from tapster.datasets.steps import Known, State, Step, chosen, column

_NUMBERS: Final = ("integer", "number")


def scale(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """(x - centre) / spread: mean and deviation, minimum and range, or median and IQR."""
    names = chosen(state, step, _NUMBERS, number)
    if known is None:
        asked = {
            (name, key): measure
            for name in names
            for key, measure in _spread(column(state, name).cast(pl.Float64), step["method"])
        }
        known = {
            name: {"centre": found["centre"], "spread": found["spread"] or 1.0}
            for name, found in state.measure(asked).items()
            if found["centre"] is not None
        }
    state.change(
        {
            name: (column(state, name).cast(pl.Float64) - fit["centre"]) / fit["spread"]
            for name, fit in known.items()
        }
    )
    return known


def _spread(values: pl.Expr, method: str) -> list[tuple[str, pl.Expr]]:
    if method == "minmax":
        return [("centre", values.min()), ("spread", values.max() - values.min())]
    if method == "robust":
        iqr = values.quantile(0.75, "linear") - values.quantile(0.25, "linear")
        return [("centre", values.median()), ("spread", iqr)]
    return [("centre", values.mean()), ("spread", values.std(ddof=0))]


def encode(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Texts and booleans as numbers: one column a category, one code, or one frequency.

    A category that was not there when the step was fitted is none of the columns, code -1 or
    frequency 0; a missing value stays missing (in one-hot columns: none of them).
    """
    names = chosen(state, step, ("text", "boolean"), number)
    if known is None:
        known = {name: _categories(state, step, name, number) for name in names}
    for name, fit in known.items():
        text = column(state, name).cast(pl.String)
        categories, shares = fit["categories"], fit["shares"]
        if step["method"] == "onehot":
            for category in categories:
                made = f"{name}={category}"
                if made in state.names:
                    raise refuse(number, f"(encode) makes {shown(made)}, which exists", "rename it")
                state.add(made, (text == category).fill_null(value=False).cast(pl.Int64))
            state.drop([name])
            continue
        ordinal = step["method"] == "ordinal"
        codes = pl.Series(range(len(categories)) if ordinal else shares, strict=True)
        dtype = DTYPES["integer" if ordinal else "number"]
        coded = text.replace_strict(
            pl.Series(categories, dtype=pl.String),
            codes.cast(dtype),
            default=-1 if ordinal else 0.0,
            return_dtype=dtype,
        )
        state.change({name: pl.when(text.is_not_null()).then(coded)})
    return known


def _categories(state: State, step: Step, name: str, number: int) -> dict[str, Any]:
    counted = (
        state.frame.select(column(state, name).cast(pl.String).alias("x"))
        .drop_nulls()
        .group_by("x")
        .len()
        .sort("x")
        .collect(engine="streaming")
    )
    if step["method"] == "onehot" and counted.height > step["limit"]:
        raise refuse(
            number,
            f"(encode) finds {counted.height:,} different values in {shown(name)}; "
            f"its limit is {step['limit']}",
            "raise limit, or encode it as ordinal or frequency",
            "limit",
        )
    total = max(1, int(counted["len"].sum()))
    return {
        "categories": counted["x"].to_list(),
        "shares": [count / total for count in counted["len"]],
    }


def dates(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Parts of dates as whole numbers, in columns NAME_year, NAME_month ...

    Weekdays are 1 (Monday) to 7; `days` counts from 1970-01-01.
    """
    for name in chosen(state, step, ("date", "datetime"), number):
        moment = column(state, name)
        parts = {
            "year": moment.dt.year(),
            "quarter": moment.dt.quarter(),
            "month": moment.dt.month(),
            "week": moment.dt.week(),
            "day": moment.dt.day(),
            "weekday": moment.dt.weekday(),
            "day_of_year": moment.dt.ordinal_day(),
            "hour": moment.cast(pl.Datetime("us")).dt.hour(),
            "minute": moment.cast(pl.Datetime("us")).dt.minute(),
            "days": moment.cast(pl.Date).to_physical(),
        }
        for part in step["parts"]:
            made = f"{name}_{part}"
            if made in state.names:
                raise refuse(number, f"(dates) makes {shown(made)}, which exists", "rename it")
            state.add(made, parts[part].cast(pl.Int64))
        if not step["keep"]:
            state.drop([name])
    return {}


def bins(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Numbers as the number of their interval, from 0; an edge belongs to the upper interval."""
    names = chosen(state, step, _NUMBERS, number)
    if known is None:
        known = {name: edges for name in names if (edges := _edges(state, step, name)) is not None}
    changes = {}
    for name, edges in known.items():
        values = column(state, name).cast(pl.Float64)
        code = pl.sum_horizontal(
            [pl.lit(0, pl.Int64), *((values >= edge).cast(pl.Int64) for edge in edges)]
        )
        changes[name] = pl.when(values.is_not_null()).then(code)
    state.change(changes)
    return known


def _edges(state: State, step: Step, name: str) -> list[float] | None:
    if step["method"] == "edges":
        return [float(edge) for edge in step["edges"]]
    values, count = column(state, name).cast(pl.Float64), step["bins"]
    inner = range(1, count)
    if step["method"] == "width":
        found = state.measure({(name, "low"): values.min(), (name, "high"): values.max()})[name]
        if found["low"] is None:
            return None
        width = (found["high"] - found["low"]) / count
        return [found["low"] + width * i for i in inner] if width > 0 else []
    asked = {(name, str(i)): values.quantile(i / count, "linear") for i in inner}
    points = [point for point in state.measure(asked)[name].values() if point is not None]
    return sorted(set(points)) if points else None
