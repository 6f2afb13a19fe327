"""Files of payloads over both databases: taken in once, kept for their time, within their bytes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapster import app
from tapster.contract.errors import TapsterError
from tapster.core.db import metadata
from tapster.core.frames import frame, frames
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.deployments import service as deployments
from tapster.deployments import store as endpoints
from tapster.deployments.payloads import keeping, service, store
from tapster.deployments.payloads.service import Wanted
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.erasure.service import KEPT
from tapster.tenancy.tenants import service as tenants

DAY = 86400.0
NOW = 1_800_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parts]:
    """An installation that encrypts, where acme logs what `e` is asked, for two days."""
    given: dict[str, Any] = {"home": tmp_path / "home", "master_key": "5eed" * 16}
    if request.param == "postgresql":
        given["database_url"] = request.getfixturevalue("postgres_url")
    made = app.open_parts(load({}, **given))
    assert made.keys is not None
    with made.db.write() as tx:
        tenants.add(tx, "acme")
        endpoints.add(tx, "acme", "e")
        service.switch_on(tx, "acme", "e", Wanted(keep=2 * DAY))
    made.keys.current("acme")
    yield made
    with made.db.write() as tx:
        erasures.remove_rows(tx, "acme", KEPT)
        erasures.remove_tenant(tx, "acme")
        tx.execute(metadata.tables["data_keys"].delete())
    assert made.vault is not None
    made.vault.clear()
    made.db.close()


def _endpoint(parts: Parts) -> str:
    with parts.db.read() as tx:
        row = endpoints.get(tx, "acme", "e")
    assert row is not None
    return row.id


def _segment(parts: Parts, name: str, *moments: float, more: str = "") -> bytes:
    """Payloads of these moments, a frame each, as a worker sends them."""
    assert parts.keys is not None
    key = parts.keys.current("acme")
    made = b""
    for number, moment in enumerate(moments):
        line = json.dumps({"record": f"{name}-{number}", "time": moment, "text": more})
        made += frame(line.encode() + b"\n", key, number, "acme", "payloads", name)
    return made


def _take(parts: Parts, name: str, *moments: float, more: str = "") -> bool:
    data = _segment(parts, name, *moments, more=more)
    return keeping.take(parts, "acme", _endpoint(parts), name, data)


def _times(parts: Parts, since: float = 0.0) -> list[float]:
    return [json.loads(line)["time"] for line in keeping.read(parts, "acme", "e", since)]


def _files(parts: Parts) -> list[str]:
    return [key for key in parts.blobs.keys() if "/payloads/" in key]  # noqa: SIM118


def test_segments_come_in_once_and_share_a_file(parts: Parts) -> None:
    assert _take(parts, "seg_1", NOW, NOW + 1)
    assert _take(parts, "seg_2", NOW + 2)
    assert _take(parts, "seg_1", NOW, NOW + 1), "its answer was lost"
    assert _times(parts) == [NOW, NOW + 1, NOW + 2]
    assert _times(parts, NOW + 1) == [NOW + 1, NOW + 2]
    found = keeping.latest(parts, "acme", "e", 0.0, 2)
    assert [each["record"] for each in found] == ["seg_2-0", "seg_1-1"]
    keeping.sweep(parts, NOW, 1 << 30)
    assert len(_files(parts)) == 1
    assert _take(parts, "seg_3", NOW + DAY, NOW + 2)
    with parts.db.read() as tx:
        days = {row.day for row in store.of_endpoint(tx, "acme", "e", 0.0)}
    assert len(days) == 2, "a file is of one day"
    assert sorted(_times(parts)) == [NOW, NOW + 1, NOW + 2, NOW + 2, NOW + DAY]


def test_what_is_put_into_another_file_while_older_ones_are_read_is_not_left_out(
    parts: Parts,
) -> None:
    assert _take(parts, "seg_1", NOW)
    assert _take(parts, "seg_2", NOW + DAY)
    reading = keeping.read(parts, "acme", "e", 0.0)
    assert json.loads(next(reading))["time"] == NOW
    assert _take(parts, "seg_3", NOW + DAY + 1)
    keeping.sweep(parts, NOW + DAY, 1 << 30)
    assert [json.loads(line)["time"] for line in reading] == [NOW + DAY, NOW + DAY + 1]


def test_what_is_stored_is_sealed(parts: Parts) -> None:
    assert _take(parts, "seg_1", NOW, more="in the clear")
    root = parts.settings.home / "blobs" / "acme" / "payloads"
    data = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert data
    assert b"clear" not in data
    assert b"record" not in data


def test_payloads_are_kept_for_their_time_and_within_bytes(parts: Parts) -> None:
    for number in range(5):
        assert _take(parts, f"seg_{number}", NOW + number * DAY, more="x")
    keeping.sweep(parts, NOW + 4 * DAY + 1, 1 << 30)
    assert _times(parts) == [NOW + day * DAY for day in (3, 4)]
    assert len(_files(parts)) == 2
    with parts.db.read() as tx:
        assert parts.measures["storage"](tx, "acme") > 0
        (newest,) = [row.bytes for row in store.by_age(tx, "acme")][:1]
    assert keeping.sweep(parts, NOW + 4 * DAY, newest) == 1
    assert _times(parts) == [NOW + 4 * DAY]
    with parts.db.write() as tx:
        service.switch_off(tx, "acme", "e")
    keeping.sweep(parts, NOW + 5 * DAY, 1 << 30)
    assert _times(parts) == [NOW + 4 * DAY], "what is there is kept on"
    keeping.sweep(parts, NOW + 7 * DAY, 1 << 30)
    assert (_times(parts), _files(parts)) == ([], [])


def test_what_is_deleted_does_not_come_back(parts: Parts) -> None:
    past = time.time() - 60
    assert _take(parts, "seg_1", past)
    with parts.db.write() as tx:
        assert service.delete(tx, "acme", "e") == 1
    assert _take(parts, "seg_2", past, time.time() + 60), "it was on its way"
    assert len(_times(parts)) == 1
    with parts.db.write() as tx:
        deployments.delete(tx, "acme", "e")
        endpoints.add(tx, "acme", "e")
    assert not _take(parts, "seg_3", time.time()), "an endpoint of the same name is another"
    keeping.sweep(parts, time.time(), 1 << 30)
    assert _files(parts) == []
    with parts.db.read() as tx:
        assert service.every(tx, "acme") == {}


def test_segments_that_do_not_open_are_refused(parts: Parts) -> None:
    whole = _segment(parts, "seg_1", NOW, NOW + 1)
    where = _endpoint(parts)
    altered = bytearray(whole)
    altered[100] ^= 1
    assert keeping.take(parts, "acme", where, "seg_1", bytes(altered)), "nothing in it is whole"
    with pytest.raises(TapsterError, match="does not open"):
        keeping.take(parts, "acme", where, "seg_2", whole)
    assert _times(parts) == []
    assert keeping.take(parts, "acme", where, "seg_1", whole[:-1]), "its end was cut off"
    assert _times(parts) == [NOW]
    assert not keeping.take(parts, "acme", "ep_none", "seg_1", whole)
    assert not keeping.take(parts, "other", where, "seg_1", whole)


def test_a_file_of_frames_ends_where_it_is_not_whole() -> None:
    first, second = frame(b"one", None, 0, "f"), frame(b"two", None, 1, "f")
    for cut in range(len(second)):
        assert list(frames(first + second[:cut], None, "f")) == [b"one"]
    assert list(frames(first + second, None, "f")) == [b"one", b"two"]
    assert list(frames(b"\0" * 100, None, "f")) == []
