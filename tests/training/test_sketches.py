"""Reference sketches: small, mergeable in spirit, and right about what they saw."""

from pathlib import Path

import numpy as np
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.training.sketches import (
    NumberSketch,
    Reference,
    TextSketch,
    read_sketches,
    write_sketches,
)

NASTY = '../../\'; DROP TABLE "x" 🍷\u202e'
ROWS = 50_000


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def columns() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    numbers = generator.exponential(size=ROWS).astype(np.float32)
    numbers[:100] = np.nan
    words = np.array([f"word {n}" for n in range(3000)], dtype=np.object_)
    text = words[(generator.pareto(1.5, ROWS) * 3).astype(int) % 3000]
    text[:250] = ""
    return {NASTY: numbers, "text": text, "empty": np.full(10, np.nan, dtype=np.float32)}


@pytest.fixture(scope="module")
def reference(columns: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("package")
    outputs = {
        "prediction": np.array(["yes", "no", "yes"], dtype=np.object_),
        "yes": np.array([0.9, 0.2, 0.7], dtype=np.float32),
        "flag": np.array([True, False, True]),
    }
    write_sketches(folder, columns, {NASTY: "number", "text": "text", "empty": "date"}, outputs)
    found = files(folder)
    assert set(found) == {"sketches/index.json", *(f"sketches/{n}.bin" for n in range(6))}
    assert sum(map(len, found.values())) < 40_000
    return read_sketches(found)


def number(sketch: object) -> NumberSketch:
    assert isinstance(sketch, NumberSketch)
    return sketch


def text(sketch: object) -> TextSketch:
    assert isinstance(sketch, TextSketch)
    return sketch


def test_columns_keep_their_exact_names_and_order(reference: Reference) -> None:
    assert list(reference.inputs) == [NASTY, "text", "empty"]
    assert list(reference.outputs) == ["prediction", "yes", "flag"]


def test_missing_values_are_counted_apart(reference: Reference) -> None:
    counts = {name: (s.entry.rows, s.entry.missing) for name, s in reference.inputs.items()}
    assert counts == {NASTY: (ROWS, 100), "text": (ROWS, 250), "empty": (10, 10)}


def test_quantiles_and_ranks_are_within_the_stated_error(
    reference: Reference, columns: dict[str, Array]
) -> None:
    sketch = number(reference.inputs[NASTY])
    known = np.sort(columns[NASTY][100:])
    assert sketch.rank_error < 0.015
    for rank, quantile in zip((0.01, 0.25, 0.5, 0.9), sketch.quantiles((0.01, 0.25, 0.5, 0.9)),
                              strict=True):  # fmt: skip
        assert abs(np.searchsorted(known, quantile) / len(known) - rank) < 0.03
    for value in (0.1, 1.0, 4.0):
        assert abs(sketch.rank(value) - np.mean(known <= value)) < 0.03
    assert sketch.extremes == (known[0], known[-1])


def test_distinct_and_frequent_values(reference: Reference, columns: dict[str, Array]) -> None:
    sketch = text(reference.inputs["text"])
    values, counts = np.unique(columns["text"][250:].astype(str), return_counts=True)
    assert sketch.distinct == pytest.approx(len(values), rel=0.1)
    top = values[counts.argmax()]
    assert sketch.frequent(1)[0][0] == top
    assert sketch.share(top) == pytest.approx(counts.max() / counts.sum(), abs=0.01)
    assert sketch.share("never seen") < 0.01


def test_a_column_without_values(reference: Reference) -> None:
    sketch = number(reference.inputs["empty"])
    assert sketch.quantiles([0.5]) == []
    assert np.isnan([sketch.rank(1.0), *sketch.extremes]).all()


def test_outputs(reference: Reference) -> None:
    assert text(reference.outputs["prediction"]).frequent() == [("yes", 2), ("no", 1)]
    assert number(reference.outputs["yes"]).quantiles([1.0]) == [np.float32(0.9)]
    assert number(reference.outputs["flag"]).rank(0.0) == pytest.approx(1 / 3)
    assert reference.outputs["flag"].entry.kind == "boolean"


def test_long_values_are_told_apart(tmp_path: Path) -> None:
    long = "é" * 100_000
    values = np.array([long + "a", long + "b", long + "a"], dtype=np.object_)
    write_sketches(tmp_path, {"t": values}, {"t": "text"})
    found = files(tmp_path)
    assert sum(map(len, found.values())) < 2000
    sketch = text(read_sketches(found).inputs["t"])
    assert sketch.share(long + "a") == pytest.approx(2 / 3)
    assert sketch.share(long + "b") == pytest.approx(1 / 3)
    assert round(sketch.distinct) == 2


@pytest.mark.parametrize("name", ["sketches/index.json", "sketches/0.bin", "sketches/1.bin"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    columns = {"a": np.arange(3.0), "b": np.array(["x"] * 3, dtype=np.object_)}
    write_sketches(tmp_path, columns, {"a": "number", "b": "text"})
    found = files(tmp_path)
    for damaged in ({**found, name: b""}, {key: found[key] for key in found if key != name}):
        with pytest.raises(TapsterError) as caught:
            read_sketches(damaged)
        assert caught.value.code == "unprocessable"
