"""Which type each column is: candidates from a sample, confirmed against every row.

A sample alone would be wrong about a value millions of rows down; reading everything for every
type would be slow. So a sample leaves a short chain of candidates a column, and one streaming
pass finds the first of each chain that every row fits.
"""

from typing import Final

import polars as pl

from tapster.datasets.columns import shown
from tapster.datasets.conversion import DTYPES, MISSING, misfit, refuse_misfit

SAMPLE_CELLS: Final = 2_000_000
SAMPLE_ROWS: Final = 20_000
# What a column may turn out to be after its sample looked like the key.
_WIDER: Final = {
    "integer": ["integer", "number"],
    "number": ["number"],
    "boolean": ["boolean"],
    "date": ["date", "datetime"],
    "datetime": ["datetime"],
    "text": [],
}
_UNKNOWN: Final = ["integer", "number", "boolean", "date", "datetime"]


def infer(
    table: pl.LazyFrame,
    names: dict[str, str],
    loose: dict[str, bool],
    declared: dict[str, str],
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The type of every column of `table`, and notes about surprises.

    `names` gives each column's public name; `loose` the text columns whose type is to be found,
    True for any type, False for dates only (JSON's and databases' texts are texts on purpose);
    `declared` the types the user has set. Raises TapsterError(invalid) where a declared type
    does not fit, naming the row.
    """
    schema = table.collect_schema()
    kinds = {safe: _stored_kind(dtype) for safe, dtype in schema.items()}
    kinds |= declared
    free = [safe for safe in loose if safe not in declared]
    limit = max(100, min(SAMPLE_ROWS, SAMPLE_CELLS // max(1, len(free))))
    frame = table.select(free).head(limit).collect()
    chains = {safe: _chain(frame[safe], any_type=loose[safe]) for safe in free}
    chains |= {safe: [kind] for safe, kind in declared.items()}
    # Counting the rows instead would map the whole file into memory.
    if free and frame.height < limit:
        settled = {safe: chain[:1] for safe, chain in chains.items() if chain != _UNKNOWN}
        chains = {safe: settled.get(safe, []) for safe in chains}
        asked = {safe: chains[safe] for safe in declared}
    else:
        asked = chains
    misfits = _misfits(table, schema, asked, declared)
    notes = []
    for safe, kind in declared.items():
        if misfits[safe, kind]:
            refuse_misfit(table, safe, names[safe], kind)
    for safe in free:
        kinds[safe] = _first_fit(safe, chains[safe], misfits)
        if chains[safe] and kinds[safe] != chains[safe][0] and _sampled(frame[safe]):
            notes.append(_note(table, safe, names[safe], chains[safe][0], kinds[safe]))
    return kinds, notes


def _first_fit(safe: str, chain: list[str], misfits: dict[tuple[str, str], bool]) -> str:
    fits = [kind for kind in chain if not misfits.get((safe, kind))]
    # Only a column without a single value fits every type.
    return "text" if not fits or fits == _UNKNOWN else fits[0]


def _stored_kind(dtype: pl.DataType) -> str:
    return next(kind for kind, stored in DTYPES.items() if stored == dtype)


def _sampled(values: pl.Series) -> bool:
    return bool((values.is_not_null() & ~values.is_in(MISSING)).any())


def _chain(values: pl.Series, *, any_type: bool) -> list[str]:
    present = values.filter(values.is_not_null() & ~values.str.strip_chars().is_in(MISSING))
    if present.is_empty():
        return list(_UNKNOWN) if any_type else []
    present = present.unique() if present.len() > 1000 else present
    kinds = ["boolean", "integer", "number"] if any_type else []
    for kind in [*kinds, "date", "datetime"]:
        if _looks_like(present, kind):
            return _WIDER[kind]
    return []


def _looks_like(present: pl.Series, kind: str) -> bool:
    return not pl.DataFrame({"x": present}).select(_unlike(pl.col("x"), kind).any()).item()


def _unlike(column: pl.Expr, kind: str) -> pl.Expr:
    """Where a text is not what a column of `kind` holds unless somebody declares it one."""
    unfit = misfit(column, pl.String(), kind)
    bare = column.str.strip_chars()
    if kind == "boolean":
        return unfit | ~(bare.str.to_lowercase().is_in(["true", "false"]) | bare.is_in(MISSING))
    # 007 is an identifier, a telephone number or a postcode, and loses its zeros as a number.
    return unfit | bare.str.contains(r"^[+-]?0\d") if kind in {"integer", "number"} else unfit


def _misfits(
    table: pl.LazyFrame,
    schema: pl.Schema,
    chains: dict[str, list[str]],
    declared: dict[str, str],
) -> dict[tuple[str, str], bool]:
    asked = [(safe, kind) for safe, chain in chains.items() for kind in chain]
    if not asked:
        return {}
    row = table.select(
        (
            misfit(pl.col(safe), schema[safe], kind)
            if safe in declared
            else _unlike(pl.col(safe), kind)
        )
        .any()
        .alias(f"{safe}/{kind}")
        for safe, kind in asked
    ).collect(engine="streaming")
    return dict(zip(asked, (bool(value) for value in row.row(0)), strict=True))


def _note(table: pl.LazyFrame, safe: str, name: str, first: str, final: str) -> dict[str, str]:
    rows = table.select(safe).with_row_index("row", offset=1)
    odd = rows.filter(_unlike(pl.col(safe), first)).head(1).collect().row(0)
    return {
        "kind": "mixed",
        "column": name,
        "message": f"{shown(name)} begins as {first}, but row {odd[0]:,} holds "
        f"{shown(str(odd[1]))}; it was read as {final}",
    }
