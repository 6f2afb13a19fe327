"""Models of other runtimes than ONNX, as they come: which they are, and a package made of them.

Nothing of such a model is imported, parsed or run in the job that imports it: that happens in a
process of the model's own, see `runtimes.isolated`.
"""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Lineage, Signature, Task, Tolerance
from tapster.core import plugins
from tapster.core.crypto import file_digest
from tapster.jobs.context import JobContext
from tapster.registry import drawing, packages
from tapster.runtimes import package, python
from tapster.runtimes.declaration import DECLARATION, Declaration, declared
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated

SUFFIXES: Final = {".skops": "skops", ".pt2": "torch"}
_MADE_HERE: Final = (package.PARITY, packages.EVALUATION)
_MOST_NAMES: Final = 100_000


@dataclass(frozen=True)
class Draft:
    """A model that is no package yet: whose it is, its main file, what its author says of it."""

    runtime: str
    model_file: str
    declaration: Declaration


def archive_kind(path: Path) -> str:
    """The runtime that a zip archive is for; "" for any other archive. Reads its list of names."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MOST_NAMES]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return ""
    if "schema.json" in names:
        return "skops"
    return "torch" if any(name.endswith("/archive_format") for name in names) else ""


def take_file(source: Path, runtime: str, folder: Path) -> Draft:
    """Put a lone file of `runtime` into `folder`."""
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == runtime)
    name = f"model{suffix}"
    shutil.copyfile(source, folder / name)
    return Draft(runtime, name, Declaration())


def recognise(folder: Path) -> Draft:
    """What kind of model lies in a folder of plain files.

    Raises TapsterError(unprocessable, forbidden) for what is none that is run here.
    """
    names = package.file_names(folder)
    if reserved := [name for name in names if name in _MADE_HERE]:
        raise TapsterError(
            "unprocessable", f"{reserved[0]} is written by the import; leave it out of the folder"
        )
    said = declared({n: (folder / n).read_bytes() for n in names if n == DECLARATION})
    if python.SOURCE in names:
        python.check_allowed()
        return Draft(python.PythonRuntime.name, python.SOURCE, said)
    if said.runtime:
        return _of_a_stranger(said, names)
    models = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    others = [name for name in names if name not in {*models, DECLARATION}]
    if len(models) != 1 or others:
        raise TapsterError(
            "unprocessable",
            "the folder holds no model that is known here" if not models else
            f"beside {models[0]!r} the folder may hold {DECLARATION} only, not"
            f" {(others or models[1:])[0][:100]!r}",
            hint="send a folder with model.py and model.json, or one .skops or .pt2 file and, if"
            " it needs one, a model.json",
        )  # fmt: skip
    return Draft(SUFFIXES[Path(models[0]).suffix.lower()], models[0], said)


def adopt(folder: Path, draft: Draft, name: str, tolerance: Tolerance, context: JobContext) -> None:
    """Make a package of the files in `folder`, by asking the model in a process of its own.

    Raises TapsterError(unprocessable, forbidden, unavailable, deadline) with what was wrong.
    """
    digest = file_digest(folder / draft.model_file)
    context.progress(0.3, "loading", "loading the model in a process of its own")
    limits = Limits.of_settings(instances=1)
    with Isolated.of_draft(folder, draft.runtime, draft.model_file, limits) as model:
        context.progress(0.5, "recording", "recording its answers")
        signature = model.signature
        source = _source(model, digest)
        vectors = drawing.record(model, source, tolerance)
    (folder / package.PARITY).write_bytes(vectors)
    package.seal(
        folder,
        name=name,
        task=_task(signature, draft.declaration),
        signature=signature,
        tolerance=tolerance,
        runtime=draft.runtime,
        model_file=draft.model_file,
        lineage=Lineage(
            algorithm=f"imported {draft.runtime}",
            parameters={"file": draft.model_file, "sha256": digest},
        ),
    )


def _of_a_stranger(said: Declaration, names: list[str]) -> Draft:
    if said.runtime not in plugins.names("tapster.runtimes"):
        raise TapsterError(
            "unprocessable",
            f"{DECLARATION} names runtime {said.runtime[:100]!r}, which is not installed here",
            field="runtime",
        )
    if said.model_file not in names:
        raise TapsterError(
            "unprocessable",
            f"{DECLARATION} names no model_file that lies in the folder",
            field="model_file",
        )
    return Draft(said.runtime, said.model_file, said)


def _source(model: Isolated, digest: str) -> drawing.Source:
    """Inputs to try the model on: its own examples, else random ones."""
    if model.examples:
        return drawing.exemplified(model.signature, model.examples)
    shapes = {
        spec.name: tuple(
            size if size >= 0 else "batch" if axis == 0 else None
            for axis, size in enumerate(spec.shape)
        )
        for spec in model.signature.inputs
    }
    seed = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8])
    return drawing.drawn(model, shapes, seed)


def _task(signature: Signature, said: Declaration) -> Task:
    """The declared task, else the one that the outputs show."""
    if said.task != "other":
        return said.task
    if signature.classes:
        return "binary" if len(signature.classes) == 2 else "multiclass"
    prediction = next((spec for spec in signature.outputs if spec.name == "prediction"), None)
    if prediction is None or (prediction.datatype, prediction.shape) != ("FP32", (-1,)):
        return "other"
    return "regression"
