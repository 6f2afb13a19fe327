"""Packages from other installations, bare ONNX files, and everything that is neither."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Lineage
from tapster.registry import packages, trust
from tapster.registry.importing import unpack
from tapster.runtimes import parity
from tapster.runtimes.package import PARITY, open_package
from tests.registry.conftest import TENANT, Installation
from tests.runtimes.graphs import FLOAT, INT, STRING, classifier, model, sealed, value

Install = Callable[[str], Installation]


def refused(here: Installation, *files: Path) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        here.bring("m", *files)
    said = caught.value.message + caught.value.hint
    assert str(here.home) not in said
    assert list(here.parts.blobs.keys()) == []
    return caught.value


def write(here: Installation, name: str, data: bytes) -> Path:
    folder = here.fresh()
    folder.mkdir()
    (folder / name).write_bytes(data)
    return folder / name


# -- packages


def test_a_package_moves_to_another_installation(install: Install) -> None:
    here, there = install("here"), install("there")
    made = here.add("m", lineage=Lineage(dataset="wine", dataset_version=1, dataset_digest="d"))
    file = here.export(made)
    with there.parts.db.write() as tx:
        trust.trust(tx, TENANT, "here", here.parts.signer.public)
    result = there.bring("renamed", file)
    assert result == {
        "model": "renamed",
        "version": 1,
        "digest": made.digest,
        "signer": here.parts.signer.public,
        "unvetted": [],
    }
    found = there.resolve("renamed@1")
    for field in ("digest", "metrics", "lineage", "signature", "task", "bytes"):
        assert getattr(found, field) == getattr(made, field)
    key = packages.key_of(TENANT, made.digest)
    theirs, ours = there.parts.blobs.get(key), here.parts.blobs.get(key)
    files = [path.relative_to(ours) for path in ours.rglob("*") if path.is_file()]
    assert all((theirs / name).read_bytes() == (ours / name).read_bytes() for name in files)
    assert there.export(found).read_bytes() == file.read_bytes()
    with there.parts.db.read() as tx:
        from tapster.registry import service

        assert service.listing(tx, TENANT, dataset="wine") == []
        assert [v.model for v in service.listing(tx, TENANT, data_digest="d")] == ["renamed"]


def test_our_own_export_comes_back_as_the_same_version(here: Installation) -> None:
    made = here.add("m")
    assert here.bring("m", here.export(made))["version"] == 1
    assert here.bring("copy", here.export(made))["version"] == 1


def test_a_stranger_is_refused_until_trusted_and_after_trust_is_withdrawn(install: Install) -> None:
    here, there = install("here"), install("there")
    file = here.export(here.add("m"))
    error = refused(there, file)
    assert error.code == "forbidden"
    assert here.parts.signer.public in error.message
    with there.parts.db.write() as tx:
        trust.trust(tx, TENANT, "here", here.parts.signer.public)
        trust.distrust(tx, TENANT, "here")
    assert refused(there, file).code == "forbidden"


def test_the_signature_is_checked_again_where_the_import_cannot_reach(install: Install) -> None:
    from tapster.jobs.service import show
    from tapster.registry import service

    here, there = install("here"), install("there")
    folder = there.fresh()
    made = here.add("m")
    (folder / "package").mkdir(parents=True)
    unpack(here.export(made), folder / "package")
    with there.parts.db.write() as tx:
        job = service.submit_import(tx, TENANT, "m", "up_0", there.parts.signer.public)
        assert show(tx, TENANT, job.id).spec["model"] == "m"
    result = {"signed": True, "unvetted": []}
    with pytest.raises(TapsterError) as caught:
        service.publish_import(there.parts, job, result, folder)
    assert caught.value.code == "forbidden"
    assert list(there.parts.blobs.keys()) == []


@pytest.mark.parametrize(
    "member", ["manifest.json", "manifest.sig", "model.onnx", "sketches/0.bin"]
)
def test_an_altered_package_is_refused(install: Install, member: str) -> None:
    here, there = install("here"), install("there")
    file = here.export(here.add("m"))
    with there.parts.db.write() as tx:
        trust.trust(tx, TENANT, "here", here.parts.signer.public)
    data = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        info = tar.getmember(member)
    for offset in (0, info.size // 2, info.size - 1):
        bad = bytes(data)
        at = info.offset_data + offset
        altered = write(there, "m.tapster", bad[:at] + bytes([bad[at] ^ 4]) + bad[at + 1 :])
        assert refused(there, altered).code in {"unprocessable", "forbidden"}


def test_a_truncated_package_is_refused(install: Install) -> None:
    here = install("here")
    file = here.export(here.add("m"))
    data = file.read_bytes()
    there = install("there")
    with there.parts.db.write() as tx:
        trust.trust(tx, TENANT, "here", here.parts.signer.public)
    for step in range(20):
        cut = len(data) * step // 20
        code = refused(there, write(there, "m.tapster", data[:cut])).code
        assert code == "unprocessable"


def test_a_package_that_answers_differently_is_refused(install: Install) -> None:
    here = install("here")
    folder = here.fresh()
    weights = np.array([[1.0, 1.0], [2.0, 2.5]], dtype=np.float32)
    digest = sealed(folder, graph=classifier(weights))
    from tapster.runtimes import package

    package.sign(folder, here.parts.signer)
    file = here.fresh().with_suffix(".tapster")
    file.write_bytes(b"".join(packages.export(folder)))
    assert len(digest) == 64
    error = refused(here, file)
    assert error.code == "unprocessable"
    assert "does not reproduce its recorded answers" in error.message


# -- archives


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


HOSTILE = {
    "traversal": [member("../evil")],
    "deep traversal": [member("a/../../evil")],
    "absolute": [member("/tmp/evil")],
    "nested too deep": [member("a/b/c")],
    "hidden": [member(".bashrc")],
    "symlink": [member("link", tarfile.SYMTYPE, "/etc/passwd")],
    "symlink then file": [member("d", tarfile.SYMTYPE, "/tmp"), member("d/evil")],
    "hardlink": [member("hard", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [member("null", tarfile.CHRTYPE)],
    "block device": [member("disk", tarfile.BLKTYPE)],
    "pipe": [member("pipe", tarfile.FIFOTYPE)],
    "folder": [member("folder", tarfile.DIRTYPE)],
    "contiguous": [member("odd", tarfile.CONTTYPE)],
    "twice": [member("a"), member("a")],
    "case": [member("a"), member("A")],
    "longer than the archive": [member("a", size=1 << 40)],
    "control characters": [member("a\nb")],
    "backslash": [member("..\\evil")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing_outside(tmp_path: Path, name: str) -> None:
    archive, folder = tmp_path / "x.tapster", tmp_path / "inside"
    folder.mkdir()
    with archive.open("wb") as file:
        for info in HOSTILE[name]:
            file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.write(bytes(2048))
    with pytest.raises(TapsterError) as caught:
        unpack(archive, folder)
    assert caught.value.code == "unprocessable"
    assert str(tmp_path) not in caught.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"x.tapster", "inside"}
    assert all(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = member("a", size=10)
    info.pax_headers = {"GNU.sparse.map": "0,1,1000000000,1", "GNU.sparse.size": "1000000001"}
    (tmp_path / "x").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(2048))
    (tmp_path / "inside").mkdir()
    with pytest.raises(TapsterError):
        unpack(tmp_path / "x", tmp_path / "inside")
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*")) == 0


def test_a_compressed_archive_is_refused(here: Installation) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(member("a"))
    error = refused(here, write(here, "m.tapster", packed.getvalue()))
    assert "gzip" in error.message


def test_an_archive_without_a_package_is_refused(here: Installation) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.addfile(member("a", size=3), io.BytesIO(b"abc"))
    assert refused(here, write(here, "m.tapster", plain.getvalue())).code == "unprocessable"


# -- bare ONNX files


def test_a_bare_file_gets_a_signature_and_vectors_of_its_own(here: Installation) -> None:
    file = write(here, "model.onnx", classifier())
    result = here.bring("bare", file)
    assert (result["version"], result["unvetted"]) == (1, [])
    found = here.resolve("bare")
    assert (found.task, found.runtime) == ("other", "onnx")
    assert found.signer == here.parts.signer.public
    assert found.lineage["algorithm"] == "imported ONNX"
    assert found.lineage["parameters"]["file"] == "model.onnx"
    assert found.signature["columns"] == []
    assert found.signature["inputs"] == [{"name": "numeric", "datatype": "FP32", "shape": [-1, 2]}]
    opened = open_package(here.parts.blobs.get(packages.key_of(TENANT, found.digest)), found.digest)
    assert opened.files["model.onnx"] == classifier()
    vectors = parity.load(opened.files[PARITY])
    assert [len(vector.inputs["numeric"]) for vector in vectors] == [1, 2, 3]
    assert here.bring("bare", file)["version"] == 1


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (FLOAT, ["n", "length", 3]),
        (FLOAT, [2, 3]),
        (FLOAT, [None, None]),
        (TensorProto.DOUBLE, ["n", 2]),
        (TensorProto.FLOAT16, ["n", 2]),
        (TensorProto.BOOL, ["n"]),
        (INT, ["n", 4]),
        (TensorProto.UINT8, ["n", 4]),
        (STRING, ["n", 1]),
        (FLOAT, []),
    ],
)
def test_inputs_of_many_shapes_and_types_are_drawn(
    here: Installation, kind: int, shape: list[str | int | None]
) -> None:
    made = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", kind, shape)],
        [value("y", kind, shape)],
    )
    result = here.bring("m", write(here, "m.onnx", made.SerializeToString()))
    assert result["version"] == 1


@pytest.mark.parametrize(("operator", "alone"), [("Abs", True), ("CumSum", False)])
def test_rows_that_see_their_neighbours_are_told_from_rows_that_do_not(
    here: Installation, operator: str, alone: bool
) -> None:
    inputs = ["x"] if alone else ["x", "axis"]
    made = model(
        [helper.make_node(operator, inputs, ["y"])],
        [value("x", FLOAT, ["n", 2])],
        [value("y", FLOAT, ["n", 2])],
        {} if alone else {"axis": np.array(0, dtype=np.int64)},
    )
    here.bring("m", write(here, "m.onnx", made.SerializeToString()))
    digest = here.resolve("m").digest
    opened = open_package(here.parts.blobs.get(packages.key_of(TENANT, digest)), digest)
    assert {vector.independent for vector in parity.load(opened.files[PARITY])} == {alone}


def test_open_sizes_are_found_by_trying(here: Installation) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", "width"])],
        [value("y", FLOAT, ["n", 1])],
        {"w": np.ones((16, 1), dtype=np.float32)},
    )
    assert here.bring("m", write(here, "m.onnx", made.SerializeToString()))["version"] == 1


def test_a_graph_that_runs_on_nothing_we_can_draw(here: Installation) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = model(
        nodes,
        [value("x", FLOAT, ["n", "width"])],
        [value("y", FLOAT, ["n", 1])],
        {"w": np.ones((77, 1), dtype=np.float32)},
    )
    error = refused(here, write(here, "m.onnx", made.SerializeToString()))
    assert "runs on no input drawn from its signature" in error.message


def test_a_random_graph_is_refused(here: Installation) -> None:
    made = model(
        [helper.make_node("RandomNormalLike", ["x"], ["y"])],
        [value("x", FLOAT, ["n", 2])],
        [value("y", FLOAT, ["n", 2])],
    )
    error = refused(here, write(here, "m.onnx", made.SerializeToString()))
    assert "another answer to the same input" in error.message


def test_a_graph_that_is_not_vetted_is_kept_and_says_why(here: Installation) -> None:
    made = model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [value("x", FLOAT, ["n", 2])],
        [value("y", INT, [2, "found"])],
    )
    result = here.bring("m", write(here, "m.onnx", made.SerializeToString()))
    assert result["unvetted"] == ["operator 'NonZero' is not on the vetted list"]
    assert here.resolve("m").unvetted == result["unvetted"]


# -- everything else


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("canary-was-here",))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_is_refused_unopened(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(here, write(here, "m.onnx", pickle.dumps(Canary(), protocol)))
    assert error.code == "unsupported"
    assert "pickle" in error.message
    assert "convert the model to ONNX" in error.hint
    assert not (tmp_path / "canary-was-here").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.npy", b"\x93NUMPY\x01\x00"),
        ("m.pt", b"PK\x03\x04rest"),
        ("m.h5", b"\x89HDF\r\n\x1a\n"),
        ("m.joblib", b"anything"),
        ("m.pkl", b"c__builtin__\neval\n"),
        ("m.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"),
        ("m.onnx", b"GGUF\x03\x00"),
        ("m.keras", b"x"),
    ],
)
def test_other_formats_are_refused_by_name(here: Installation, name: str, data: bytes) -> None:
    error = refused(here, write(here, name, data))
    assert error.code == "unsupported"
    assert "ONNX" in error.hint


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"\x00" * 5000, os.urandom(3000)])
def test_what_is_nothing_at_all_is_refused(here: Installation, data: bytes) -> None:
    assert refused(here, write(here, "m.onnx", data)).code == "unprocessable"


def test_an_upload_holds_one_file(here: Installation) -> None:
    one, two = write(here, "a.onnx", classifier()), write(here, "b.onnx", classifier())
    assert refused(here, one, two).code == "invalid"
    assert refused(here).code == "invalid"


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapster.runtimes.package.MAX_FILES", 10)
    headers = b"".join(member(f"f{n}").tobuf(tarfile.USTAR_FORMAT) for n in range(11))
    (tmp_path / "x").write_bytes(headers + bytes(1024))
    (tmp_path / "inside").mkdir()
    with pytest.raises(TapsterError, match="too many files"):
        unpack(tmp_path / "x", tmp_path / "inside")
    assert len(list((tmp_path / "inside").iterdir())) == 10
