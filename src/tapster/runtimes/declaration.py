"""`model.json`: what a model that is no package yet takes and gives, in its author's words.

    {"inputs":  [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
     "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}

Datatypes are those of the Open Inference Protocol; -1 is a variable dimension.
"""

from typing import Any, Final

import msgspec

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column, Signature, Task, TensorSpec
from tapster.runtimes import Description

DECLARATION: Final = "model.json"
_LARGEST: Final = 1 << 20


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `model.json`.

    `examples`: rows of values by input, to try and to check the model with; made up without them.
    `runtime` and `model_file` are for runtimes of strangers.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    columns: tuple[Column, ...] = ()
    classes: tuple[str | int | float | bool, ...] = ()
    task: Task = "other"
    examples: dict[str, Any] = {}
    runtime: str = ""
    model_file: str = ""

    @property
    def description(self) -> Description | None:
        """What is declared, if inputs and outputs are."""
        if not self.inputs or not self.outputs:
            return None
        signature = Signature(self.inputs, self.outputs, self.columns, self.classes)
        return Description(signature, self.examples)


_DECODER: Final = msgspec.json.Decoder(Declaration)


def declared(files: dict[str, bytes]) -> Declaration:
    """What `model.json` among the files says; an empty declaration if there is none.

    Raises TapsterError(unprocessable) naming what is wrong with it.
    """
    data = files.get(DECLARATION)
    if data is None:
        return Declaration()
    try:
        if len(data) > _LARGEST:
            raise ValueError("it is larger than 1 MiB")
        found = _DECODER.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _wrong(str(error)[:200]) from None
    for spec in (*found.inputs, *found.outputs):
        if len(spec.shape) > 8 or any(size < -1 for size in spec.shape):
            raise _wrong(f"{spec.name[:100]!r} has a shape that cannot be")
    return found


def _wrong(problem: str) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"{DECLARATION} cannot be read: {problem}",
        hint='write {"inputs": [{"name", "datatype", "shape"}, ...], "outputs": [...]}',
        field=DECLARATION,
    )
