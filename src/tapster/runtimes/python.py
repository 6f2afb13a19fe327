"""The Python runtime: a class of the user's own, where the operator allows it.

A model is a folder with `model.json` (see `declaration`) and `model.py`, in which

    class Model:
        def load(self, folder: pathlib.Path) -> None: ...
        def predict(self, inputs: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]: ...

`folder` holds all files of the model. A ValueError from `predict` says that the inputs are wrong.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Signature
from tapster.core import settings
from tapster.runtimes import Description, Stop
from tapster.runtimes.answers import conform
from tapster.runtimes.declaration import DECLARATION, declared

SOURCE: Final = "model.py"


class PythonRuntime:
    """A Runtime for packages whose model is code. Refused unless `python_models` is set."""

    name = "python"

    def describe(self, files: dict[str, bytes], model_file: str) -> Description:
        """See Runtime: what `model.json` says. Runs nothing."""
        check_allowed()
        found = declared(files).description
        if found is None:
            raise TapsterError(
                "unprocessable",
                f"the model does not say what it takes and gives: there is no {DECLARATION}"
                " with inputs and outputs",
                hint='write {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],'
                ' "outputs": [...]} beside model.py',
            )
        return found

    def load(
        self, manifest: Manifest, files: dict[str, bytes], threads: int, shelf: Path | None = None
    ) -> "PythonModel":
        """See Runtime: run `model.py` and load the model it defines."""
        check_allowed()
        folder = Path(tempfile.mkdtemp(prefix="files-"))
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        model = _class_of(folder, manifest.model_file)()
        model.load(folder)
        return PythonModel(model, manifest.signature)

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """See Runtime: never."""
        return False


class PythonModel:
    """A loaded model. It is called by one thread at a time."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self.signature = signature
        self._model = model

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str] = (),
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """See LoadedModel. The model gets copies, which it may keep and write to."""
        given = self._model.predict({name: array.copy() for name, array in inputs.items()})
        if not isinstance(given, dict):
            raise TapsterError("internal", f"the model answered a {type(given).__name__}, no dict")
        found = conform(given, self.signature)
        return [found[name] for name in outputs or found]

    def close(self) -> None:
        """See LoadedModel."""
        self._model = None


def check_allowed() -> None:
    """Raise TapsterError(forbidden) unless the operator allows models of Python code."""
    if not settings.load().python_models:
        raise TapsterError(
            "forbidden",
            "the model is Python code, which this installation does not run",
            hint="whoever operates it may set TAPSTER_PYTHON_MODELS=true: such a model can do"
            " whatever the server's user can. Or convert the model to ONNX",
        )


def _class_of(folder: Path, source: str) -> Any:
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("model", folder / source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    found = getattr(module, "Model", None)
    if not all(callable(getattr(found, method, None)) for method in ("load", "predict")):
        raise TapsterError(
            "unprocessable",
            f"{source} defines no class Model with load(folder) and predict(inputs)",
        )
    return found
