"""Recipes and splits as they are declared: which steps exist, what they take, what is wrong.

No polars here: the control process refuses a bad recipe before a job starts.
"""

import difflib
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import TYPES, check_names, shown, unknown_column

MAX_STEPS: Final = 200
SPLIT_KINDS: Final = ("random", "stratified", "time", "group")
DATE_PARTS: Final = (
    "year", "quarter", "month", "week", "day", "weekday", "day_of_year", "hour", "minute", "days",
)  # fmt: skip
OPERATORS: Final = (
    "==", "!=", "<", "<=", ">", ">=", "in", "not_in", "is_missing", "is_present",
)  # fmt: skip
_REQUIRED: Final = object()


@dataclass(frozen=True)
class Parameter:
    """What a step's parameter may be. `kind` is text, flag, count, number, list, map or value."""

    kind: str
    default: Any = _REQUIRED
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether a step must give it."""
        return self.default is _REQUIRED


@dataclass(frozen=True)
class Operation:
    """A step. `columns` is optional (every column it fits), required or none."""

    columns: str
    parameters: dict[str, Parameter]


_OUTLIERS: Final = {
    "method": Parameter("text", "iqr", ("iqr", "robust_z", "quantile")),
    "factor": Parameter("number", None),
    "low": Parameter("number", 0.01),
    "high": Parameter("number", 0.99),
}

OPERATIONS: Final[dict[str, Operation]] = {
    "drop_duplicates": Operation("optional", {}),
    "drop_missing": Operation("optional", {}),
    "fill_missing": Operation(
        "optional",
        {
            "method": Parameter("text", "", ("mean", "median", "mode", "constant")),
            "value": Parameter("value", None),
        },
    ),
    "clip_outliers": Operation("optional", _OUTLIERS),
    "drop_outliers": Operation("optional", _OUTLIERS),
    "cast": Operation(
        "required",
        {
            "to": Parameter("text", _REQUIRED, TYPES),
            "misfits": Parameter("text", "refuse", ("refuse", "missing")),
        },
    ),
    "normalise_text": Operation(
        "optional",
        {
            "strip": Parameter("flag", default=True),
            "collapse": Parameter("flag", default=True),
            "case": Parameter("text", "lower", ("lower", "upper", "title", "keep")),
            "unicode": Parameter("text", "NFKC", ("NFC", "NFD", "NFKC", "NFKD", "keep")),
        },
    ),
    "replace": Operation("required", {"values": Parameter("map")}),
    "scale": Operation(
        "optional", {"method": Parameter("text", "standard", ("standard", "minmax", "robust"))}
    ),
    "encode": Operation(
        "optional",
        {
            "method": Parameter("text", "onehot", ("onehot", "ordinal", "frequency")),
            "limit": Parameter("count", 50),
        },
    ),
    "dates": Operation(
        "optional",
        {
            "parts": Parameter("list", ["year", "month", "day", "weekday"]),
            "keep": Parameter("flag", default=False),
        },
    ),
    "bin": Operation(
        "required",
        {
            "method": Parameter("text", "quantile", ("quantile", "width", "edges")),
            "bins": Parameter("count", 5),
            "edges": Parameter("list", None),
        },
    ),
    "rename": Operation("none", {"names": Parameter("map")}),
    "drop_columns": Operation("required", {}),
    "keep_columns": Operation("required", {}),
    "filter": Operation(
        "none",
        {
            "column": Parameter("text"),
            "operator": Parameter("text", _REQUIRED, OPERATORS),
            "value": Parameter("value", None),
        },
    ),
}


def check(recipe: dict[str, Any], columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a recipe with every default filled in.

    `columns` are {"name", "type"} of the table it is for. Raises TapsterError(invalid) naming the
    step (from 1) and what is wrong: an unknown operation, parameter or column, a bad value.
    """
    steps = recipe.get("steps") if isinstance(recipe, dict) else None
    if not isinstance(steps, list) or not steps or set(recipe) - {"steps", "name", "description"}:
        raise TapsterError(
            "invalid",
            "a recipe is an object with a list of steps",
            hint='for example {"steps": [{"op": "drop_duplicates"}]}',
            field="recipe",
        )
    if len(steps) > MAX_STEPS:
        raise TapsterError(
            "invalid", f"a recipe has at most {MAX_STEPS} steps", hint="split it", field="recipe"
        )
    full = [check_step(step, number) for number, step in enumerate(steps, 1)]
    known: list[str] | None = [column["name"] for column in columns]
    for number, step in enumerate(full, 1):
        if known is not None:
            known = after(step, known, number)
    return full


def check_step(step: Any, number: int) -> dict[str, Any]:
    """One step with its defaults. Raises TapsterError(invalid)."""
    if not isinstance(step, dict) or not isinstance(step.get("op"), str):
        raise refuse(number, "is not an object with an op", 'such as {"op": "drop_duplicates"}')
    name = step["op"]
    operation = OPERATIONS.get(name)
    if operation is None:
        close = difflib.get_close_matches(name, OPERATIONS, n=2)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else "operations are " + ", ".join(OPERATIONS)
        )
        raise refuse(number, f"has the unknown operation {shown(name)}", hint)
    allowed = {"op", *operation.parameters} | (
        {"columns"} if operation.columns != "none" else set()
    )
    for key in step:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            more = (
                f"did you mean {close[0]}?" if close else f"it takes {', '.join(sorted(allowed))}"
            )
            raise refuse(number, f"({name}) has the unknown parameter {shown(str(key))}", more)
    full = {"op": name}
    if operation.columns != "none":
        full["columns"] = _columns(step, operation, number)
    for key, parameter in operation.parameters.items():
        full[key] = _value(step, key, parameter, number)
    _check_together(full, number)
    return full


def _columns(step: dict[str, Any], operation: Operation, number: int) -> list[str] | None:
    given = step.get("columns")
    if given is None and operation.columns == "optional":
        return None
    if isinstance(given, str):
        given = [given]
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(name, str) for name in given)
        or len(set(given)) != len(given)
    ):
        raise refuse(
            number, f"({step['op']}) needs columns, a list of different names", "name at least one"
        )
    return given


def _value(step: dict[str, Any], key: str, parameter: Parameter, number: int) -> Any:
    if key not in step or step[key] is None:
        if parameter.required:
            raise refuse(
                number, f"({step['op']}) needs {key}", _wanted(parameter) or f"give {key}", key
            )
        return parameter.default
    value = step[key]
    fits = {
        "text": isinstance(value, str),
        "flag": isinstance(value, bool),
        "count": isinstance(value, int) and not isinstance(value, bool) and 1 < value <= 10_000,
        "number": not isinstance(value, bool) and _finite(value),
        "list": isinstance(value, list) and bool(value),
        "map": isinstance(value, dict) and bool(value),
        "value": isinstance(value, str | list) or _finite(value),
    }[parameter.kind]
    if not fits or (parameter.choices and value not in parameter.choices):
        close = difflib.get_close_matches(str(value), parameter.choices, n=1)
        hint = (f"did you mean {close[0]}? " if close else "") + _wanted(parameter)
        raise refuse(number, f"({step['op']}) has {key} {shown(str(value))}", hint, key)
    return value


def _finite(value: Any) -> bool:
    """Whether it is a number that a 64-bit float holds."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _wanted(parameter: Parameter) -> str:
    if parameter.choices:
        return "choose one of: " + ", ".join(parameter.choices)
    return {
        "count": "give a whole number from 2 to 10,000",
        "flag": "give true or false",
        "number": "give a finite number",
        "list": "give a list",
        "map": "give an object",
    }.get(parameter.kind, "give a text")


def _check_together(step: dict[str, Any], number: int) -> None:
    """Rules that join parameters of one step."""
    op = step["op"]
    if op == "fill_missing":
        _check_fill(step, number)
    if op in {"clip_outliers", "drop_outliers"}:
        if step["factor"] is not None and step["factor"] <= 0:
            raise refuse(number, f"({op}) has a factor that is not above 0", "", "factor")
        if not 0 <= step["low"] < step["high"] <= 1:
            raise refuse(number, f"({op}) needs 0 <= low < high <= 1", "", "low")
    if op == "dates":
        for part in step["parts"]:
            if part not in DATE_PARTS:
                raise refuse(
                    number,
                    f"(dates) has the unknown part {shown(str(part))}",
                    "parts are " + ", ".join(DATE_PARTS),
                    "parts",
                )
    if op == "bin":
        _check_edges(step, number)
    if op == "filter":
        _check_filter(step, number)
    if op == "rename" and not all(isinstance(name, str) for name in step["names"].values()):
        raise refuse(number, "(rename) has a new name that is not text", "", "names")


def _check_fill(step: dict[str, Any], number: int) -> None:
    constant = step["value"] is not None
    if constant and not step["method"]:
        step["method"] = "constant"
    if constant != (step["method"] == "constant") or isinstance(step["value"], list):
        raise refuse(
            number,
            "(fill_missing) needs one value with method constant, and only then",
            "",
            "value",
        )


def _check_edges(step: dict[str, Any], number: int) -> None:
    edges = step["edges"]
    if (step["method"] == "edges") != (edges is not None):
        raise refuse(number, "(bin) needs edges with method edges, and only then", "", "edges")
    numbers = edges is None or all(map(_finite, edges))
    if not numbers or (edges and any(a >= b for a, b in itertools.pairwise(edges))):
        raise refuse(number, "(bin) needs edges that are numbers and rise", "", "edges")


def _check_filter(step: dict[str, Any], number: int) -> None:
    operator, value = step["operator"], step["value"]
    if operator.startswith("is_"):
        fits = value is None
    elif operator in {"in", "not_in"}:
        fits = isinstance(value, list) and bool(value)
    else:
        fits = value is not None and not isinstance(value, list)
    if not fits:
        raise refuse(
            number,
            f"(filter) with {operator} has the value {shown(str(value))}",
            "in and not_in take a list, is_missing and is_present take none, others take one value",
            "value",
        )


def after(step: dict[str, Any], names: list[str], number: int) -> list[str] | None:
    """The column names once a step is done; None when only the data can tell.

    Raises TapsterError(invalid) for a column that is not there.
    """
    op = step["op"]
    used = [step["column"]] if op == "filter" else list(step.get("columns") or [])
    used += list(step["names"]) if op == "rename" else []
    for name in used:
        if name not in names:
            found = unknown_column(name, names)
            raise refuse(number, f"({op}): {found.message}", found.hint, "columns")
    if op == "rename":
        return check_names([step["names"].get(name, name) for name in names], f"step {number}")
    if op == "drop_columns":
        left = [name for name in names if name not in used]
        if not left:
            raise refuse(number, "(drop_columns) would leave no column", "keep at least one")
        return left
    if op == "keep_columns":
        return [name for name in names if name in used]
    return None if op in {"encode", "dates"} else names


def refuse(number: int, what: str, hint: str, parameter: str = "") -> TapsterError:
    """The error for a step that cannot be done."""
    at = f"recipe.steps[{number - 1}]"
    return TapsterError(
        "invalid",
        f"step {number} {what}",
        hint=hint or "correct the step",
        field=f"{at}.{parameter}" if parameter else at,
    )


def check_split(kind: str, fractions: list[float], seed: int, column: str) -> None:
    """Raise TapsterError(invalid) for a split that cannot be made of any table."""
    if kind not in SPLIT_KINDS:
        close = difflib.get_close_matches(kind, SPLIT_KINDS, n=1)
        raise TapsterError(
            "invalid",
            f"there is no split of kind {shown(kind)}",
            hint=f"did you mean {close[0]}?" if close else "kinds are " + ", ".join(SPLIT_KINDS),
            field="kind",
        )
    if len(fractions) != 3 or not all(
        isinstance(f, int | float) and math.isfinite(f) and f >= 0 for f in fractions
    ):
        raise TapsterError(
            "invalid",
            "fractions are three numbers: the shares of train, validation and test",
            hint="for example 0.7, 0.15, 0.15",
            field="fractions",
        )
    if abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise TapsterError(
            "invalid",
            f"fractions {', '.join(f'{f:g}' for f in fractions)} do not add up to 1 "
            "with something to train on",
            hint="for example 0.7, 0.15, 0.15",
            field="fractions",
        )
    if not 0 <= seed < 1 << 63:
        raise TapsterError(
            "invalid", "a seed is a whole number from 0 to 2^63 - 1", hint="try 0", field="seed"
        )
    if (kind == "random") != (column == ""):
        raise TapsterError(
            "invalid",
            f"a {kind} split {'takes no' if kind == 'random' else 'needs a'} column",
            hint="drop it" if kind == "random" else "name the column of classes, times or groups",
            field="column",
        )
