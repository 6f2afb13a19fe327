"""The job that imports: an exported package or a bare model in, a checked package out.

A package keeps its bytes and its signature. A bare model (an ONNX file, or one of another runtime:
see `foreign`) gets a manifest: the signature it declares, and parity vectors from inputs drawn from
that signature and its own answers.
"""

import tarfile
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import MANIFEST, Lineage, Manifest, Tolerance
from tapster.core import plugins
from tapster.core.crypto import file_digest
from tapster.jobs.context import JobContext
from tapster.registry import drawing, foreign
from tapster.runtimes import LoadedModel, Runtime, package, parity
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated
from tapster.runtimes.onnx import OnnxRuntime, signature_from_graph
from tapster.runtimes.operators import vet
from tapster.runtimes.python import PythonRuntime

# Other machines may have other instruction sets; float32 sums then differ in the last bits.
_TOLERANCE: Final = Tolerance(atol=1e-5, rtol=1e-4)
_MAX_MODEL: Final = 2 << 30  # protobuf's own limit
_PIECE: Final = 1 << 20
_ZIP: Final = b"PK\x03\x04"
_UNSAFE: Final = {
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".joblib": "a joblib pickle",
    ".npy": "a NumPy array",
    ".npz": "a NumPy archive",
    ".pt": "a PyTorch pickle",
    ".pth": "a PyTorch pickle",
    ".ckpt": "a PyTorch pickle",
    ".h5": "a Keras file",
    ".hdf5": "a Keras file",
    ".keras": "a Keras file",
    ".safetensors": "weights without a graph",
    ".gguf": "weights without a graph",
}
_MAGIC: Final = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "a Keras (HDF5) file",
    _ZIP: "a zip archive, as PyTorch and Keras write",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"(\xb5/\xfd": "a zstd file",
    b"GGUF": "weights without a graph",
}


def run(task: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """See jobs.context.Runner. The package is left in `context.output("package")`."""
    source, kind = _only_file(context.inputs["file"])
    folder = context.output("package")
    draft = None
    if kind:
        draft = foreign.take_file(source, kind, folder)
    elif _is_archive(source):
        context.progress(0.1, "unpacking", "reading the archive")
        unpack(source, folder)
        if (folder / MANIFEST).exists():
            context.progress(0.3, "checking", "checking signature and digests")
            package.check_signature(folder, task["trusted"])
            return {"signed": True, "unvetted": _check(folder, task["code"], context)}
        draft = foreign.recognise(folder)
    if draft is not None:
        _check_code(draft.runtime, task["code"])
        foreign.adopt(folder, draft, task["model"], _TOLERANCE, context)
    else:
        context.progress(0.1, "reading", "reading the graph")
        _adopt(source, folder, task["model"], context)
    return {"signed": False, "unvetted": _check(folder, task["code"], context)}


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an exported package into the empty `folder`.

    Only plain files with a package's names are accepted, each once, none compressed: raises
    TapsterError(unprocessable) for links, devices, other paths, too many or too large members.
    """
    size, end, seen = archive.stat().st_size, 0, set[str]()
    try:
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                name = member.name
                if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse():
                    raise _refused(f"{name[:100]!r} is not a plain file")
                if not package.is_member_name(name):
                    raise _refused(f"no package has a file {name[:100]!r}")
                if name.lower() in seen or len(seen) >= package.MAX_FILES:
                    raise _refused(f"it holds {name[:100]!r} twice, or too many files")
                if member.offset_data + member.size > size:
                    raise _refused("it is truncated")
                seen.add(name.lower())
                _extract(tar, member, folder / name)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _refused("it is truncated or damaged") from error
    _check_end(archive, end)


def _check_end(archive: Path, end: int) -> None:
    """After the last member come at least two empty blocks and nothing but empty ones."""
    with archive.open("rb") as file:
        file.seek(end)
        tail = file.read(_PIECE + 1)
    if not 2 * tarfile.BLOCKSIZE <= len(tail) <= _PIECE or any(tail):
        raise _refused("it is truncated, or something was added at its end")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with target.open("xb") as file:
        while piece := source.read(_PIECE):
            file.write(piece)


def _check_code(runtime: str, allowed: bool) -> None:
    """Code can do what the server's user can: read every tenant's data, say."""
    if runtime == PythonRuntime.name and not allowed:
        raise TapsterError(
            "forbidden",
            "the model is Python code, which only the installation's own tenant may bring",
            hint="whoever operates it may import and share it. Or convert the model to ONNX",
        )


def _check(folder: Path, code: bool, context: JobContext) -> list[str]:
    """Open the package as the data plane will, load it and replay its vectors.

    Returns why it runs in a process of its own; nothing if it may run in the server's.
    """
    digest = package.package_digest(folder)
    opened = package.open_package(folder, digest)
    _check_code(opened.manifest.runtime, code)
    context.progress(0.7, "replaying", "comparing its answers with its parity vectors")
    runtime: Runtime = plugins.load("tapster.runtimes", opened.manifest.runtime)()
    vectors = opened.files.get(package.PARITY, b"")
    if runtime.inline(opened.manifest, opened.files):
        loaded: LoadedModel = runtime.load(opened.manifest, opened.files, threads=1)
        parity.replay(loaded, vectors, opened.manifest.tolerance)
        loaded.close()
        return []
    limits = Limits.of_settings(instances=1)
    with Isolated.of_package(folder, digest, opened.manifest, limits) as isolated:
        parity.replay(isolated, vectors, opened.manifest.tolerance)
    return _reasons(opened.manifest, opened.files)


def _reasons(manifest: Manifest, files: dict[str, bytes]) -> list[str]:
    if manifest.runtime == OnnxRuntime.name:
        return vet(files[manifest.model_file])[:20]
    return [f"a model of the runtime {manifest.runtime!r} never shares the server's process"]


def _adopt(source: Path, folder: Path, name: str, context: JobContext) -> None:
    """Make a package of a bare ONNX file."""
    if source.stat().st_size > _MAX_MODEL:
        raise TapsterError("too_large", "an ONNX file cannot be larger than 2 GiB")
    model = source.read_bytes()
    signature = signature_from_graph(model)
    context.progress(0.3, "recording", "drawing inputs and recording answers")
    vectors = drawing.record_own_answers(model, signature, _TOLERANCE)
    (folder / package.MODEL).write_bytes(model)
    (folder / package.PARITY).write_bytes(vectors)
    package.seal(
        folder,
        name=name,
        task="other",
        signature=signature,
        tolerance=_TOLERANCE,
        lineage=Lineage(
            algorithm="imported ONNX",
            parameters={"file": source.name, "sha256": file_digest(source)},
        ),
    )


def _only_file(folder: Path) -> tuple[Path, str]:
    """The uploaded file, and the runtime whose archive it is ("" for none)."""
    found = sorted(path for path in folder.iterdir() if path.is_file())
    if len(found) != 1:
        raise TapsterError(
            "invalid",
            f"the upload holds {len(found)} files; a model is one file, or one folder as a tar",
            hint="send one exported package (.tapster), one ONNX, .skops or .pt2 file, or a folder"
            " through `tapster models import`",
        )
    with found[0].open("rb") as file:
        head = file.read(8)
    if not head:
        raise TapsterError("unprocessable", "the file is empty", hint="export the model again")
    if head.startswith(_ZIP) and (runtime := foreign.archive_kind(found[0])):
        return found[0], runtime
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind := kind or _UNSAFE.get(found[0].suffix.lower()):
        raise TapsterError(
            "unsupported",
            f"the file is {kind}; Tapster imports its own packages, ONNX, skops and .pt2 files",
            hint="loading such a file can run any code in it: convert the model to ONNX where it"
            " was trained (skl2onnx, torch.onnx.export, tf2onnx), or write it with skops.io.dump"
            " or torch.export.save, and import that",
        )
    return found[0], ""


def _is_archive(path: Path) -> bool:
    """Whether the file is a tar: the POSIX magic, at its place in the first header."""
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def _refused(reason: str) -> TapsterError:
    return TapsterError(
        "unprocessable",
        f"the archive is refused: {reason}",
        hint="write it with `tapster models export` and send it unchanged; `tapster models import`"
        " takes the folder of a model as it is",
    )
