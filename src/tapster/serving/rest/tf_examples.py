"""TensorFlow Serving's `:classify` and `:regress`: examples in, a result for each out.

An example is an object of features: the model's columns, or the tensors of a model that has none.
A value may stand in a list of its own; `context` holds features that all examples share.
Source: TensorFlow Serving's RESTful API page.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tapster.contract.errors import TapsterError
from tapster.runtimes.parity import PROBABILITIES
from tapster.serving.batcher import Answer
from tapster.serving.model import Model
from tapster.serving.rest import large
from tapster.serving.rest.bodies import accounted, decode, invalid, spell
from tapster.serving.rest.open_answers import refuse
from tapster.serving.rest.rows import finite_in, rows_in
from tapster.serving.rest.tensors import rows_of
from tapster.serving.rest.tf_models import CLASSIFICATION, REGRESSION, classifies, regresses
from tapster.serving.rest.tf_serving import check_signature, from_objects, note, plain
from tapster.serving.rest.wires import Request


class _Call(Struct, forbid_unknown_fields=True):
    examples: list[dict[str, Any]]
    signature_name: str | UnsetType = UNSET
    context: dict[str, Any] | UnsetType = UNSET


_DECODER: Final = msgspec.json.Decoder(_Call)


class Classify:
    """`:classify`, a Wire: for each example its classes with their scores."""

    def read(self, call: Request, body: bytes | bytearray) -> None:
        """See Wire."""
        model = call.target.model
        if not classifies(model):
            raise invalid("this model does not classify", hint="use :regress or :predict")
        _read(call, model, body, CLASSIFICATION)

    def write(self, call: Request, answer: Answer, first: int) -> bytes:
        """See Wire."""
        model = call.target.model
        names = [spec.name for spec in model.signature.outputs]
        scores = rows_in(model, answer, names.index(PROBABILITIES), first, call.rows)
        results = [list(zip(model.labels, row, strict=True)) for row in scores]
        note(call, answer)
        return spell({"results": results}, finite_in(model, answer))

    def refuse(self, error: TapsterError) -> bytes:
        """See Wire."""
        return refuse(error)


class Regress:
    """`:regress`, a Wire: for each example a number."""

    def read(self, call: Request, body: bytes | bytearray) -> None:
        """See Wire."""
        model = call.target.model
        if regresses(model) is None:
            raise invalid("this model does not give numbers", hint="use :classify or :predict")
        _read(call, model, body, REGRESSION)

    def write(self, call: Request, answer: Answer, first: int) -> bytes:
        """See Wire."""
        model = call.target.model
        index = regresses(model)
        assert index is not None
        values = rows_in(model, answer, index, first, call.rows)
        results = [value[0] if isinstance(value, list) else value for value in values]
        note(call, answer)
        return spell({"results": results}, finite_in(model, answer))

    def refuse(self, error: TapsterError) -> bytes:
        """See Wire."""
        return refuse(error)


def _read(call: Request, model: Model, body: bytes | bytearray, signature: str) -> None:
    if len(body) > large.MAX_ODD:
        raise large.too_odd()
    request = decode(_DECODER, body)
    accounted(body, -1)
    check_signature(request.signature_name, signature)
    if not request.examples:
        raise invalid("there are no examples", hint="send at least one", field="examples")
    context = {} if request.context is UNSET else request.context
    rows = [plain({**context, **example}, model) for example in request.examples]
    if not model.columns:
        call.inputs, call.rows = from_objects(model, rows)
        return
    call.inputs = model.encoder.rows([_singled(row) for row in rows])
    call.rows = rows_of(call.inputs)


def _singled(row: dict[str, Any]) -> dict[str, Any]:
    """Features with a value in a list of its own as that value."""
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in row.items()
    }
