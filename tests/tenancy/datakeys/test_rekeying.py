"""Another data key for a tenant: all it has is under it, then the former is destroyed."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from tapster.app import ERASERS, SEALED
from tapster.contract.encryption import Rekeying
from tapster.contract.errors import TapsterError
from tapster.core.envelope import sealed_with
from tapster.core.parts import Parts
from tapster.core.resealing import Piece, header_of
from tapster.datasets import store as datasets
from tapster.jobs import confidential, logs
from tapster.jobs import service as jobs
from tapster.jobs import store as job_store
from tapster.jobs.logs import JobFolders
from tapster.tenancy.datakeys import service, store
from tapster.tenancy.datakeys.service import Resealing
from tapster.tenancy.erasure import service as erasure
from tapster.tenancy.erasure.service import Endings
from tests.tenancy.datakeys.conftest import OLD, URL, Home, actions, blob, content, filled


async def _body() -> AsyncIterator[bytes]:
    yield b"sent"


def _everything(parts: Parts) -> list[Path]:
    """A tenant with blobs, an upload, a job's log and its password; the files that are sealed."""
    for name in ("p", "q"):
        blob(parts, "acme", name, b"z" * 600_000)
    upload = parts.uploads.create("acme")
    asyncio.run(parts.uploads.write("acme", upload, "a.csv", _body()))
    with parts.db.write() as tx:
        job = jobs.submit(tx, "acme", kind="dataset.import", spec={})
        confidential.keep(tx, parts.keys, "acme", job.id, {"url": URL})
    folders = JobFolders(parts)
    live = folders.root / job.id
    live.mkdir(parents=True)
    (live / "log").write_text("said")
    folders.end("acme", job.id)
    at = parts.settings.home
    found = [*at.glob("blobs/acme/*/*/*"), *at.glob("blobs/acme/*/*/.sealed")]
    return sorted({*found, *at.glob("uploads/acme/*/*"), *at.glob("jobs/*/log")})


def _opens(parts: Parts) -> None:
    """All that `_everything` has stored is what it was."""
    for name in ("p", "q"):
        assert content(parts, f"acme/datasets/{name}") == b"z" * 600_000 + b"one"
    (upload,) = (parts.settings.home / "uploads/acme").iterdir()
    into = parts.settings.home / f"opened-{time.monotonic_ns()}"
    assert (parts.uploads.open("acme", upload.name, into) / "a.csv").read_bytes() == b"sent"
    (log,) = (parts.settings.home / "jobs").iterdir()
    assert b"".join(JobFolders(parts).read("acme", log.name, 0)) == b"said"
    with parts.db.read() as tx:
        kept = job_store.secrets(tx, "acme")
    assert "hunter2" not in str(kept)
    assert confidential.opened(parts.keys, kept) == {"url": URL}


def _begin(parts: Parts) -> Rekeying:
    with parts.db.write() as tx:
        return service.begin(tx, parts.keys, "acme", "key_admin")


def _last(parts: Parts) -> Rekeying:
    with parts.db.read() as tx:
        return service.listing(tx, "acme")[0]


def _ended(parts: Parts, resealing: Resealing | None = None) -> Rekeying:
    work = resealing or Resealing(parts, SEALED, list)
    until = time.monotonic() + 60
    while work.go_on():
        assert time.monotonic() < until, _last(parts)
    return _last(parts)


def _keys(parts: Parts) -> list[str]:
    with parts.db.read() as tx:
        return store.of_tenant(tx, "acme")


def _under(files: list[Path]) -> set[str]:
    return {sealed_with(header_of(path)) for path in files}


@pytest.mark.usefixtures("quick")
def test_all_that_lies_sealed_is_under_the_new_key_and_the_former_is_destroyed(home: Home) -> None:
    parts, (_, other) = filled(home, master_key=OLD)
    files = _everything(parts)
    (former,) = _keys(parts)
    assert _under(files) == {former}
    assert len(files) == 3 * 3 + 2
    begun = _begin(parts)
    assert (begun.status, begun.objects) == ("running", 0)
    assert _keys(parts) == [begun.key, former]
    with parts.db.read() as tx:
        assert [len(each) for _, each in sorted(service.wrapped_keys(tx).items())] == [2, 1]
    with pytest.raises(TapsterError, match="already"):
        _begin(parts)
    _opens(parts)
    ended = _ended(parts)
    assert (ended.status, ended.objects, ended.resealed, ended.problem) == ("ended", 6, 6, "")
    assert _keys(parts) == [begun.key]
    assert _under(files) == {begun.key}
    _opens(parts)
    assert content(parts, other) == b"contentone", "others keep theirs"
    assert list((parts.settings.home / "sealing").iterdir()) == []
    lines = actions(parts, "tenants.rekey")
    assert [line.after and line.after.get("destroyed") for line in lines] == [[former], None]
    assert _ended(parts).id == ended.id
    assert _begin(parts).key != begun.key, "and another one"


@pytest.mark.usefixtures("quick")
def test_what_lands_after_the_key_has_changed_is_sealed_anew_by_who_lands_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _ = filled(home, master_key=OLD)
    files = _everything(parts)
    assert parts.keys is not None
    former = parts.keys.current("acme")
    upload = parts.uploads.create("acme")

    async def slow() -> AsyncIterator[bytes]:
        yield b"early"
        begun = await asyncio.to_thread(_begin, parts)
        assert begun.key != former.id
        # Somebody looks for what is under the former key, and does not find what is under way.
        resealing = Resealing(parts, SEALED, list)
        monkeypatch.setattr(service, "LAST_READERS", 60.0)
        for _ in range(3):
            await asyncio.to_thread(resealing.go_on)
        yield b"late"

    asyncio.run(parts.uploads.write("acme", upload, "b.csv", slow()))
    monkeypatch.setattr(service, "LAST_READERS", 0.0)
    path = parts.settings.home / "uploads/acme" / upload / "b.csv"
    assert sealed_with(header_of(path)) == _last(parts).key
    _ended(parts)
    opened = parts.uploads.open("acme", upload, parts.settings.home / "late")
    assert (opened / "b.csv").read_bytes() == b"earlylate"
    # So with blobs: this one was sealed before, and is put in its place now.
    current = parts.keys.current("acme")
    with monkeypatch.context() as late:
        asked, real = iter([current]), parts.keys.current
        renewed = []

        def stale(tenant: str) -> Any:
            if (key := next(asked, None)) is not None:
                renewed.append(_begin(parts))
                return key
            return real(tenant)

        late.setattr(parts.keys, "current", stale)
        blob(parts, "acme", "z")
    found = list((parts.settings.home / "blobs/acme/datasets/z").iterdir())
    assert _under(found) == {renewed[0].key}
    _ended(parts)
    assert content(parts, "acme/datasets/z") == b"contentone"
    assert _under(files) == {renewed[0].key}


@pytest.mark.usefixtures("quick")
def test_what_lands_after_the_former_key_was_destroyed_opens(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To receive a file, or to seal a large one, takes longer than to give a tenant another key."""
    parts, _ = filled(home, master_key=OLD)
    upload = parts.uploads.create("acme")

    def rekeyed() -> None:
        _begin(parts)
        assert _ended(parts).status == "ended"
        assert len(_keys(parts)) == 1

    async def slow() -> AsyncIterator[bytes]:
        yield b"early"
        await asyncio.to_thread(rekeyed)
        yield b"late"

    asyncio.run(parts.uploads.write("acme", upload, "b.csv", slow()))
    opened = parts.uploads.open("acme", upload, parts.settings.home / "late")
    assert (opened / "b.csv").read_bytes() == b"earlylate"

    put, write = parts.blobs._inner.put, logs.write_atomically  # type: ignore[attr-defined]

    def put_late(key: str, folder: Path) -> int:
        rekeyed()
        return int(put(key, folder))

    with monkeypatch.context() as late:
        late.setattr(parts.blobs._inner, "put", put_late)  # type: ignore[attr-defined]
        key = blob(parts, "acme", "z")
    assert content(parts, key) == b"contentone"

    def write_late(path: Path, data: bytes) -> None:
        rekeyed()
        write(path, data)

    folders = JobFolders(parts)
    (folders.root / "job_1").mkdir(parents=True)
    (folders.root / "job_1" / "log").write_text("said")
    with monkeypatch.context() as late:
        late.setattr(logs, "write_atomically", write_late)
        folders.end("acme", "job_1")
    assert b"".join(JobFolders(parts).read("acme", "job_1", 0)) == b"said"


@pytest.mark.usefixtures("quick")
def test_what_does_not_open_keeps_the_former_key(home: Home) -> None:
    parts, _ = filled(home, master_key=OLD)
    _everything(parts)
    begun = _begin(parts)
    broken = parts.settings.home / "blobs/acme/datasets/p/0"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1])
    resealing = Resealing(parts, SEALED, list)
    for _ in range(4):
        assert resealing.go_on() == 1
    found = _last(parts)
    assert (found.status, found.objects, found.resealed) == ("running", 6, 5)
    assert "acme/datasets/p" in found.problem
    assert len(_keys(parts)) == 2
    with pytest.raises(TapsterError, match="already"):
        _begin(parts)
    broken.write_bytes(whole)  # from a backup, under the former key
    assert _ended(parts, resealing).problem == ""
    assert _keys(parts) == [begun.key]
    _opens(parts)


@pytest.mark.usefixtures("quick")
def test_no_key_is_destroyed_for_what_cannot_be_seen(home: Home) -> None:
    """The folder of blobs is not mounted; and a look ends before its end."""
    parts, _ = filled(home, master_key=OLD)
    _everything(parts)
    _begin(parts)
    with parts.db.write() as tx:
        datasets.add_version(
            tx, "acme", "p", digest="p", rows=1, bytes=1, columns=[], source={}, parents=[], job=""
        )
    blobs, away = parts.settings.home / "blobs", parts.settings.home / "away"
    blobs.rename(away)
    resealing = Resealing(parts, SEALED, list)
    for _ in range(3):
        assert resealing.go_on() == 1
    assert "acme/datasets/p" in _last(parts).problem
    assert len(_keys(parts)) == 2
    away.rename(blobs)

    def broken(parts: Parts, tenant: str) -> Iterator[Piece]:
        yield Piece("first", lambda key: False)
        raise ValueError("a bug")

    other = Resealing(parts, {"broken": broken}, list)
    for _ in range(3):
        with pytest.raises(ValueError, match="bug"):
            other.go_on()
        assert other.go_on() == 1
        assert len(_keys(parts)) == 2
    assert _ended(parts, resealing).status == "ended"
    _opens(parts)


@pytest.mark.usefixtures("quick")
def test_what_was_deleted_meanwhile_is_no_problem(home: Home) -> None:
    parts, _ = filled(home, master_key=OLD)
    _everything(parts)
    _begin(parts)
    pieces = [piece for look in SEALED.values() for piece in look(parts, "acme")]
    assert parts.keys is not None
    key = parts.keys.current("acme")
    parts.blobs.delete("acme/datasets/p")
    for path in (parts.settings.home / "uploads/acme").glob("*/*"):
        path.unlink()
    assert [piece.reseal(key) for piece in pieces].count(False) == 2
    assert _ended(parts).status == "ended"


@pytest.mark.usefixtures("quick")
def test_an_erasure_destroys_both_keys_and_ends_the_change(home: Home) -> None:
    parts, (_, other) = filled(home, master_key=OLD)
    _everything(parts)
    known = [_begin(parts).key, *_keys(parts)[1:]]
    resealing = Resealing(parts, {"half": lambda *_: iter([])}, lambda: [0])
    resealing.go_on()
    with parts.db.write() as tx:
        erasure.begin(tx, "acme", "key_admin")
        job_store.request_cancel(tx, "acme", next(iter(job_store.of_tenant(tx, "acme"))))
    assert _keys(parts) == []
    with parts.db.write() as tx, pytest.raises(TapsterError, match="being erased"):
        service.begin(tx, parts.keys, "acme", "key_admin")
    resealing = Resealing(parts, SEALED, list)
    assert resealing.go_on() == 1
    endings = Endings(parts, ERASERS)
    until = time.monotonic() + 60
    while endings.go_on():
        assert time.monotonic() < until
        time.sleep(0.2)
    assert resealing.go_on() == 0
    with parts.db.read() as tx:
        (ended,) = erasure.history(tx, "acme")
    assert ended.receipt is not None
    assert [ended.receipt["key"], *ended.receipt["former_keys"]] == known
    assert content(parts, other) == b"contentone"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["rekeyed", "erased"])
def test_a_destroyed_key_is_not_left_in_a_copy_of_the_database(tmp_path: Path, how: str) -> None:
    home = Home(tmp_path / "home", "")
    parts, _ = filled(home, master_key=OLD)

    @event.listens_for(parts.db.engine, "checkout")
    def _as_most_builds_of_sqlite(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA secure_delete=OFF")

    with parts.db.read() as tx:
        wrapped = store.current(tx, "acme").encode()
    assert wrapped in (home.folder / "tapster.db").read_bytes()
    if how == "rekeyed":
        _begin(parts)
        _ended(parts)
    else:
        with parts.db.write() as tx:
            erasure.begin(tx, "acme", "key_admin")
    assert wrapped not in (home.folder / "tapster.db").read_bytes()
    home.close()


def test_who_has_nothing_sealed_is_given_no_key(home: Home) -> None:
    parts, _ = filled(home)
    with parts.db.write() as tx, pytest.raises(TapsterError, match="nothing of its is sealed"):
        service.begin(tx, parts.keys, "acme", "key_admin")
    with parts.db.write() as tx, pytest.raises(TapsterError, match="no tenant"):
        service.begin(tx, parts.keys, "nobody", "key_admin")


def test_data_planes_have_the_new_key_before_anything_is_under_it(home: Home) -> None:
    parts, _ = filled(home, master_key=OLD)
    files = _everything(parts)
    begun = _begin(parts)
    heard = [0]
    resealing = Resealing(parts, SEALED, lambda: heard)
    for _ in range(3):
        resealing.go_on()
    assert begun.key not in _under(files)
    heard[0] = 1 << 40
    _ended(parts, resealing)
    assert _under(files) == {begun.key}


def test_a_tenant_has_one_key_in_force(home: Home) -> None:
    parts, _ = filled(home, master_key=OLD)
    with pytest.raises(DBAPIError), parts.db.write() as tx:
        store.add(tx, "acme", "dk_second", "dk_second:x:y", "x")


DYING = """
import os, signal, sys
from tapster import app
from tapster.app import SEALED, open_parts
from tapster.core import resealing
from tapster.core.settings import load
from tapster.tenancy.datakeys import service, store
home, url, step, count = sys.argv[1:]
app._collect = lambda parts: None
service.LAST_READERS = 0.0
left = int(count)
def killing(real):
    def do(*given, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)
    return do
given = {"database_url": url} if url else {}
parts = open_parts(load({}, home=home, master_key="5eed" * 16, **given))
if step == "seal":
    resealing.Anew._seal = killing(resealing.Anew._seal)
if step == "put":
    type(parts.blobs._inner).replace = killing(type(parts.blobs._inner).replace)
if step == "destroy":
    store.destroy_former = killing(store.destroy_former)
if step == "end":
    service.remark = killing(service.remark)
work = service.Resealing(parts, SEALED, list)
while work.go_on():
    pass
"""


@pytest.mark.parametrize(
    ("home", "step", "count"),
    [
        ("sqlite", "seal", 2),
        ("sqlite", "put", 1),
        ("sqlite", "put", 4),
        ("sqlite", "destroy", 1),
        ("postgresql", "end", 1),
    ],
    indirect=["home"],
)
@pytest.mark.usefixtures("quick")
def test_whoever_seals_anew_is_killed_and_another_goes_on(
    home: Home, step: str, count: int
) -> None:
    parts, _ = filled(home, master_key=OLD)
    files = _everything(parts)
    begun = _begin(parts)
    words = [sys.executable, "-c", DYING, str(home.folder), home.database, step, str(count)]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(_keys(parts)) == 2
    _opens(parts)
    again = home.open(master_key=OLD)
    _opens(again)
    assert _ended(again).status == "ended"
    assert _under(files) == {begun.key}
    assert _keys(again) == [begun.key]
    _opens(again)
