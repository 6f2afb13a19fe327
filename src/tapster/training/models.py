"""A fitted model: preprocessing, estimator and labels, asked in numpy or written as ONNX."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tapster.contract.inference import Array
from tapster.contract.manifest import Column, Signature, TensorSpec
from tapster.training import trainers
from tapster.training.features import Features, Floats
from tapster.training.graphs import GraphWriter
from tapster.training.preprocessing import Preprocessor
from tapster.training.trainers import Setting

TaskName = Literal["binary", "multiclass", "regression"]
Classes = list[str] | list[int] | list[float] | list[bool]


@dataclass
class Model:
    """What `fit` made. `classes` is empty for a regression; `shift` and `scale` undo scaling."""

    algorithm: str
    task: TaskName
    classes: Classes
    preprocessor: Preprocessor
    estimator: Any
    shift: float = 0.0
    scale: float = 1.0
    notes: list[str] = field(default_factory=list)

    def scores(self, features: Features) -> Floats:
        """Probabilities float32 [n, classes], or predictions float32 [n]."""
        return ask(self, self.preprocessor.transform(features))

    def outputs(self, features: Features) -> dict[str, Array]:
        """What the graph must answer for these rows."""
        scores = self.scores(features)
        if not self.classes:
            return {"prediction": scores}
        labels = label_array(self.classes)[scores.argmax(axis=1)]
        return {"prediction": labels, "probabilities": scores}


@dataclass(frozen=True)
class Problem:
    """What every candidate has in common. `classes` is empty for a regression."""

    task: TaskName
    classes: Classes
    seed: int
    threads: int


def fit(
    algorithm: str, parameters: dict[str, Any], problem: Problem, features: Features, target: Array
) -> Model:
    """Fit preprocessing and estimator on rows; the target is class codes or float64."""
    preprocessor = Preprocessor(trainers.get(algorithm).needs, problem.seed)
    matrix = preprocessor.fit_transform(features, target, len(problem.classes))
    return fit_matrix(algorithm, parameters, problem, (preprocessor, matrix), target)


def fit_matrix(
    algorithm: str,
    parameters: dict[str, Any],
    problem: Problem,
    prepared: tuple[Preprocessor, Floats],
    target: Array,
) -> Model:
    """Fit the estimator on rows already preprocessed."""
    (preprocessor, matrix), task = prepared, problem.task
    trainer = trainers.get(algorithm)
    setting = Setting(task, len(matrix), matrix.shape[1], problem.seed, problem.threads)
    estimator = trainer.build(parameters, setting)
    shift, scale = 0.0, 1.0
    if task == "regression" and (trainer.needs.scale or trainer.needs.target):
        shift, scale = float(target.mean()), float(target.std()) or 1.0
        target = (target - shift) / scale
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(matrix, target)
    notes = sorted({str(w.message).split("\n")[0] for w in caught if "onverge" in str(w.message)})
    # One thread when asked: sums over trees in thread order would differ in the last bit.
    if hasattr(estimator, "n_jobs"):
        estimator.n_jobs = 1
    return Model(algorithm, task, problem.classes, preprocessor, estimator, shift, scale, notes)


def ask(model: Model, matrix: Floats) -> Floats:
    """Scores for rows already preprocessed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not model.classes:
            raw = np.asarray(model.estimator.predict(matrix), np.float64).reshape(-1)
            return (raw * model.scale + model.shift).astype(np.float32)
        probabilities = np.asarray(model.estimator.predict_proba(matrix), np.float32)
    seen = np.asarray(model.estimator.classes_, np.int64)
    if len(seen) == len(model.classes):
        return probabilities
    full = np.zeros((len(matrix), len(model.classes)), np.float32)
    full[:, seen] = probabilities
    return full


def to_onnx(model: Model, numeric: int, text: int) -> bytes:
    """The whole model as one graph over `numeric` [n, numeric] and `text` [n, text]."""
    trainer = trainers.get(model.algorithm)
    graph = GraphWriter()
    first = graph.input("numeric", numeric, text=False) if numeric else ""
    second = graph.input("text", text, text=True) if text else ""
    features = model.preprocessor.emit(graph, first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converters' own use of what others deprecate
        scores = trainer.emit(graph, model.estimator, features, model.task)
    proto = _labelled(graph, model, scores) if model.classes else _number(graph, model, scores)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _number(graph: GraphWriter, model: Model, scores: str) -> onnx.ModelProto:
    flat = graph.add("Reshape", scores, graph.constant(np.array([-1], np.int64)))
    if (model.shift, model.scale) != (0.0, 1.0):
        flat = graph.add("Mul", flat, graph.constant(np.array([model.scale], np.float32)))
        flat = graph.add("Add", flat, graph.constant(np.array([model.shift], np.float32)))
    graph.rename(flat, "prediction")
    return graph.build([helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch"])])


def _labelled(graph: GraphWriter, model: Model, scores: str) -> onnx.ModelProto:
    best = graph.add("ArgMax", scores, axis=1, keepdims=0)
    labels = label_array(model.classes)
    table = graph.constant([str(c) for c in labels] if labels.dtype == object else labels)
    graph.rename(graph.add("Gather", table, best, axis=0), "prediction")
    graph.rename(scores, "probabilities")
    kind = {
        "object": TensorProto.STRING,
        "int64": TensorProto.INT64,
        "float32": TensorProto.FLOAT,
        "bool": TensorProto.BOOL,
    }[labels.dtype.name]
    make = helper.make_tensor_value_info
    wide = make("probabilities", TensorProto.FLOAT, ["batch", len(labels)])
    return graph.build([make("prediction", kind, ["batch"]), wide])


def label_array(classes: Classes) -> npt.NDArray[Any]:
    """Classes as the array that predictions are taken from."""
    kinds: dict[type, Any] = {str: object, bool: np.bool_, int: np.int64, float: np.float32}
    return np.array(classes, dtype=kinds[type(classes[0])])


def signature_of(model: Model, columns: tuple[Column, ...]) -> Signature:
    """What the graph takes and gives."""
    widths = {"numeric": 0, "text": 0}
    for column in columns:
        widths[column.tensor] += 1
    inputs = []
    if widths["numeric"]:
        inputs.append(TensorSpec("numeric", "FP32", (-1, widths["numeric"])))
    if widths["text"]:
        inputs.append(TensorSpec("text", "BYTES", (-1, widths["text"])))
    if not model.classes:
        return Signature(tuple(inputs), (TensorSpec("prediction", "FP32", (-1,)),), columns)
    spelled: dict[str, Any] = {
        "object": "BYTES",
        "bool": "BOOL",
        "int64": "INT64",
        "float32": "FP32",
    }
    label = TensorSpec("prediction", spelled[label_array(model.classes).dtype.name], (-1,))
    wide = TensorSpec("probabilities", "FP32", (-1, len(model.classes)))
    return Signature(tuple(inputs), (label, wide), columns, tuple(model.classes))
