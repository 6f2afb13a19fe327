"""A model package as data: what its files are, what it takes, what it gives, where it came from.

A package is a folder with `manifest.json`, `manifest.sig` and the files that the manifest lists.
Its digest is the SHA-256 of `manifest.json`; the signature is Ed25519 over those same bytes.
"""

from typing import Any, Final, Literal

import msgspec

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
FORMAT_VERSION: Final = 1

Datatype = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Task = Literal["binary", "multiclass", "regression", "other"]
ColumnKind = Literal["number", "boolean", "date", "datetime", "text"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output: name, Open Inference datatype, shape (-1 is a variable dimension)."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class Column(msgspec.Struct, frozen=True):
    """A column of the training data and where its value goes: `tensor[:, position]`.

    `number` and `boolean` travel as floats (NaN is missing), `date` and `datetime` as ISO-8601
    text turned into (fractional) days since 1970-01-01, `text` as a string ("" is missing).
    """

    name: str
    kind: ColumnKind
    tensor: str
    position: int


class Signature(msgspec.Struct, frozen=True):
    """What the graph takes and gives. `columns` is empty for a bare import.

    Classifiers give `prediction` (a label) and `probabilities` FP32 [n, len(classes)], in the
    order of `classes`; regressors give `prediction` FP32 [n].
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    columns: tuple[Column, ...] = ()
    classes: tuple[str | int | float | bool, ...] = ()


class FileEntry(msgspec.Struct, frozen=True):
    """Digest (SHA-256, hex) and size in bytes of one file of the package."""

    sha256: str
    size: int


class Tolerance(msgspec.Struct, frozen=True):
    """How far a replayed score may be from the recorded one: |a - b| <= atol + rtol * |b|.

    A label must match wherever the recorded margin between the two best classes exceeds `margin`.
    """

    atol: float
    rtol: float
    margin: float = 0.0


class Lineage(msgspec.Struct, frozen=True):
    """Where the model came from; empty fields for a bare import."""

    dataset: str = ""
    dataset_version: int = 0
    dataset_digest: str = ""
    target: str = ""
    split: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    algorithm: str = ""
    parameters: dict[str, Any] = {}
    seed: int = 0
    code_version: str = ""
    environment: dict[str, str] = {}
    parent: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """The sealed description of one model version."""

    name: str
    task: Task
    runtime: str
    model_file: str
    signature: Signature
    tolerance: Tolerance
    files: dict[str, FileEntry]
    lineage: Lineage = Lineage()
    metrics: dict[str, Any] = {}
    created: float = 0.0
    format_version: int = FORMAT_VERSION


# Made at import: two threads that work out a type at once, at its first use, crash msgspec (0.22).
_DECODER: Final = msgspec.json.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The manifest's one true spelling: the bytes that are digested and signed."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)


def decode(data: bytes) -> Manifest:
    """Parse a manifest. Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _DECODER.decode(data)
