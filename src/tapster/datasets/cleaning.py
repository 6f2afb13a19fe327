"""The clean job: a recipe over a version makes the next one, streamed."""

import hashlib
import json
from typing import Any

import polars as pl

from tapster.contract.errors import TapsterError
from tapster.datasets.importing import Stages, finish
from tapster.datasets.recipes import apply_recipe
from tapster.datasets.tables import Table, full_disk, write_parquet
from tapster.jobs.context import JobContext


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Apply `task["recipe"]` to the version in `context.inputs["dataset"]`.

    Answers what an import does, and `parent`, the digest of the version it began with. The new
    digest names that and the recipe; `source` records the recipe and the values fitted to the
    data, with which the steps can be replayed.
    """
    stages = Stages(context)
    data = pl.scan_parquet(context.inputs["dataset"] / "data.parquet", glob=False)
    rows = int(data.select(pl.len()).collect().item())
    output = context.output("dataset")
    try:
        fitting = stages("fitting", 0.02, 0.4)
        cleaned, fitted = apply_recipe(data, task["recipe"], advance=fitting)
        write_parquet(cleaned, output / "data.parquet", rows, stages("writing", 0.4, 0.7))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise full_disk(error) or TapsterError(
            "unprocessable",
            f"the recipe cannot be applied: {str(error).splitlines()[0]}",
            hint="check that each step fits the types of its columns",
            field="recipe",
        ) from error
    name = {"parent": task["digest"], "recipe": task["recipe"], "clean": 1}
    table = Table(
        cleaned,
        [],
        hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest(),
        rows,
        source={"kind": "recipe", "recipe": task["recipe"], "fitted": fitted},
    )
    return {**finish(output, table, [], stages, "refuse"), "parent": task["digest"]}
