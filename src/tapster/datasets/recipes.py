"""Applies recipes: each step fits what it must from the data, then is a lazy expression.

The fitted values (medians, fences, categories) come back beside the table, one object a step;
given again, they replay the same steps on other rows.
"""

from collections.abc import Callable
from typing import Any, Final

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets import declarations, steps, transforms
from tapster.datasets.columns import check_names, unknown_column
from tapster.datasets.conversion import DTYPES
from tapster.datasets.tables import Advance, safe_names

_OPERATIONS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "drop_duplicates": steps.drop_duplicates,
    "drop_missing": steps.drop_missing,
    "fill_missing": steps.fill_missing,
    "clip_outliers": steps.clip_outliers,
    "drop_outliers": steps.drop_outliers,
    "cast": steps.cast,
    "normalise_text": steps.normalise_text,
    "replace": steps.replace,
    "rename": steps.rename,
    "drop_columns": steps.drop_columns,
    "keep_columns": steps.keep_columns,
    "filter": steps.row_filter,
    "scale": transforms.scale,
    "encode": transforms.encode,
    "dates": transforms.dates,
    "bin": transforms.bins,
}


def apply_recipe(
    lazy: pl.LazyFrame,
    recipe: dict[str, Any],
    fitted: list[dict[str, Any]] | None = None,
    *,
    advance: Advance = lambda done, text: None,
) -> tuple[pl.LazyFrame, list[dict[str, Any]]]:
    """The table after every step of `recipe`, still lazy, and what each step fitted.

    `lazy` has the types of a dataset (`conversion.DTYPES`). With `fitted` (of an earlier call)
    nothing is fitted again. Raises TapsterError(invalid) naming the step that does not fit.
    """
    kinds = {stored: kind for kind, stored in DTYPES.items()}
    schema = lazy.collect_schema()
    columns = [{"name": n, "type": kinds.get(dtype, "text")} for n, dtype in schema.items()]
    full = declarations.check(recipe, columns)
    state = steps.State(
        lazy.rename(dict(zip(schema.names(), safe_names(len(columns)), strict=True))),
        dict(zip(schema.names(), safe_names(len(columns)), strict=True)),
        len(columns),
    )
    record: list[dict[str, Any]] = []
    for number, step in enumerate(full, 1):
        advance((number - 1) / len(full), f"step {number}: {step['op']}")
        known = fitted[number - 1] if fitted is not None else None
        record.append(_apply(state, step, number, known))
    renamed = {safe: name for name, safe in state.names.items()}
    return state.frame.select(list(renamed)).rename(renamed), record


def _apply(
    state: steps.State, step: dict[str, Any], number: int, known: dict[str, Any] | None
) -> dict[str, Any]:
    for name in _used(step):
        if name not in state.names:
            raise unknown_column(name, state.names, f"recipe.steps[{number - 1}]")
    try:
        found = _OPERATIONS[step["op"]](state, step, known, number)
    except TapsterError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise declarations.refuse(
            number, f"({step['op']}) cannot be applied: {error}", ""
        ) from error
    check_names(list(state.names), f"step {number}")
    return found


def _used(step: dict[str, Any]) -> list[str]:
    if step["op"] == "filter":
        return [step["column"]]
    return list(step["names"]) if step["op"] == "rename" else list(step.get("columns") or [])
