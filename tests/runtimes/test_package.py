"""Sealing, signing and opening packages; nothing altered is ever parsed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column, Signature, TensorSpec
from tapster.core.crypto import Signer
from tapster.runtimes import package
from tests.runtimes.graphs import SIGNATURE, TOLERANCE, sealed

SIGNER = Signer(b"1" * 32)
FILES = ("manifest.json", "model.onnx", "parity.msgpack", "sketches/0.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sealed(tmp_path / "p")
    package.sign(tmp_path / "p", SIGNER)
    return tmp_path / "p"


def refusal(folder: Path, digest: str) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        package.open_package(folder, digest)
    assert caught.value.code == "unprocessable"
    assert str(folder) not in caught.value.message + caught.value.hint
    return caught.value


def test_what_was_sealed_is_what_is_opened(folder: Path) -> None:
    opened = package.open_package(folder, package.package_digest(folder))
    assert opened.manifest.signature == SIGNATURE
    assert opened.manifest.tolerance == TOLERANCE
    assert set(opened.files) == {"model.onnx", "parity.msgpack", "sketches/0.bin"}
    assert opened.files["sketches/0.bin"] == bytes(range(40))


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    assert sealed(tmp_path / "a") == sealed(tmp_path / "b")
    assert sealed(tmp_path / "a") != sealed(tmp_path / "c", created=2.0)


def offsets(size: int) -> list[int]:
    return sorted({round(step * (size - 1) / 19) for step in range(20)})


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_and_every_truncation_is_refused(folder: Path, name: str) -> None:
    digest = package.package_digest(folder)
    good = (folder / name).read_bytes()
    tried = 0
    for offset in offsets(len(good)):
        for bad in (
            good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :],
            good[:offset],
        ):
            (folder / name).write_bytes(bad)
            refusal(folder, digest)
            tried += 1
    assert tried == 2 * len(offsets(len(good)))
    (folder / name).write_bytes(good)
    assert package.open_package(folder, digest).digest == digest


@pytest.mark.parametrize("offset", offsets(230))
def test_an_altered_signature_or_manifest_fails_the_signature_check(
    folder: Path, offset: int
) -> None:
    for name in ("manifest.json", "manifest.sig"):
        good = (folder / name).read_bytes()
        at = offset * (len(good) - 1) // 229
        for bad in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            (folder / name).write_bytes(bad)
            with pytest.raises(TapsterError) as caught:
                package.check_signature(folder, [SIGNER.public])
            assert caught.value.code in {"unprocessable", "forbidden"}
        (folder / name).write_bytes(good)
    assert package.check_signature(folder, [SIGNER.public]) == SIGNER.public


def test_a_good_signature_of_a_stranger_is_forbidden(folder: Path) -> None:
    with pytest.raises(TapsterError) as caught:
        package.check_signature(folder, [Signer(b"2" * 32).public])
    assert caught.value.code == "forbidden"
    assert SIGNER.public in caught.value.message
    assert "tapster trust add" in caught.value.hint


def test_an_unsigned_package_fails_the_signature_check(folder: Path) -> None:
    (folder / "manifest.sig").unlink()
    with pytest.raises(TapsterError, match="not signed"):
        package.check_signature(folder, [SIGNER.public])


def link(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [link, pipe, directory, Path.unlink])
@pytest.mark.parametrize("name", FILES[:3])
def test_only_plain_files_are_read(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    digest = package.package_digest(folder)
    change(folder / name)
    refusal(folder, digest)


def test_a_linked_folder_is_refused(folder: Path) -> None:
    digest = package.package_digest(folder)
    shutil.move(folder / "sketches", folder.parent / "moved")
    (folder / "sketches").symlink_to(folder.parent / "moved")
    refusal(folder, digest)


@pytest.mark.parametrize("name", ["extra.bin", "sketches/extra.bin", "a/b/c.bin"])
def test_a_file_that_the_manifest_does_not_list_is_refused(folder: Path, name: str) -> None:
    digest = package.package_digest(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    refusal(folder, digest)


@pytest.mark.parametrize(
    "edit",
    [
        {"format_version": 2},
        {"model_file": "absent.onnx"},
        {
            "files": {"../model.onnx": {"sha256": "0" * 64, "size": 1}},
            "model_file": "../model.onnx",
        },
        {"files": {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}, "model_file": "/etc/passwd"},
        {"files": {"model.onnx": {"sha256": "0" * 64, "size": 1 << 60}}},
        {"files": {"model.onnx": {"sha256": "0" * 64, "size": -1}}},
        {"task": "no task"},
        {"created": "yesterday"},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, edit: dict[str, object]) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    refusal(folder, package.package_digest(folder))


def test_garbage_for_a_manifest_is_refused(folder: Path) -> None:
    for garbage in (b"", b"\xff\xfe", b"[" * 100_000, b"{}"):
        (folder / "manifest.json").write_bytes(garbage)
        refusal(folder, package.package_digest(folder))


@pytest.mark.parametrize(
    "columns",
    [
        (Column("a", "number", "numeric", 0),),
        (Column("a", "number", "numeric", 0), Column("a", "number", "numeric", 1)),
        (Column("a", "number", "numeric", 0), Column("b", "number", "numeric", 0)),
        (Column("a", "number", "numeric", 0), Column("b", "text", "numeric", 1)),
        (Column("a", "number", "numeric", 0), Column("b", "number", "other", 0)),
    ],
)
def test_columns_that_do_not_fit_the_inputs_are_not_sealed(
    tmp_path: Path, columns: tuple[Column, ...]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    signature = Signature((TensorSpec("numeric", "FP32", (-1, 2)),), (), columns)
    with pytest.raises(ValueError, match=r"signature|type of its input"):
        package.seal(tmp_path, name="m", task="other", signature=signature, tolerance=TOLERANCE)
    assert not (tmp_path / "manifest.json").exists()


def test_one_member_is_read_verified(folder: Path) -> None:
    digest = package.package_digest(folder)
    assert package.read_member(folder, digest, "sketches/0.bin") == bytes(range(40))
    assert package.read_member(folder, digest, "evaluation.json") is None
    (folder / "sketches/0.bin").write_bytes(bytes(40))
    with pytest.raises(TapsterError, match="altered"):
        package.read_member(folder, digest, "sketches/0.bin")


def test_opening_needs_no_heavy_library() -> None:
    code = (
        "import sys, tapster.runtimes.package, tapster.registry.routes;"
        "heavy = {'onnx', 'onnxruntime', 'polars', 'sklearn', 'pandas', 'google.protobuf'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
