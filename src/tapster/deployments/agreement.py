"""Which versions may stand beside one another behind an endpoint."""

from collections.abc import Sequence
from typing import Any, Final

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError

_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})


def check_split(versions: Sequence[ModelVersion]) -> None:
    """Versions that share requests must be of one model and take the same inputs.

    Raises TapsterError(conflict) naming two that differ.
    """
    first = versions[0]
    for other in versions[1:]:
        check_model(first, other)
        if difference := _inputs_differ(first, other, arrangement=True):
            raise TapsterError(
                "conflict",
                f"{_ref(other)} cannot share requests with {_ref(first)}: {difference}",
                hint="callers do not choose between them; deploy it at an endpoint of its own",
                field="model",
            )


def check_model(first: ModelVersion, other: ModelVersion) -> None:
    """An endpoint that is no ensemble serves versions of one model.

    Raises TapsterError(conflict).
    """
    if other.model != first.model:
        raise TapsterError(
            "conflict",
            f"an endpoint serves versions of one model, or is an ensemble: {_ref(other)} is"
            f" not a version of {first.model}",
            hint="deploy it at an endpoint of its own, or with --ensemble",
            field="model",
        )


def check_shadow(answering: Sequence[ModelVersion], shadow: ModelVersion) -> None:
    """A shadow is of the same model and takes what the others take, in any arrangement."""
    for other in answering:
        check_model(other, shadow)
        if difference := _inputs_differ(other, shadow, arrangement=False):
            raise TapsterError(
                "conflict",
                f"{_ref(shadow)} cannot be a shadow of {_ref(other)}: {difference}",
                hint="a shadow must take what callers send",
                field="model",
            )


def check_ensemble(members: Sequence[ModelVersion]) -> None:
    """Members must take the same columns and give outputs that have a mean.

    Raises TapsterError(conflict) naming two that differ.
    """
    first = members[0]
    _check_mean(first)
    for other in members[1:]:
        difference = _inputs_differ(first, other, arrangement=False) or _outputs_differ(
            first, other
        )
        if difference:
            raise TapsterError(
                "conflict",
                f"{_ref(other)} and {_ref(first)} cannot answer as one: {difference}",
                hint="members must agree in columns, outputs and the order of their classes",
                field="ensemble",
            )


def _inputs_differ(one: ModelVersion, other: ModelVersion, *, arrangement: bool) -> str:
    """How the inputs differ, or "". `arrangement`: the columns' places in tensors count, too."""
    mine, theirs = _columns(one), _columns(other)
    if mine and theirs:
        if mine != theirs:
            return _named(mine, theirs, one, other)
        if not arrangement:
            return ""
    parts = ("inputs", "columns") if arrangement else ("inputs",)
    if any(one.signature.get(part) != other.signature.get(part) for part in parts):
        return "they take other tensors, or the same columns in another order"
    return ""


def _named(mine: dict[str, str], theirs: dict[str, str], one: Any, other: Any) -> str:
    for columns, more, ref in ((mine, theirs, _ref(one)), (theirs, mine, _ref(other))):
        for name, kind in columns.items():
            if name not in more:
                return f"only {ref} takes the column {name[:100]!r}"
            if more[name] != kind:
                return f"the column {name[:100]!r} is a {kind} for {ref} only"
    return "they take other columns"


def _outputs_differ(one: ModelVersion, other: ModelVersion) -> str:
    mine, theirs = one.signature, other.signature
    if mine.get("classes") != theirs.get("classes"):
        spelled = [", ".join(map(str, each.get("classes", ())))[:200] for each in (mine, theirs)]
        return f"their classes are {spelled[0] or 'none'} and {spelled[1] or 'none'}"
    if mine.get("outputs") != theirs.get("outputs"):
        return "they give other outputs"
    return ""


def _check_mean(version: ModelVersion) -> None:
    outputs = version.signature.get("outputs", [])
    names = {spec["name"] for spec in outputs}
    label = version.signature.get("classes") and {"prediction", "probabilities"} <= names
    for spec in outputs:
        if spec["datatype"] not in _FLOATS and not (label and spec["name"] == "prediction"):
            raise TapsterError(
                "conflict",
                f"{_ref(version)} cannot be a member of an ensemble: its output"
                f" {spec['name'][:100]!r} is {spec['datatype']}, which has no mean",
                hint="members give floats, or labels with probabilities",
                field="ensemble",
            )


def _columns(version: ModelVersion) -> dict[str, str]:
    return {column["name"]: column["kind"] for column in version.signature.get("columns", ())}


def _ref(version: ModelVersion) -> str:
    return f"{version.model}@{version.version}"
