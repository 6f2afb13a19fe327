"""The algorithms: one file a family, each algorithm a plug-in of the group `tapster.trainers`.

Modules here import their libraries inside functions: the control process lists algorithms
without loading any of them.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol

from tapster.contract.errors import TapsterError
from tapster.core import plugins

GROUP: Final = "tapster.trainers"
TASKS: Final = ("binary", "multiclass", "regression")
CLASSIFICATION: Final = frozenset({"binary", "multiclass"})
REGRESSION: Final = frozenset({"regression"})
EVERY: Final = CLASSIFICATION | REGRESSION


@dataclass(frozen=True)
class Needs:
    """What preprocessing does before the estimator.

    `scale` standardises columns and a regression's target; trees gain nothing of the former, and
    take `target`, the latter alone: they add up in float32, and stop at spreads near 0.
    `missing` is `impute` (median and a flag column) or `native` (NaN goes to the estimator).
    """

    scale: bool = False
    target: bool = False
    missing: Literal["impute", "native"] = "impute"


@dataclass(frozen=True)
class Setting:
    """What an estimator is built for: the task, the matrix's size, a seed, threads to use."""

    task: str
    rows: int
    columns: int
    seed: int
    threads: int


class Space(Protocol):
    """What a search space is drawn from; an Optuna trial is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number of an interval."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number of an interval, ends included."""
        ...

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """One of the choices."""
        ...


class Trainer(Protocol):
    """An algorithm. Estimators see float32 [n, d]; classes are coded 0..k-1.

    `requires` names modules that may be absent; `largest` is the number of rows beyond which
    `auto` leaves the algorithm out.
    """

    name: str
    tasks: frozenset[str]
    needs: Needs
    requires: tuple[str, ...]
    largest: int

    def defaults(self, task: str, rows: int) -> dict[str, Any]:
        """Parameters (JSON) of the first attempt."""
        ...

    def space(self, draw: Space, task: str) -> dict[str, Any]:
        """Draw parameters; the same names whatever was drawn."""
        ...

    def build(self, parameters: dict[str, Any], setting: Setting) -> Any:
        """An unfitted estimator with `fit` and `predict_proba` or `predict`."""
        ...

    def emit(self, graph: Any, estimator: Any, features: str, task: str) -> str:
        """Write the fitted estimator into a GraphWriter; returns the name of its scores.

        Scores are probabilities [n, classes], or predictions [n] or [n, 1].
        """
        ...


def names() -> list[str]:
    """Every registered algorithm, installed or not."""
    return plugins.names(GROUP)


def get(name: str) -> Trainer:
    """The algorithm of that name. Raises TapsterError(invalid) for an unknown one."""
    trainer: Trainer = plugins.load(GROUP, name)()
    return trainer


def absent(trainer: Trainer) -> list[str]:
    """The modules that the algorithm needs and that are not installed."""
    return [module for module in trainer.requires if find_spec(module) is None]


def not_installed(name: str, modules: list[str]) -> TapsterError:
    """What to say of an algorithm whose modules are absent."""
    return TapsterError(
        "unprocessable",
        f"algorithm {name!r} needs {', '.join(modules)}, which is not installed on this machine",
        hint="pip install 'tapster[boost]', or train with auto, which goes without",
        field="algorithm",
    )
