"""The skops runtime: fitted scikit-learn estimators from a format that names every type it holds.

Loaded are types that skops itself trusts, classes of scikit-learn, and those that the operator
lists in `TAPSTER_SKOPS_TRUSTED`; a file with any other is refused, and says which. It runs in a
process of its own: neither scikit-learn nor anything of the file comes into a server's.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Column, Datatype, Manifest, Signature, TensorSpec
from tapster.core import settings
from tapster.runtimes import Description, Stop
from tapster.runtimes.answers import conform
from tapster.runtimes.declaration import declared
from tapster.runtimes.parity import PREDICTION, PROBABILITIES

NUMERIC: Final = "numeric"
TEXT: Final = "text"
_ROWS: Final = 6
_HARMLESS: Final = frozenset({"numpy.dtype", "builtins.object"})
# Parts of scikit-learn that fetch, load or test; no fitted estimator holds them.
_KEPT_OUT: Final = ("sklearn.datasets", "sklearn.externals", "sklearn.utils._testing")


class SkopsRuntime:
    """A Runtime for packages whose model file was written by `skops.io.dump`."""

    name = "skops"

    def describe(self, files: dict[str, bytes], model_file: str) -> Description:
        """See Runtime: what `model.json` says, else what the fitted estimator knows of itself."""
        said = declared(files)
        if said.description is not None:
            return said.description
        found = _described(open_estimator(files[model_file]))
        return Description(found.signature, said.examples or found.examples)

    def load(
        self, manifest: Manifest, files: dict[str, bytes], threads: int, shelf: Path | None = None
    ) -> "SkopsModel":
        """See Runtime."""
        return SkopsModel(open_estimator(files[manifest.model_file]), manifest.signature)

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """See Runtime: never."""
        return False


class SkopsModel:
    """A fitted estimator. It is called by one thread at a time."""

    def __init__(self, estimator: Any, signature: Signature) -> None:
        self.signature = signature
        self._estimator = estimator

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str] = (),
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """See LoadedModel. Probabilities are computed only when they are asked for."""
        names = outputs or [spec.name for spec in self.signature.outputs]
        table = _table(inputs, self.signature.columns)
        given = {name: _answer(self._estimator, name, table) for name in names}
        wanted = tuple(spec for spec in self.signature.outputs if spec.name in given)
        found = conform(given, Signature(self.signature.inputs, wanted))
        return [found[name] for name in names]

    def close(self) -> None:
        """See LoadedModel."""
        self._estimator = None


def open_estimator(data: bytes) -> Any:
    """The estimator in a skops file. Raises TapsterError(forbidden) naming what is not trusted."""
    from skops.io import get_untrusted_types, loads

    try:
        found = set(get_untrusted_types(data=data))
        refused = sorted(name for name in found if not _trusted(name))
        if not refused:
            return loads(data, trusted=sorted(found))
    except TapsterError:
        raise
    except Exception as error:
        raise TapsterError(
            "unprocessable",
            f"the file is not one that this version of skops and scikit-learn can read:"
            f" {type(error).__name__}",
            hint="write it with skops.io.dump, with the server's version of scikit-learn",
        ) from error
    raise TapsterError(
        "forbidden",
        f"the file holds types that are not trusted here: {', '.join(refused)[:500]}",
        hint="convert the model to ONNX, or have the operator name them, if they are known to be"
        " harmless, in TAPSTER_SKOPS_TRUSTED (comma-separated)",
    )


def _trusted(name: str) -> bool:
    """Whether a type beyond skops' own list may be made."""
    listed = {item.strip() for item in settings.load().skops_trusted.split(",")}
    return name in _HARMLESS or name in listed or _is_sklearn_class(name)


def _is_sklearn_class(name: str) -> bool:
    """Whether the name is that of a class (no function) of the scikit-learn installed here."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] != "sklearn" or name.startswith(_KEPT_OUT):
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False


def _table(inputs: dict[str, Array], columns: Sequence[Column]) -> Any:
    """What the estimator was fitted on: an array, or a frame with the names of its columns."""
    if not columns:
        return next(iter(inputs.values()))
    import polars

    def series(column: Column) -> Any:
        values = inputs[column.tensor][:, column.position]
        if column.kind == "text":
            return polars.Series(column.name, values.tolist(), polars.String)
        return polars.Series(column.name, values)

    return polars.DataFrame([series(column) for column in columns])


def _answer(estimator: Any, name: str, table: Any) -> Any:
    if name == PROBABILITIES:
        return estimator.predict_proba(table)
    return (estimator.predict if hasattr(estimator, "predict") else estimator.transform)(table)


# -- what a fitted estimator knows of itself


def _described(estimator: Any) -> Description:
    """The signature of an estimator and some rows, on which it was tried."""
    width = getattr(estimator, "n_features_in_", None)
    if not isinstance(width, int):
        raise _unknown("the estimator does not say how many features it takes")
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    texts = _texts(estimator) if names else {}
    columns = _columns(names, set(texts))
    rows = _rows(width - len(texts), [texts[c.name] for c in columns if c.kind == "text"])
    outputs = tuple(_outputs(estimator, _table(rows, columns)))
    inputs = tuple(
        TensorSpec(name, "BYTES" if name == TEXT else "FP32", (-1, array.shape[1]))
        for name, array in rows.items()
    )
    return Description(
        Signature(inputs, outputs, columns, _classes(estimator)),
        {name: array.tolist() for name, array in rows.items()},
    )


def _columns(names: Sequence[str], texts: set[str]) -> tuple[Column, ...]:
    found = []
    places = {NUMERIC: 0, TEXT: 0}
    for name in names:
        tensor = TEXT if name in texts else NUMERIC
        kind: Any = "text" if name in texts else "number"
        found.append(Column(name, kind, tensor, places[tensor]))
        places[tensor] += 1
    return tuple(found)


def _rows(numbers: int, categories: list[list[str]]) -> dict[str, Array]:
    """Rows of random numbers and known categories."""
    rows: dict[str, Array] = {}
    if numbers:
        drawn = np.random.default_rng(0).standard_normal((_ROWS, numbers))
        rows[NUMERIC] = drawn.astype(np.float32)
    if categories:
        cells = [[known[row % len(known)] for known in categories] for row in range(_ROWS)]
        rows[TEXT] = np.array(cells, np.object_)
    return rows


def _outputs(estimator: Any, rows: Any) -> Iterator[TensorSpec]:
    """`prediction`, and `probabilities` of classifiers that have them."""
    for name in (PREDICTION, PROBABILITIES):
        if name == PROBABILITIES and not hasattr(estimator, "predict_proba"):
            return
        try:
            answer = np.asarray(_answer(estimator, name, rows))
        except Exception as error:
            raise _unknown(
                f"the estimator does not take rows of numbers and known categories: {error!r:.200}"
            ) from None
        yield TensorSpec(name, _datatype(answer), (-1, *answer.shape[1:]))


def _datatype(answer: Array) -> Datatype:
    kinds: dict[str, Datatype] = {"f": "FP32", "i": "INT64", "u": "INT64", "b": "BOOL"}
    return kinds.get(answer.dtype.kind, "BYTES")


def _classes(estimator: Any) -> tuple[str | int | float | bool, ...]:
    """The labels in the order of the probabilities; empty for several targets or none."""
    found = getattr(estimator, "classes_", None)
    if isinstance(found, np.ndarray) and found.ndim == 1:
        return tuple(found.tolist())
    return ()


def _texts(estimator: Any) -> dict[str, list[str]]:
    """The text categories that encoders inside the estimator have learnt, by column."""
    found: dict[str, list[str]] = {}
    for _, part in getattr(estimator, "steps", ()):
        found |= _texts(part)
    for _, part, names in getattr(estimator, "transformers_", ()):
        inside = [part, *(step for _, step in getattr(part, "steps", ()))]
        for encoder in inside:
            categories = getattr(encoder, "categories_", ())
            if len(categories) == len(names):
                found |= {
                    str(name): [str(category) for category in known]
                    for name, known in zip(names, categories, strict=True)
                    if known.dtype.kind in "OU"
                }
    return found


def _unknown(problem: str) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"what the model takes and gives is not known: {problem}",
        hint="send a folder with the file and a model.json that lists inputs, outputs and columns",
    )
