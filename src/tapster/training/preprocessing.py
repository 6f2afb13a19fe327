"""From raw features to the matrix an estimator sees, in numpy and, bit for bit, in ONNX.

Every step is a table look-up or one float32 operation, so that both sides give equal bits: a
tree never sees a value on the other side of a threshold.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tapster.contract.inference import Array
from tapster.training.features import Features, Floats
from tapster.training.graphs import ML, GraphWriter
from tapster.training.trainers import Needs

ONE_HOT_LIMIT: Final = 24
RARE: Final = 2
# A column that spreads less cannot be scaled: the reciprocal nears the end of float32.
TINIEST: Final = 1e-30


@dataclass(frozen=True)
class OneHot:
    """Column `position` of text: one output a category; an unseen one is all zeros."""

    position: int
    categories: list[str]

    def apply(self, text: Array) -> Floats:
        """float32 [n, len(categories)]."""
        table = {category: index for index, category in enumerate(self.categories)}
        codes = np.array([table.get(v, -1) for v in text[:, self.position]], np.int64)
        matrix = np.zeros((len(text), len(self.categories)), np.float32)
        known = codes >= 0
        matrix[known, codes[known]] = 1.0
        return matrix

    def emit(self, graph: GraphWriter, text: str) -> str:
        """Write the same step."""
        column = graph.add("Gather", text, graph.constant(np.array(self.position)), axis=1)
        return graph.add("OneHotEncoder", column, domain=ML, cats_strings=self.categories, zeros=1)


@dataclass(frozen=True)
class Lookup:
    """Column `position` of text: each category a vector of numbers (target encoding)."""

    position: int
    categories: list[str]
    values: Floats
    default: Floats

    def apply(self, text: Array) -> Floats:
        """float32 [n, values.shape[1]]."""
        table = {category: index for index, category in enumerate(self.categories)}
        codes = np.array([table.get(v, len(table)) for v in text[:, self.position]], np.int64)
        result: Floats = np.vstack([self.values, self.default])[codes]
        return result

    def emit(self, graph: GraphWriter, text: str) -> str:
        """Write the same step."""
        column = graph.add("Gather", text, graph.constant(np.array(self.position)), axis=1)
        code = graph.add(
            "LabelEncoder",
            column,
            domain=ML,
            keys_strings=self.categories,
            values_int64s=list(range(len(self.categories))),
            default_int64=len(self.categories),
        )
        table = graph.constant(np.vstack([self.values, self.default]))
        return graph.add("Gather", table, code, axis=0)


@dataclass
class Preprocessor:
    """Fitted on training rows only. `width` is the number of columns it makes."""

    needs: Needs
    seed: int
    used: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    fill: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    flagged: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    encoders: list[OneHot | Lookup] = field(default_factory=list)
    shift: Floats | None = None
    scale: Floats | None = None
    width: int = 0

    def fit_transform(self, features: Features, target: Array, classes: int) -> Floats:
        """Learn from rows and their target (codes below `classes`; 0 classes is regression)."""
        blocks = [self._fit_numeric(features.numeric)]
        for position in range(features.text.shape[1]):
            block = self._fit_text(features.text, position, target, classes)
            if block is not None:
                blocks.append(block)
        matrix = np.hstack(blocks)
        if matrix.shape[1] == 0:
            matrix = np.zeros((len(features), 1), np.float32)
        self.width = matrix.shape[1]
        if self.needs.scale:
            self._fit_scale(matrix)
        return self._scaled(matrix)

    def transform(self, features: Features) -> Floats:
        """float32 [n, width] for rows seen or unseen."""
        blocks = [self._numeric(features.numeric)]
        blocks += [encoder.apply(features.text) for encoder in self.encoders]
        matrix = np.hstack(blocks)
        if matrix.shape[1] == 0:
            matrix = np.zeros((len(features), 1), np.float32)
        return self._scaled(matrix)

    def emit(self, graph: GraphWriter, numeric: str, text: str) -> str:
        """Write the same steps; `numeric` and `text` name the inputs ("" where there is none)."""
        blocks = self._emit_numeric(graph, numeric)
        blocks += [encoder.emit(graph, text) for encoder in self.encoders]
        if not blocks:
            blocks = [self._emit_nothing(graph, numeric or text)]
        matrix = graph.add("Concat", *blocks, axis=1) if len(blocks) > 1 else blocks[0]
        if self.shift is None or self.scale is None:
            return matrix
        centred = graph.add("Sub", matrix, graph.constant(self.shift))
        return graph.add("Mul", centred, graph.constant(self.scale))

    def _fit_numeric(self, numeric: Floats) -> Floats:
        missing = np.isnan(numeric)
        self.used = np.flatnonzero(~missing.all(axis=0) & _varies(numeric))
        kept, holes = numeric[:, self.used], missing[:, self.used]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            medians = np.nanmedian(kept, axis=0) if kept.size else np.zeros(0)
        self.fill = medians.astype(np.float32)
        if self.needs.missing == "native":
            # A tree that saw no hole in a column has no branch for one: its median stands in.
            self.fill[holes.any(axis=0)] = np.nan
        else:
            self.flagged = self.used[holes.mean(axis=0) > 0.001] if kept.size else self.flagged
        return self._numeric(numeric)

    def _numeric(self, numeric: Floats) -> Floats:
        kept = numeric[:, self.used]
        filled = np.where(np.isnan(kept), self.fill, kept)
        flags = np.isnan(numeric[:, self.flagged]).astype(np.float32)
        return np.hstack([filled, flags]).astype(np.float32, copy=False)

    def _emit_numeric(self, graph: GraphWriter, numeric: str) -> list[str]:
        if not len(self.used):
            return []
        kept = graph.add("Gather", numeric, graph.constant(self.used), axis=1)
        holes = graph.add("IsNaN", kept)
        blocks = [graph.add("Where", holes, graph.constant(self.fill), kept)]
        if len(self.flagged):
            flagged = graph.add("Gather", numeric, graph.constant(self.flagged), axis=1)
            blocks.append(graph.add("Cast", graph.add("IsNaN", flagged), to=1))
        return blocks

    def _emit_nothing(self, graph: GraphWriter, source: str) -> str:
        shape = graph.add("Shape", source, start=0, end=1)
        shape = graph.add("Concat", shape, graph.constant(np.array([1], np.int64)), axis=0)
        return graph.add("Expand", graph.constant(np.zeros(1, np.float32)), shape)

    def _fit_text(self, text: Array, position: int, target: Array, classes: int) -> Floats | None:
        names, counts = np.unique(text[:, position], return_counts=True)
        common = [str(name) for name, count in zip(names, counts, strict=True) if count >= RARE]
        if len(names) < 2 or not common:
            return None
        if len(names) <= ONE_HOT_LIMIT:
            encoder = OneHot(position, [str(name) for name in names])
            self.encoders.append(encoder)
            return encoder.apply(text)
        lookup, block = target_encoding(text, position, target, classes, self.seed)
        self.encoders.append(lookup)
        return block

    def _fit_scale(self, matrix: Floats) -> None:
        wide = matrix.astype(np.float64)
        deviation = wide.std(axis=0)
        # What rounding leaves of a constant; the unit that a column is given in does not matter.
        nothing = np.maximum(1e-12 * np.abs(wide).max(axis=0), TINIEST)
        deviation[deviation < nothing] = 1.0
        self.shift = wide.mean(axis=0).astype(np.float32)
        self.scale = (1.0 / deviation).astype(np.float32)

    def _scaled(self, matrix: Floats) -> Floats:
        if self.shift is None or self.scale is None:
            return np.ascontiguousarray(matrix)
        scaled: Floats = (matrix - self.shift) * self.scale
        return scaled


def target_encoding(
    text: Array, position: int, target: Array, classes: int, seed: int
) -> tuple[Lookup, Floats]:
    """Smoothed mean target a category (Micci-Barreca 2001, empirical Bayes).

    Training rows get the means of folds that they are not in, against leakage.
    """
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import TargetEncoder

    kind: Literal["continuous", "binary", "multiclass"]
    kind = "continuous" if classes == 0 else "binary" if classes == 2 else "multiclass"
    folds = KFold(5, shuffle=True, random_state=seed) if len(text) >= 10 else 2
    column = text[:, [position]]
    encoder: Any = TargetEncoder(target_type=kind, cv=folds)
    block = np.asarray(encoder.fit_transform(column, target), np.float32)
    values = np.column_stack([np.asarray(e, np.float32) for e in encoder.encodings_])
    default = np.atleast_1d(np.asarray(encoder.target_mean_, np.float32))
    # What was seen once tells nothing, and a column of identifiers would fill the graph.
    _, counts = np.unique(column[:, 0], return_counts=True)
    kept = counts >= RARE
    categories = [str(name) for name in encoder.categories_[0][kept]]
    return Lookup(position, categories, values[kept], default.reshape(1, -1)), block


def _varies(numeric: Floats) -> npt.NDArray[np.bool_]:
    if not numeric.size:
        return np.zeros(numeric.shape[1], np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        spread: npt.NDArray[np.bool_] = np.nanmin(numeric, axis=0) < np.nanmax(numeric, axis=0)
    holes = np.isnan(numeric)
    return spread | (holes.any(axis=0) & ~holes.all(axis=0))
