"""Which cleaning steps a training job may apply by itself.

Serving takes raw columns and the graph starts from them. A step that drops rows changes nothing
that a served row would have to repeat, so it may run before training; a column that is dropped
is one that the model does not take. A step that changes values
would make serving answer another question than training asked: it is refused here, and belongs
into a dataset version of its own, whose columns are then what the model takes.
"""

from typing import Any, Final

from tapster.contract.errors import TapsterError

ALLOWED: Final = frozenset(
    {"drop_duplicates", "drop_missing", "drop_outliers", "filter", "drop_columns", "keep_columns"}
)


def refuse_values(recipe: dict[str, Any]) -> None:
    """Raise TapsterError(unprocessable) for a step that changes values."""
    for number, step in enumerate(recipe.get("steps", []), 1):
        name = step.get("op", "") if isinstance(step, dict) else ""
        if name not in ALLOWED:
            raise TapsterError(
                "unprocessable",
                f"step {number} of the recipe ({name}) changes values; a served row would not"
                " go through it",
                hint="run `tapster data clean` with this recipe and train on the version it makes;"
                " missing values, scaling and categories are handled inside the model anyway",
                field="recipe",
            )
