"""Files that clients send."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.uploads import Uploads


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_a_file_arrives_with_its_digest(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.create("acme")
    body = _pieces(b"a" * (3 << 20), b"b")
    digest, size = asyncio.run(uploads.write("acme", upload, "data v1 (2).csv", body))
    assert size == (3 << 20) + 1
    assert len(digest) == 64
    assert (uploads.check("acme", upload) / "data v1 (2).csv").stat().st_size == size


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a" * 201, "a\nb", "x\0"])
def test_a_name_that_is_more_than_a_name_is_refused(tmp_path: Path, name: str) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.create("acme")
    with pytest.raises(TapsterError, match="cannot be used as a file name"):
        asyncio.run(uploads.write("acme", upload, name, _pieces(b"x")))


def test_an_upload_belongs_to_its_tenant_and_ends(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.create("acme")
    with pytest.raises(TapsterError, match="there is no upload"):
        uploads.check("other", upload)
    kept = uploads.create("acme")
    uploads.sweep({kept})
    assert uploads.check("acme", kept).is_dir()
    with pytest.raises(TapsterError, match="there is no upload"):
        uploads.check("acme", upload)


def test_a_broken_connection_leaves_no_half_file(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    uploads = Uploads(tmp_path)
    upload = uploads.create("acme")
    with pytest.raises(TapsterError):
        asyncio.run(uploads.write("acme", upload, "a.csv", broken()))
    assert list(uploads.check("acme", upload).iterdir()) == []


def test_only_forgotten_uploads_are_swept_by_age(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    fresh, old, used = (uploads.create("acme") for _ in range(3))
    for upload in (old, used):
        os.utime(uploads.check("acme", upload), (1, 1))
    uploads.sweep({used}, age=3600)
    assert sorted(path.name for path in (tmp_path / "acme").iterdir()) == sorted([fresh, used])


def test_a_file_that_is_arriving_is_not_there_yet(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.create("acme")
    seen: list[list[Path]] = []

    async def slow() -> AsyncIterator[bytes]:
        yield b"a" * (2 << 20)
        seen.append(list(uploads.check("acme", upload).iterdir()))
        yield b"b"

    asyncio.run(uploads.write("acme", upload, "a.csv", slow()))
    assert seen == [[]]
    assert [path.name for path in uploads.check("acme", upload).iterdir()] == ["a.csv"]
    assert list((tmp_path / ".arriving").iterdir()) == []
