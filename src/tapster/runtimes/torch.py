"""The torch runtime: programs written by `torch.export.save` (.pt2), loaded without unpickling.

A .pt2 file is a zip archive: the program as JSON, weights as raw bytes. `torch.export.load` alone
would also unpickle what such an archive may hold besides (sample inputs, tensor subclasses, script
objects) and look up whatever names and expressions the program gives. So the archive is written
anew first, see `cleaned_archive`, and what needs a pickle is refused. It runs in a process of its
own nevertheless.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Datatype, Manifest, Signature, TensorSpec
from tapster.runtimes import Description, Stop
from tapster.runtimes.answers import conform
from tapster.runtimes.declaration import declared

FORMAT: Final = b"pt2"
_PROGRAM: Final = "models/model.json"
_SAMPLES: Final = "data/sample_inputs/model.pt"
_WEIGHTS: Final = "data/weights/"
_CONSTANTS: Final = "data/constants/"
_CONFIGS: Final = (
    f"{_WEIGHTS}model_weights_config.json",
    f"{_CONSTANTS}model_constants_config.json",
)
_PLAIN: Final = ("archive_format", "archive_version", "byteorder", ".data/version")
_RAW: Final = re.compile(r"(weight|tensor)_\d+")
_TARGET: Final = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed)\.(?!from_file)\w+(\.\w+)?"
    r"|torch\.sym_\w+|math\.[a-z0-9]+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|getitem|index|not_|and_|or_|xor"
    r"|eq|ne|lt|le|gt|ge|lshift|rshift)"
)
_SYMBOL: Final = re.compile(r"'[a-z]+\d+'")
_ODD: Final = re.compile(r"[^\w\s(),=+\-*/<>.]|\.(?!\d)|(?<!\d)\.")
_WORD: Final = re.compile(r"[^\W\d]\w*")
_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "Symbol Integer Rational Float Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv Abs"
        " ModularIndexing IntTrueDiv FloatTrueDiv FloatPow PowByNatural CeilToInt FloorToInt"
        " RoundToInt TruncToInt TruncToFloat ToFloat Identity Where Equality Unequality"
        " StrictLessThan LessThan StrictGreaterThan GreaterThan Eq Ne Lt Le Gt Ge And Or Not"
        " positive integer nonnegative nonzero real zero commutative precision True False",
    )
)
_DATATYPES: Final[dict[str, Datatype]] = {
    "torch.bool": "BOOL",
    "torch.int8": "INT8",
    "torch.int16": "INT16",
    "torch.int32": "INT32",
    "torch.int64": "INT64",
    "torch.uint8": "UINT8",
    "torch.uint16": "UINT16",
    "torch.uint32": "UINT32",
    "torch.uint64": "UINT64",
    "torch.float16": "FP16",
    "torch.bfloat16": "BF16",
    "torch.float32": "FP32",
    "torch.float64": "FP64",
}


class TorchRuntime:
    """A Runtime for packages whose model file is an exported program."""

    name = "torch"

    def describe(self, files: dict[str, bytes], model_file: str) -> Description:
        """See Runtime: names, types and shapes that the program was exported with."""
        program = open_program(files[model_file])
        found = Signature(tuple(_inputs(program)), tuple(_outputs(program)))
        said = declared(files)
        return said.description or Description(found, said.examples)

    def load(
        self, manifest: Manifest, files: dict[str, bytes], threads: int, shelf: Path | None = None
    ) -> "TorchModel":
        """See Runtime."""
        import torch

        torch.set_num_threads(threads)
        return TorchModel(open_program(files[manifest.model_file]), manifest.signature)

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """See Runtime: never."""
        return False


class TorchModel:
    """A loaded program. It is called by one thread at a time."""

    def __init__(self, program: Any, signature: Signature) -> None:
        self.signature = signature
        self._module = program.module(check_guards=False)
        self._spec = program.call_spec.in_spec
        self._inputs = [spec.name for spec in _inputs(program)]
        self._outputs = [spec.name for spec in _outputs(program)]

    def run(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str] = (),
        deadline: float | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """See LoadedModel."""
        import torch
        from torch.utils import _pytree as pytree

        flat = [_tensor(inputs[name], self._kind(name)) for name in self._inputs]
        arguments, keywords = pytree.tree_unflatten(flat, self._spec)
        with torch.inference_mode():
            answers = pytree.tree_leaves(self._module(*arguments, **keywords))
        given = dict(zip(self._outputs, map(_array, answers), strict=True))
        found = conform(given, self.signature)
        return [found[name] for name in outputs or found]

    def close(self) -> None:
        """See LoadedModel."""
        self._module = None

    def _kind(self, name: str) -> str:
        return next(spec.datatype for spec in self.signature.inputs if spec.name == name)


def open_program(data: bytes) -> Any:
    """The exported program in a .pt2 file. Raises TapsterError(unprocessable, forbidden)."""
    from torch.export import load

    archive = io.BytesIO(cleaned_archive(data))
    try:
        return load(archive)
    except Exception as error:
        raise TapsterError(
            "unprocessable",
            f"this version of torch cannot read the program: {type(error).__name__}",
            hint="export it again with the server's version of torch (torch.export.save)",
        ) from error


def cleaned_archive(data: bytes) -> bytes:
    """The archive with its program and raw weights, and nothing else.

    Left out: sample inputs (a pickle), where the code came from, code of guards (it would be run).
    Raises TapsterError(forbidden) for weights or constants that are pickled and for names and
    expressions in the program that are not operators and arithmetic of symbols.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            root = archive.namelist()[0].partition("/")[0]
            names = {name.removeprefix(f"{root}/") for name in archive.namelist()}
            if archive.read(f"{root}/archive_format").strip() != FORMAT:
                raise KeyError("archive_format")
            _refuse_files(names)
            for config in _CONFIGS:
                _refuse_pickles(json.loads(archive.read(f"{root}/{config}")))
            program = _cleaned_program(json.loads(archive.read(f"{root}/{_PROGRAM}")))
            return _rewritten(archive, root, names, program)
    except TapsterError:
        raise
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, NotImplementedError) as error:
        raise TapsterError(
            "unprocessable",
            "the file is not an archive that torch.export.save has written",
            hint="torch.export.save(torch.export.export(model, example), 'model.pt2')",
        ) from error


def _rewritten(archive: zipfile.ZipFile, root: str, names: set[str], program: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as clean:
        for name in sorted(names):
            if name in _PLAIN or name in _CONFIGS or name.startswith((_WEIGHTS, _CONSTANTS)):
                clean.writestr(f"{root}/{name}", archive.read(f"{root}/{name}"))
        clean.writestr(f"{root}/{_PROGRAM}", program)
        clean.writestr(f"{root}/{_SAMPLES}", b"")
    return made.getvalue()


def _refuse_files(names: set[str]) -> None:
    for name in names:
        folder, _, file = name.rpartition("/")
        if (
            f"{folder}/" in {_WEIGHTS, _CONSTANTS}
            and name not in _CONFIGS
            and not _RAW.fullmatch(file)
        ):
            raise _forbidden(f"{name[:100]!r} is a pickle or code")
        if name.startswith("data/aotinductor/"):
            raise _forbidden("it holds compiled code")
        if name.startswith("models/") and name != _PROGRAM:
            raise _forbidden("it holds several programs")


def _refuse_pickles(config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not _RAW.fullmatch(payload["path_name"]):
            raise _forbidden(f"{name[:100]!r} is pickled")


def _cleaned_program(program: Any) -> bytes:
    program["guards_code"] = []
    for found in _walk(program):
        if "nodes" in found:
            for node in found["nodes"]:
                node["metadata"] = {}
                _check_target(node["target"])
        if isinstance(found.get("as_operator"), str):
            _check_target(found["as_operator"])
        if isinstance(found.get("expr_str"), str):
            _check_expression(found["expr_str"])
        if found.get("custom_obj_values") or found.get("as_custom_obj"):
            raise _forbidden("it holds script objects")
    return json.dumps(program).encode()


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object inside, however deep."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _check_target(target: str) -> None:
    if not _TARGET.fullmatch(target):
        raise _forbidden(f"it calls {target[:100]!r}, which is no operator on tensors")


def _check_expression(text: str) -> None:
    rest = _SYMBOL.sub("", text)
    words = set(_WORD.findall(rest)) - _WORDS
    if _ODD.search(rest) or not all(re.fullmatch(r"[a-z]+\d+", word) for word in words):
        raise _forbidden(f"it computes a size by {text[:100]!r}")


def _forbidden(problem: str) -> TapsterError:
    return TapsterError(
        "forbidden",
        f"the program is refused, for loading it could run code: {problem}",
        hint="export a plain module (no tensor subclasses, script objects or custom operators), or"
        " convert it to ONNX (torch.onnx.export)",
    )


# -- what a program takes and gives


def _inputs(program: Any) -> Iterator[TensorSpec]:
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            yield _spec(node.name, node.meta.get("val"))


def _outputs(program: Any) -> Iterator[TensorSpec]:
    nodes = {node.name: node for node in program.graph.nodes}
    values = [nodes[name].meta.get("val") for name in program.graph_signature.user_outputs]
    context = program.call_spec.out_spec.context
    if len(values) == 1 and not isinstance(context, list):
        names = ["output"]
    elif isinstance(context, list) and len(context) == len(values):
        names = [str(name) for name in context]
    else:
        names = [f"output_{index}" for index in range(len(values))]
    for name, value in zip(names, values, strict=True):
        yield _spec(name, value)


def _spec(name: str, value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(str(getattr(value, "dtype", "")))
    if datatype is None:
        raise TapsterError(
            "unprocessable",
            f"{name[:100]!r} of the program is not a tensor of a type that a wire carries",
            hint="export a module whose inputs and outputs are tensors",
        )
    shape = tuple(size if type(size) is int else -1 for size in value.shape)
    return TensorSpec(name, datatype, shape)


def _tensor(array: Array, datatype: str) -> Any:
    import torch

    made = torch.from_numpy(array if array.flags.writeable else array.copy())
    return made.view(torch.bfloat16) if datatype == "BF16" else made


def _array(tensor: Any) -> Array:
    import torch

    if tensor.dtype == torch.bfloat16:
        tensor = tensor.contiguous().view(torch.uint16)
    made: Array = tensor.numpy()
    return made
