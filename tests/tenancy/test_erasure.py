"""The end of a tenant in steps: each may be cut off, and is taken again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapster.app import ERASERS, open_parts
from tapster.contract.control import Erasure
from tapster.contract.errors import TapsterError
from tapster.core.db import metadata
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.tenancy import service as tenancy
from tapster.tenancy.datakeys import service as datakeys
from tapster.tenancy.erasure import service, store
from tapster.tenancy.erasure.service import KEPT, Endings, Eraser
from tapster.tenancy.keys import service as keys
from tapster.tenancy.members import service as members
from tapster.tenancy.roles import store as roles
from tapster.tenancy.tenants import service as tenants
from tests.tenancy.people import who


@pytest.fixture(params=["sqlite", "postgresql"])
def parts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Parts]:
    """An installation that encrypts, over each database, with a tenant who has two objects."""
    monkeypatch.setattr(service, "_LAST_WORDS", 0.0)
    given: dict[str, Any] = {"home": tmp_path / "home", "master_key": "5eed" * 16}
    if request.param == "postgresql":
        given["database_url"] = request.getfixturevalue("postgres_url")
    made = open_parts(load({}, **given))
    with made.db.write() as tx:
        tenants.add(tx, "acme")
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_bytes(b"content")
        made.blobs.put(f"acme/datasets/{name}", folder)
    upload = made.uploads.create("acme")
    (made.uploads.check("acme", upload) / "left.csv").write_bytes(b"x")
    yield made
    with made.db.write() as tx:
        store.remove_rows(tx, "acme", KEPT)
        store.remove_tenant(tx, "acme")
        tx.execute(metadata.tables["erasures"].delete())
        tx.execute(metadata.tables["data_keys"].delete())
    assert made.vault is not None
    made.vault.clear()
    made.db.close()


def _begun(parts: Parts) -> Erasure:
    with parts.db.write() as tx:
        return service.begin(tx, "acme", "key_admin")


def _receipt(parts: Parts) -> dict[str, Any]:
    with parts.db.read() as tx:
        (found,) = service.history(tx, "acme")
    assert found.receipt is not None
    return found.receipt


def test_from_the_beginning_on_nothing_opens(parts: Parts) -> None:
    parts.blobs.get("acme/datasets/one")
    begun = _begun(parts)
    assert begun.status == "running"
    assert _begun(parts).id == begun.id, "it ends once"
    assert parts.keys is not None
    with pytest.raises(TapsterError, match="gone"):
        parts.keys.current("acme")
    with pytest.raises(TapsterError, match="gone"):
        parts.blobs.get("acme/datasets/two")
    with parts.db.write() as tx, pytest.raises(TapsterError, match="being erased"):
        tenants.resume(tx, "acme")
    with parts.db.read() as tx:
        assert datakeys.wrapped_keys(tx) == {}
        assert not tenants.active(tx, "acme")


def _fail(*_: object) -> Any:
    raise OSError("the power is cut")


@pytest.mark.parametrize("step", ["first delete", "second delete", "rows", "signature"])
def test_whatever_is_cut_off_is_done_again(
    parts: Parts, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begun(parts)
    endings = Endings(parts, ERASERS)
    with monkeypatch.context() as cut:
        delete: Callable[[str], int] = parts.blobs.delete
        if step == "first delete":
            cut.setattr(parts.blobs, "delete", _fail)
        elif step == "second delete":
            cut.setattr(parts.blobs, "delete", lambda key: _fail() if "two" in key else delete(key))
        elif step == "rows":
            endings = Endings(parts, {**ERASERS, "broken": Eraser(rows=_fail)})
        else:
            cut.setattr(parts.signer, "sign", _fail)
        with pytest.raises(OSError, match="power"):
            endings.go_on()
    with parts.db.read() as tx:
        assert service.history(tx, "acme")[0].status == "running"
        assert tenants.show(tx, "acme").status == "suspended"
    assert Endings(parts, ERASERS).go_on() == 0
    receipt = _receipt(parts)
    stored = [key for key in receipt["objects"] if "uploads" not in key]
    assert sorted(stored) == ["acme/datasets/one", "acme/datasets/two"]
    assert len(receipt["objects"]) == 3
    assert not [key for key in parts.blobs.keys() if key.startswith("acme/")]  # noqa: SIM118
    assert not (parts.settings.home / "uploads" / "acme").exists()
    with parts.db.read() as tx:
        assert store.left(tx, "acme", KEPT) == {}
        with pytest.raises(TapsterError):
            tenants.show(tx, "acme")


def test_who_goes_on_with_anothers_work_tells_all_that_was_there(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begun(parts)
    with parts.db.read() as tx:
        (row,) = store.unfinished(tx)
    endings = Endings(parts, ERASERS)
    with monkeypatch.context() as cut:
        cut.setattr(parts.blobs, "delete", _fail)
        with pytest.raises(OSError, match="power"):
            endings._end(row)
    parts.blobs.delete("acme/datasets/one")
    endings._end(row)
    assert len(_receipt(parts)["objects"]) == 3


def test_it_waits_for_what_still_runs(parts: Parts) -> None:
    _begun(parts)
    running = [2]
    endings = Endings(parts, {"jobs": Eraser(stop=lambda tx, tenant: running[0])})
    assert endings.go_on() == 1
    assert sorted(parts.blobs.keys()) == ["acme/datasets/one", "acme/datasets/two"]
    running[0] = 0
    assert endings.go_on() == 0
    assert list(parts.blobs.keys()) == []


def test_what_comes_late_is_treated_likewise(parts: Parts) -> None:
    _begun(parts)
    seen = []
    endings = Endings(parts, {"ledger": Eraser(rows=lambda tx, tenant: seen.append(tenant))})
    assert endings.go_on() == 0
    assert endings.sweep() == 0
    with parts.db.write() as tx:
        roles.put(tx, "acme", "late", ["predict"], "")
    assert endings.sweep() == 1
    assert seen == ["acme", "acme"]
    with parts.db.write() as tx:
        assert store.left(tx, "acme", KEPT) == {}
        tenants.add(tx, "acme")
        roles.put(tx, "acme", "late", ["predict"], "")
    assert endings.sweep() == 0, "a tenant of the same name is somebody else"


def test_who_could_act_for_a_tenant_cannot_act_for_the_next_of_its_name(parts: Parts) -> None:
    admin = who(tenants={"*"})
    with parts.db.write() as tx:
        tenants.add(tx, "other")
        key = keys.make(tx, admin, role="developer", reach=["acme", "other"])
        members.add(tx, admin, "ann", "developer", reach=["acme"])
    _begun(parts)
    assert Endings(parts, ERASERS).go_on() == 0
    with parts.db.write() as tx:
        tenants.add(tx, "acme")
        caller = tenancy.authenticate(tx, key.key)
        assert caller is not None
        tenancy.acting_for(tx, caller, "other")
        with pytest.raises(TapsterError, match="no tenant"):
            tenancy.acting_for(tx, caller, "acme")
        assert members.show(tx, "default", "ann").tenants == []


def test_the_installations_own_tenant_stays(parts: Parts) -> None:
    with parts.db.write() as tx, pytest.raises(TapsterError, match="cannot be erased"):
        service.begin(tx, "default", "key_admin")
    with parts.db.write() as tx, pytest.raises(TapsterError, match="no tenant"):
        service.begin(tx, "nobody", "key_admin")


def test_every_table_of_tenants_is_emptied_or_kept_on_purpose(parts: Parts) -> None:
    """A slice that adds a table with a tenant need not think of this one; others are named."""
    emptied = {table.name for table in store._emptied(KEPT)}
    for table in metadata.sorted_tables:
        if "tenant" in table.c:
            named = {"erasures", "data_keys", "revisions", "tenants", *KEPT}
            assert table.name in emptied | named
