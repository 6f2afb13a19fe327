"""Reference sketches: what the training data and the model's answers looked like, in kilobytes.

Apache DataSketches: KLL (k=200, about 1.3 % rank error) for numbers, HyperLogLog for distinct
counts and frequent items for text. Later drift checks compare live traffic against them. Columns
may have any name, so files are numbered and `sketches/index.json` says which is whose. KLL draws
random bits of its own: the same data twice gives equally good sketches, not equal bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import ColumnKind

FOLDER: Final = "sketches"
INDEX: Final = f"{FOLDER}/index.json"
_KLL_K: Final = 200
_HLL_LG_K: Final = 12
_ITEMS_LG: Final = 10  # up to 768 values are counted exactly
_LONG: Final = 128


class Entry(msgspec.Struct, frozen=True):
    """One column: `rows` values, `missing` of them missing, the rest in `file`."""

    name: str
    kind: ColumnKind
    rows: int
    missing: int
    file: str


class _Index(msgspec.Struct, frozen=True):
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]
    version: Literal[1] = 1


class _Text(msgspec.Struct, array_like=True, frozen=True):
    distinct: bytes
    items: bytes


@dataclass(frozen=True)
class NumberSketch:
    """Quantiles of a column of floats (dates are days since 1970-01-01, booleans 0 and 1)."""

    entry: Entry
    _kll: Any

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """The values at `ranks` (0..1); empty when every value was missing."""
        return [] if self._kll.is_empty() else [float(v) for v in self._kll.get_quantiles(ranks)]

    def rank(self, value: float) -> float:
        """The share of values at most `value` (0..1); NaN when every value was missing."""
        return float("nan") if self._kll.is_empty() else float(self._kll.get_rank(value, True))

    @property
    def extremes(self) -> tuple[float, float]:
        """Exactly the least and the greatest value; NaN when every value was missing."""
        if self._kll.is_empty():
            return float("nan"), float("nan")
        return float(self._kll.get_min_value()), float(self._kll.get_max_value())

    @property
    def rank_error(self) -> float:
        """How far a rank may be off, with 99 % confidence."""
        return float(self._kll.normalized_rank_error(False))


@dataclass(frozen=True)
class TextSketch:
    """Distinct count and most frequent values of a column of text."""

    entry: Entry
    _hll: Any
    _items: Any

    @property
    def distinct(self) -> float:
        """The estimated number of different values (about 1.6 % standard error)."""
        return float(self._hll.get_estimate())

    def share(self, value: str) -> float:
        """The estimated share of present values equal to `value` (0..1)."""
        total = self._items.total_weight
        return self._items.get_estimate(_key(value)) / total if total else 0.0

    def frequent(self, count: int = 20) -> list[tuple[str, int]]:
        """The most frequent values with their estimated counts; long ones are shortened."""
        from datasketches import frequent_items_error_type

        found = self._items.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)
        return [(str(item[0]), int(item[1])) for item in found[:count]]


Sketch = NumberSketch | TextSketch


@dataclass(frozen=True)
class Reference:
    """All sketches of a package, by exact column name, in the order they were written."""

    inputs: dict[str, Sketch]
    outputs: dict[str, Sketch]


def write_sketches(
    folder: Path,
    columns: Mapping[str, Array],
    kinds: Mapping[str, ColumnKind],
    outputs: Mapping[str, Array] | None = None,
) -> None:
    """Write `sketches/` under the package folder `folder`.

    `columns` are 1-D arrays as the graph receives them: floats (NaN is missing), or objects of
    str for kind `text` ("" is missing). `outputs` are 1-D arrays of what the model answered for
    the same rows, such as `prediction` and one score a class; kinds follow their types.
    """
    (folder / FOLDER).mkdir()
    inputs = [
        _write(folder, number, name, kinds[name], values)
        for number, (name, values) in enumerate(columns.items())
    ]
    answers = [
        _write(folder, len(inputs) + number, name, _kind(values), values)
        for number, (name, values) in enumerate((outputs or {}).items())
    ]
    index = _Index(inputs=tuple(inputs), outputs=tuple(answers))
    (folder / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1))


def read_sketches(files: Mapping[str, bytes]) -> Reference:
    """The sketches among a package's verified files (name -> bytes).

    Raises TapsterError(unprocessable) when there are none or they cannot be read.
    """
    try:
        index = msgspec.json.decode(files[INDEX], type=_Index)
        return Reference(
            inputs={entry.name: _read(entry, files[entry.file]) for entry in index.inputs},
            outputs={entry.name: _read(entry, files[entry.file]) for entry in index.outputs},
        )
    except (KeyError, ValueError, RuntimeError, IndexError, msgspec.MsgspecError):
        raise TapsterError(
            "unprocessable",
            "the package has no readable reference sketches",
            hint="train the model here to have its drift watched",
        ) from None


def _write(folder: Path, number: int, name: str, kind: ColumnKind, values: Array) -> Entry:
    if values.ndim != 1:
        raise ValueError(f"expected one value a row, got shape {values.shape}")
    file = f"{FOLDER}/{number}.bin"
    data, missing = _text(values) if kind == "text" else _numbers(values)
    (folder / file).write_bytes(data)
    return Entry(name=name, kind=kind, rows=len(values), missing=missing, file=file)


def _numbers(values: Array) -> tuple[bytes, int]:
    from datasketches import kll_floats_sketch

    floats = values.astype(np.float32)
    present = floats[np.isfinite(floats)]
    sketch = kll_floats_sketch(_KLL_K)
    sketch.update(np.ascontiguousarray(present))
    return bytes(sketch.serialize()), len(floats) - len(present)


def _text(values: Array) -> tuple[bytes, int]:
    from datasketches import frequent_strings_sketch, hll_sketch

    counts = Counter(map(str, values.tolist()))
    missing = counts.pop("", 0)
    distinct, items = hll_sketch(_HLL_LG_K), frequent_strings_sketch(_ITEMS_LG)
    for value, count in counts.items():
        distinct.update(value)
        items.update(_key(value), count)
    return msgspec.msgpack.encode(_Text(distinct.serialize_compact(), items.serialize())), missing


def _key(value: str) -> str:
    """A value as it is counted: long ones by their beginning and a digest."""
    if len(value) <= _LONG:
        return value
    return f"{value[: _LONG - 17]}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"


def _kind(values: Array) -> ColumnKind:
    kinds: dict[str, ColumnKind] = {"b": "boolean", "i": "number", "u": "number", "f": "number"}
    return kinds.get(values.dtype.kind, "text")


def _read(entry: Entry, data: bytes) -> Sketch:
    from datasketches import frequent_strings_sketch, hll_sketch, kll_floats_sketch

    if entry.kind != "text":
        return NumberSketch(entry, kll_floats_sketch.deserialize(data))
    parts = msgspec.msgpack.decode(data, type=_Text)
    return TextSketch(
        entry,
        hll_sketch.deserialize(parts.distinct),
        frequent_strings_sketch.deserialize(parts.items),
    )
