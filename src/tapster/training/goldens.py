"""Rows that a converted model must answer as its trainer does, and the check itself."""

from typing import Any, Final

import numpy as np

from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Signature, Tolerance
from tapster.runtimes import parity
from tapster.runtimes.onnx import OnnxRuntime
from tapster.training.features import Features
from tapster.training.models import Model

ORDINARY: Final = 64
MOST_EDGES: Final = 64
UNSEEN: Final = "a category that no training row has \u2603"


def golden_rows(features: Features, seed: int) -> Features:
    """Ordinary rows of the training data, and edge rows made of them.

    Edges: nothing known at all; each column missing; each text unseen, one at a time and all at
    once; each number at its least and most, at 0, and ten ranges beyond.
    """
    generator = np.random.default_rng(seed)
    count = min(ORDINARY, len(features))
    ordinary = features.take(np.sort(generator.choice(len(features), count, replace=False)))
    edges = _edges(ordinary, features, generator)
    return Features(
        np.vstack([ordinary.numeric, edges.numeric]), np.vstack([ordinary.text, edges.text])
    )


def _edges(ordinary: Features, every: Features, generator: np.random.Generator) -> Features:
    numeric, text = ordinary.numeric.shape[1], ordinary.text.shape[1]
    low, high = _range(every.numeric)
    numbers = {column: [np.nan, low[column], high[column], 0.0] for column in range(numeric)}
    changes: list[tuple[str, int, Any]] = [
        ("numeric", column, value) for column, values in numbers.items() for value in values
    ]
    changes += [("text", column, value) for column in range(text) for value in ("", UNSEEN)]
    if len(changes) > MOST_EDGES:
        picked = np.sort(generator.choice(len(changes), MOST_EDGES, replace=False))
        changes = [changes[index] for index in picked]
    rows = np.arange(len(changes)) % len(ordinary)
    single = Features(ordinary.numeric[rows].copy(), ordinary.text[rows].copy())
    cells: dict[str, Array] = {"numeric": single.numeric, "text": single.text}
    for row, (tensor, column, value) in enumerate(changes):
        cells[tensor][row, column] = value
    beyond = 10 * (high - low)
    whole = np.vstack([np.full(numeric, np.nan), low, high, low - beyond, high + beyond])
    words = np.full((5, text), UNSEEN, object)
    words[0] = ""
    return Features(
        np.vstack([single.numeric, whole]).astype(np.float32), np.vstack([single.text, words])
    )


def _range(numeric: Array) -> tuple[Array, Array]:
    known = ~np.isnan(numeric)
    some = known.any(axis=0)
    low = np.where(some, np.where(known, numeric, np.inf).min(axis=0), 0.0)
    high = np.where(some, np.where(known, numeric, -np.inf).max(axis=0), 0.0)
    limit = float(np.finfo(np.float32).max) / 1e3
    return np.clip(low, -limit, limit), np.clip(high, -limit, limit)


def tolerance_of(model: Model, spread: float) -> Tolerance:
    """Probabilities within 2e-5; predictions within 1e-5 of the target's spread.

    `spread` is the target's standard deviation; large predictions may also be off by 2e-5 of
    themselves.
    """
    if model.classes:
        return Tolerance(atol=2e-5, rtol=1e-5, margin=8e-5)
    return Tolerance(atol=1e-5 * max(spread, 1e-30), rtol=2e-5)


def check(
    model: Model, graph: bytes, signature: Signature, tolerance: Tolerance, rows: Features
) -> list[parity.Mismatch]:
    """Where the graph answers these rows otherwise than the trainer.

    Raises TapsterError(unprocessable) when ONNX Runtime refuses the graph.
    """
    manifest = Manifest(
        name="candidate", task="other", runtime="onnx", model_file="model.onnx",
        signature=signature, tolerance=tolerance, files={},
    )  # fmt: skip
    loaded = OnnxRuntime().load(manifest, {"model.onnx": graph}, threads=1)
    expected = model.outputs(rows)
    answers = loaded.run(rows.tensors(), list(expected))
    loaded.close()
    got = dict(zip(expected, answers, strict=True))
    return parity.compare(expected, got, tolerance, signature.classes)
