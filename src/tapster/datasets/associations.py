"""How columns go together with a target: correlation and mutual information.

The profile keeps a sample of the rows as codes and numbers (`associations.npz`); any column can
then be asked about as the target, without polars and without reading the data again.
"""

from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.datasets.columns import shown, unknown_column

ROWS: Final = 10_000
CELLS: Final = 5_000_000
BINS: Final = 10
CATEGORIES: Final = 100
LEAKING: Final = 0.98
_NONE: Final = 255
_LARGEST: Final = 3e38  # of a 32-bit float, or nearly


def write(
    path: Path,
    sample: Any,
    names: list[str],
    kinds: dict[str, str],
    columns: list[dict[str, Any]],
) -> None:
    """Keep what `with_target` needs of a polars sample: codes uint8 [k, n], numbers f4 [m, n].

    Numbers and dates are coded by decile, texts and booleans by value; texts of more than
    `CATEGORIES` values are left out. 255 is missing.
    """
    import numpy as np

    step = max(1, -(-sample.height // min(ROWS, max(500, CELLS // max(1, len(names))))))
    sample = sample.gather_every(step)
    codes, numbers, coded, numeric = [], [], [], []
    for position, (column, kind) in enumerate(kinds.items()):
        values = sample[column]
        if kind in {"text", "boolean"}:
            if columns[position]["distinct"] > CATEGORIES:
                continue
            code = values.rank("dense").fill_null(_NONE + 1).to_numpy() - 1
        else:
            plain = values.to_physical().cast(float).fill_null(float("nan")).to_numpy()
            code = _deciles(plain)
            numbers.append(_short(plain))
            numeric.append(position)
        codes.append(code.astype(np.uint8))
        coded.append(position)
    rows = sample.height
    np.savez(
        path,
        codes=np.array(codes, np.uint8).reshape(len(codes), rows),
        numbers=np.array(numbers, np.float32).reshape(len(numbers), rows),
        coded=np.array(coded, np.int32),
        numeric=np.array(numeric, np.int32),
    )


def _short(values: Any) -> Any:
    """32-bit floats that correlate alike: the values, or if more differ so, from their middle."""
    import numpy as np

    present = values[~np.isnan(values)]
    middle = np.median(present) if present.size else 0.0
    with np.errstate(over="ignore"):
        ways = [
            np.clip(way, -_LARGEST, _LARGEST).astype(np.float32)
            for way in (values, values - middle)
        ]
    return max(ways, key=lambda way: np.unique(way).size)


def _deciles(values: Any) -> Any:
    import numpy as np

    present = values[~np.isnan(values)]
    if not present.size:
        return np.full(len(values), _NONE)
    different = np.unique(present)
    if different.size > BINS:
        different = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)[:-1]))
    code = np.searchsorted(different, values, side="right") - 1
    return np.where(np.isnan(values), _NONE, np.clip(code, 0, None))


def with_target(path: Path, profile: dict[str, Any], target: str) -> dict[str, Any]:
    """{"target", "rows", "columns": [{"name", "mutual_information", "normalised", "correlation",
    "spearman"}], "warnings"}, the most informative first.

    Mutual information in nats between coded columns, over rows where both are present, less the
    bias (Miller and Madow 1955) and at least 0; "normalised" divides by the target's entropy.
    Correlations are null where a column is not numeric. Raises TapsterError(invalid) for an
    unknown target, (unprocessable) for one that has too many values to be compared.
    """
    import numpy as np

    names = [column["name"] for column in profile["columns"]]
    if target not in names:
        raise unknown_column(target, names, "target")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in ("codes", "numbers", "coded", "numeric")}
    at = names.index(target)
    coded = {int(p): i for i, p in enumerate(arrays["coded"])}
    numeric = {int(p): i for i, p in enumerate(arrays["numeric"])}
    if at not in coded:
        raise TapsterError(
            "unprocessable",
            f"{shown(target)} has too many different values to be compared as a target",
            hint=f"a text target has at most {CATEGORIES} values",
            field="target",
        )
    found = []
    for position, place in coded.items():
        if position == at:
            continue
        row = _pair(arrays, coded[at], place, numeric.get(at), numeric.get(position))
        found.append({"name": names[position], **row})
    found.sort(key=lambda row: -(row["normalised"] or 0.0))
    return {
        "target": target,
        "rows": int(arrays["codes"].shape[1]),
        "columns": found,
        "warnings": [_leak(row, target) for row in found if _leaks(row)],
    }


def _pair(
    arrays: Any, y: int, x: int, y_number: int | None, x_number: int | None
) -> dict[str, Any]:
    information, normalised = _mutual_information(arrays["codes"][y], arrays["codes"][x])
    row: dict[str, Any] = {
        "mutual_information": information,
        "normalised": normalised,
        "correlation": None,
        "spearman": None,
    }
    if y_number is not None and x_number is not None:
        a, b = arrays["numbers"][y_number], arrays["numbers"][x_number]
        row["correlation"], row["spearman"] = _correlations(a, b)
    return row


def _mutual_information(y: Any, x: Any) -> tuple[float | None, float | None]:
    import numpy as np

    both = (y != _NONE) & (x != _NONE)
    count = int(both.sum())
    if count < 2:
        return None, None
    counts = np.bincount(y[both].astype(np.int64) * 256 + x[both], minlength=65536)
    joint = counts.reshape(256, 256) / count
    of_y, of_x = joint.sum(1), joint.sum(0)
    entropy = -float((of_y[of_y > 0] * np.log(of_y[of_y > 0])).sum())
    cells = joint > 0
    expected = np.outer(of_y, of_x)
    raw = float((joint[cells] * np.log(joint[cells] / expected[cells])).sum())
    bias = (int(cells.sum()) - int((of_y > 0).sum()) - int((of_x > 0).sum()) + 1) / (2 * count)
    information = max(0.0, raw - bias)
    # A column that determines the target is not to look less than certain for the correction.
    if raw >= entropy - 1e-9:
        information = raw
    return information, min(1.0, information / entropy) if entropy > 1e-12 else None


def _correlations(a: Any, b: Any) -> tuple[float | None, float | None]:
    import numpy as np

    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both].astype(np.float64), b[both].astype(np.float64)
    if a.size < 3:
        return None, None
    return _pearson(a, b), _pearson(_ranks(a), _ranks(b))


def _pearson(a: Any, b: Any) -> float | None:
    import numpy as np

    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
    if not np.isfinite(scale) or scale == 0:
        return None
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0))


def _ranks(values: Any) -> Any:
    """Ranks from 0, ties sharing their mean."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2.0)[inverse]


def _leaks(row: dict[str, Any]) -> bool:
    strongest = max(abs(row["correlation"] or 0.0), abs(row["spearman"] or 0.0))
    return bool((row["normalised"] or 0.0) > LEAKING or strongest > LEAKING)


def _leak(row: dict[str, Any], target: str) -> dict[str, str]:
    return {
        "kind": "leaking",
        "column": row["name"],
        "message": f"{shown(row['name'])} almost determines {shown(target)}: if it is not known "
        "when a prediction is asked for, leave it out",
    }
