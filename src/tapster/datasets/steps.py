"""What each operation of a recipe does to a lazy table.

Every function takes (state, step, known, number): the step with its defaults, what it fitted
before (or None) and its number for messages; it changes the state and returns what it fitted,
keyed by public column names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import polars as pl

from tapster.datasets.columns import check_names, shown
from tapster.datasets.conversion import DTYPES, convert, misfit, parse, refuse_misfit
from tapster.datasets.declarations import refuse

_NUMBERS: Final = ("integer", "number")
_TIMES: Final = ("date", "datetime")


@dataclass
class State:
    """A table under way: safe names inside, public names (in order) in `names`."""

    frame: pl.LazyFrame
    names: dict[str, str]
    made: int

    def kind(self, name: str) -> str:
        """The type of a column."""
        dtype = self.frame.collect_schema()[self.names[name]]
        return next(kind for kind, stored in DTYPES.items() if stored == dtype)

    def change(self, expressions: Mapping[str, pl.Expr]) -> None:
        """Replace columns, by public name."""
        if expressions:
            self.frame = self.frame.with_columns(
                expression.alias(self.names[name]) for name, expression in expressions.items()
            )

    def add(self, name: str, expression: pl.Expr) -> None:
        """Append a column."""
        safe = f"c{self.made}"
        self.made += 1
        self.names[name] = safe
        self.frame = self.frame.with_columns(expression.alias(safe))

    def drop(self, names: list[str]) -> None:
        """Remove columns."""
        self.frame = self.frame.drop([self.names.pop(name) for name in names])

    def measure(self, asked: dict[tuple[str, str], pl.Expr]) -> dict[str, dict[str, Any]]:
        """One streaming pass: {column: {key: value}} of aggregate expressions."""
        found: dict[str, dict[str, Any]] = {}
        if asked:
            numbered = [expression.alias(f"m{i}") for i, expression in enumerate(asked.values())]
            row = self.frame.select(numbered).collect(engine="streaming").row(0)
            for (name, key), value in zip(asked, row, strict=True):
                found.setdefault(name, {})[key] = value
        return found


Step = dict[str, Any]
Known = dict[str, Any] | None


def chosen(state: State, step: Step, kinds: tuple[str, ...], number: int) -> list[str]:
    """The step's columns, or every one of a fitting type. Refuses one of another type."""
    if step["columns"] is None:
        return [name for name in state.names if state.kind(name) in kinds]
    for name in step["columns"]:
        if state.kind(name) not in kinds:
            raise refuse(
                number,
                f"({step['op']}) takes {' or '.join(kinds)} columns; {shown(name)} is "
                f"{state.kind(name)}",
                "choose other columns, or cast it first",
                "columns",
            )
    return list(step["columns"])


def column(state: State, name: str) -> pl.Expr:
    """A column by its public name."""
    return pl.col(state.names[name])


def drop_duplicates(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Keep the first of the rows that agree in the columns."""
    subset = [state.names[name] for name in step["columns"] or state.names]
    state.frame = state.frame.unique(subset=subset, keep="first", maintain_order=True)
    return {}


def drop_missing(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Drop rows with a missing value in the columns."""
    names = step["columns"] or list(state.names)
    state.frame = state.frame.filter(
        pl.all_horizontal(column(state, name).is_not_null() for name in names)
    )
    return {}


def fill_missing(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Put a value where there is none: by default the median of numbers, else the mode."""
    method = step["method"]
    kinds = _NUMBERS if method in {"mean", "median"} else tuple(DTYPES)
    names = chosen(state, step, kinds, number)
    if known is None and method == "constant":
        if step["columns"] is None:
            names = [n for n in names if _fits(step["value"], state.kind(n))]
        known = {name: _constant(state, name, step["value"], number) for name in names}
    elif known is None:
        known = {}
        measured = state.measure(
            {(n, "v"): _central(column(state, n), state.kind(n), method) for n in names}
        )
        known = {name: _plain(found["v"]) for name, found in measured.items()}
    changes = {}
    for name in names:
        if known.get(name) is not None:
            changes[name] = _filled(column(state, name), state.kind(name), known[name])
    state.change(changes)
    return known


def _central(values: pl.Expr, kind: str, method: str) -> pl.Expr:
    if kind in _NUMBERS and method in {"", "median"}:
        middle = values.median()
        return middle.round().cast(pl.Int64) if kind == "integer" else middle
    if kind in _NUMBERS and method == "mean":
        return values.mean()
    return values.drop_nulls().mode().sort().first()


def _filled(values: pl.Expr, kind: str, value: Any) -> pl.Expr:
    if kind == "integer" and isinstance(value, float):
        return values.cast(pl.Float64).fill_null(value)
    return values.fill_null(_literal(value, kind))


def _literal(value: Any, kind: str) -> pl.Expr:
    if kind in _TIMES and isinstance(value, str):
        return parse(pl.lit(value), kind)
    return pl.lit(value, dtype=DTYPES[kind])


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind in _NUMBERS
    return kind == "text"


def _constant(state: State, name: str, value: Any, number: int) -> Any:
    kind = state.kind(name)
    if _fits(value, kind) and not (kind == "integer" and isinstance(value, float)):
        return value
    if isinstance(value, float) and kind == "integer":
        return int(value) if value.is_integer() else value
    moment = isinstance(value, str) and kind in _TIMES
    if moment and pl.select(parse(pl.lit(value), kind)).item() is not None:
        return value
    raise refuse(
        number, f"has the value {shown(str(value))} for {shown(name)}, which is {kind}", "", "value"
    )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date | datetime) else value


def _fences(state: State, step: Step, names: list[str]) -> dict[str, Any]:
    """The lowest and highest value of each column that are no outliers. See `profiling`."""
    if step["method"] == "quantile":
        ends = {"low": step["low"], "high": step["high"]}
        return state.measure(
            {
                (name, key): column(state, name).quantile(q, "linear")
                for name in names
                for key, q in ends.items()
            }
        )
    points = {"lower": 0.25, "middle": 0.5, "upper": 0.75}
    found = state.measure(
        {
            (name, key): column(state, name).cast(pl.Float64).quantile(q, "linear")
            for name in names
            for key, q in points.items()
        }
    )
    found = {name: point for name, point in found.items() if point["middle"] is not None}
    if step["method"] == "iqr":
        reach = {n: (step["factor"] or 1.5) * (p["upper"] - p["lower"]) for n, p in found.items()}
        return {
            name: {"low": p["lower"] - reach[name], "high": p["upper"] + reach[name]}
            for name, p in found.items()
        }
    deviations = state.measure(
        {
            (name, "mad"): (column(state, name).cast(pl.Float64) - point["middle"]).abs().median()
            for name, point in found.items()
        }
    )
    fences = {}
    for name, point in found.items():
        away = (step["factor"] or 3.5) * deviations[name]["mad"] / 0.6745
        if away > 0:  # over half the values are one: the robust z is not defined
            fences[name] = {"low": point["middle"] - away, "high": point["middle"] + away}
    return fences


def clip_outliers(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Pull values outside the fences to the nearest one."""
    names = chosen(state, step, _NUMBERS, number)
    fences = _fences(state, step, names) if known is None else known
    changes = {}
    for name, fence in fences.items():
        values = column(state, name)
        outside = (values < fence["low"]) | (values > fence["high"])
        if state.kind(name) == "integer":
            low, high = _inner(fence)
            clipped = values.clip(low, high)
        else:
            clipped = values.clip(fence["low"], fence["high"])
        changes[name] = pl.when(outside).then(clipped).otherwise(values)
    state.change(changes)
    return fences


def _inner(fence: dict[str, Any]) -> tuple[int, int]:
    """Fences of whole numbers, no wider than the fractional ones."""
    low, high = math.ceil(fence["low"]), math.floor(fence["high"])
    return (low, high) if low <= high else (low, low)


def drop_outliers(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Drop rows with a value outside the fences."""
    names = chosen(state, step, _NUMBERS, number)
    fences = _fences(state, step, names) if known is None else known
    for name, fence in fences.items():
        values = column(state, name)
        inside = (values >= fence["low"]) & (values <= fence["high"])
        state.frame = state.frame.filter(inside | values.is_null())
    return fences


def cast(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Change the type of columns; what does not fit is refused, or becomes missing."""
    changes = {}
    for name in step["columns"]:
        safe = state.names[name]
        dtype = state.frame.collect_schema()[safe]
        values = convert(pl.col(safe), dtype, step["to"])
        lost = misfit(pl.col(safe), dtype, step["to"])
        if step["to"] == "number":
            lost = lost | values.is_infinite()
            values = pl.when(values.is_finite()).then(values)
        if step["misfits"] == "refuse":
            refuse_misfit(state.frame, safe, name, step["to"], lost)
        changes[name] = values
    state.change(changes)
    return {}


def normalise_text(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Unicode form, case and white space; a text that becomes empty is missing."""
    changes = {}
    for name in chosen(state, step, ("text",), number):
        text = column(state, name)
        if step["unicode"] != "keep":
            text = text.str.normalize(step["unicode"])
        if step["collapse"]:
            text = text.str.replace_all(r"\s+", " ")
        if step["strip"]:
            text = text.str.strip_chars()
        if step["case"] != "keep":
            text = getattr(text.str, f"to_{step['case']}case")()
        changes[name] = pl.when(text != "").then(text)
    state.change(changes)
    return {}


def replace(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Put texts in the place of others; null makes a value missing."""
    pairs = step["values"]
    if not all(value is None or isinstance(value, str) for value in pairs.values()):
        raise refuse(number, "(replace) maps to something but text or null", "", "values")
    changes = {}
    for name in chosen(state, step, ("text",), number):
        old, new = pl.Series(list(pairs)), pl.Series(list(pairs.values()), dtype=pl.String)
        changes[name] = column(state, name).replace(old, new)
    state.change(changes)
    return {}


def rename(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Give columns other names."""
    names = [step["names"].get(name, name) for name in state.names]
    names = check_names(names, f"step {number}")
    state.names = dict(zip(names, state.names.values(), strict=True))
    return {}


def drop_columns(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Leave columns out."""
    if len(step["columns"]) == len(state.names):
        raise refuse(number, "(drop_columns) would leave no column", "keep at least one")
    state.drop(step["columns"])
    return {}


def keep_columns(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Leave all other columns out."""
    state.drop([name for name in state.names if name not in set(step["columns"])])
    return {}


def row_filter(state: State, step: Step, known: Known, number: int) -> dict[str, Any]:
    """Keep rows whose value satisfies the condition; a missing value satisfies none but its own."""
    name, operator = step["column"], step["operator"]
    values, kind = column(state, name), state.kind(name)
    if operator.startswith("is_"):
        state.frame = state.frame.filter(
            values.is_null() if operator == "is_missing" else values.is_not_null()
        )
        return {}
    given = step["value"] if isinstance(step["value"], list) else [step["value"]]
    common = _common(kind, given)
    wanted = [_literal(_constant(state, name, value, number), common) for value in given]
    values = values.cast(DTYPES[common])
    if operator in {"in", "not_in"}:
        found = pl.any_horizontal(values == value for value in wanted)
        state.frame = state.frame.filter(found if operator == "in" else ~found)
        return {}
    compare: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }
    state.frame = state.frame.filter(compare[operator](values, wanted[0]))
    return {}


def _common(kind: str, given: list[Any]) -> str:
    fractional = any(isinstance(value, float) for value in given)
    return "number" if kind == "integer" and fractional else kind
