"""k nearest neighbours, written so that ONNX finds the very same ones."""

from typing import Any, Final

import numpy as np

from tapster.contract.inference import Array
from tapster.training.trainers import EVERY, Needs, Setting, Space

CHUNK: Final = 1024


class NearestNeighbours:
    """Mean of the k nearest training rows by Euclidean distance of standardised columns."""

    name = "knn"
    tasks = EVERY
    needs = Needs(scale=True)
    requires: tuple[str, ...] = ()
    largest = 20_000

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """Ten neighbours, near ones counting more."""
        return {"neighbours": 10, "weights": "distance"}

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """See Trainer."""
        return {
            "neighbours": draw.suggest_int("neighbours", 1, 40, log=True),
            "weights": draw.suggest_categorical("weights", ["uniform", "distance"]),
        }

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """See Trainer."""
        return Neighbours(
            parameters["neighbours"], parameters["weights"], setting.task != "regression"
        )

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """Distances by one product in double, the k least, and their weighted mean."""
        double, single = 11, 1
        wide = graph.add("Cast", features, to=double)
        axes = graph.constant(np.array([1], np.int64))
        own = graph.add("ReduceSum", graph.add("Mul", wide, wide), axes, keepdims=1)
        points = estimator.points_.astype(np.float64)
        cross = graph.add("MatMul", wide, graph.constant(-2.0 * points.T.copy()))
        others = graph.constant((points**2).sum(axis=1).reshape(1, -1))
        square = graph.add("Add", graph.add("Add", cross, own), others)
        square = graph.add("Cast", square, to=single)
        square = graph.add("Max", square, graph.constant(np.zeros(1, np.float32)))
        count = graph.constant(np.array([estimator.count_], np.int64))
        near, which = graph.add_many("TopK", 2, square, count, axis=1, largest=0, sorted=1)
        votes = graph.add("Gather", graph.constant(estimator.votes_), which, axis=0)
        weights = self._weights(graph, estimator, near)
        total = graph.add("ReduceSum", weights, axes, keepdims=1)
        last = graph.constant(np.array([2], np.int64))
        spread = graph.add("Unsqueeze", weights, last)
        summed = graph.add("ReduceSum", graph.add("Mul", votes, spread), axes, keepdims=0)
        means = graph.add("Div", summed, total)
        if not estimator.classifier:
            return str(means)
        scaled = graph.add("Add", graph.add("Mul", means, graph.constant(estimator.share_)),
                           graph.constant(estimator.prior_))  # fmt: skip
        return str(scaled)

    def _weights(self, graph: Any, estimator: Any, near: str) -> str:
        if estimator.weights == "distance":
            floor = graph.constant(np.array([FLOOR], np.float32))
            return str(graph.add("Reciprocal", graph.add("Add", graph.add("Sqrt", near), floor)))
        same = graph.add("Mul", near, graph.constant(np.zeros(1, np.float32)))
        return str(graph.add("Add", same, graph.constant(np.ones(1, np.float32))))


# Weight of a row at distance d is 1 / (d + FLOOR): at d = 0 rounding may not decide.
FLOOR: Final = 0.01


class Neighbours:
    """The estimator. Equal distances (in float32) are taken in the order of the training rows."""

    def __init__(self, neighbours: int, weights: str, classifier: bool) -> None:
        self.neighbours, self.weights, self.classifier = neighbours, weights, classifier

    def fit(self, matrix: Array, target: Array) -> "Neighbours":
        """Keep the rows float32 [n, d] and their one-hot classes or numbers."""
        self.n_features_in_ = matrix.shape[1]
        self.points_ = np.asarray(matrix, np.float32)
        self.count_ = min(self.neighbours, len(matrix))
        if self.classifier:
            self.classes_, codes = np.unique(target, return_inverse=True)
            self.votes_ = np.eye(len(self.classes_), dtype=np.float32)[codes]
            # The class shares count as one more neighbour: no probability is ever 0.
            self.share_ = np.array([self.count_ / (self.count_ + 1)], np.float32)
            self.prior_ = self.votes_.mean(axis=0) / np.float32(self.count_ + 1)
        else:
            self.votes_ = np.asarray(target, np.float32).reshape(-1, 1)
        return self

    def predict(self, matrix: Array) -> Array:
        """Weighted means float32 [n]."""
        return self._means(matrix)[:, 0]

    def predict_proba(self, matrix: Array) -> Array:
        """Weighted shares float32 [n, classes]."""
        shares: Array = self._means(matrix) * self.share_ + self.prior_
        return shares

    def _means(self, matrix: Array) -> Array:
        points = self.points_.astype(np.float64)
        norms = (points**2).sum(axis=1)
        parts = [
            self._chunk(matrix[start : start + CHUNK].astype(np.float64), points, norms)
            for start in range(0, len(matrix), CHUNK)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.votes_.shape[1]), np.float32)

    def _chunk(self, rows: Array, points: Array, norms: Array) -> Array:
        square = rows @ (-2.0 * points.T) + (rows**2).sum(axis=1, keepdims=True) + norms
        near = np.maximum(square.astype(np.float32), 0)
        which = np.argsort(near, axis=1, kind="stable")[:, : self.count_]
        if self.weights == "distance":
            nearest = np.take_along_axis(near, which, axis=1)
            weights = 1 / (np.sqrt(nearest) + np.float32(FLOOR))
        else:
            weights = np.ones(which.shape, np.float32)
        summed = (self.votes_[which] * weights[:, :, None]).sum(axis=1)
        result: Array = summed / weights.sum(axis=1, keepdims=True)
        return result
