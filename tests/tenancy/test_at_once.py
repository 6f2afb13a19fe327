"""The same thing at the same moment, by several transactions that are open together."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, text

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.contract.errors import TapsterError
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.envelope import Master, Masters
from tapster.tenancy import service
from tapster.tenancy.datakeys import service as datakeys
from tapster.tenancy.datakeys import store as datakey_rows
from tapster.tenancy.datakeys.keyring import StoredKeys
from tapster.tenancy.erasure import service as erasure
from tapster.tenancy.erasure import store as erasures
from tapster.tenancy.members import service as members
from tapster.tenancy.sessions import service as sessions
from tapster.tenancy.tenants import service as tenants
from tests.tenancy.people import who

SECONDS = 60


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    """A database where writers do not wait for one another."""
    database = Database(postgres_url)
    yield database
    database.close()


def outcome(db: Database, verb: Callable[[Connection], Any]) -> str:
    """What became of a transaction: `done`, or the code of its refusal."""
    try:
        with db.write() as tx:
            verb(tx)
    except TapsterError as error:
        return error.code
    return "done"


def _waits(db: Database) -> bool:
    """Whether a transaction waits for another's lock."""
    query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with db.read() as tx:
        return bool(tx.execute(text(query)).scalar_one())


def overlapping(
    db: Database,
    first: Callable[[Connection], Any],
    second: Callable[[Connection], Any],
    *,
    keep: bool = True,
) -> str:
    """What becomes of `second`, which begins before `first` has committed, or given up."""
    with ThreadPoolExecutor(1) as pool:
        later: Future[str]
        with db.engine.connect() as connection:
            transaction = connection.begin()
            first(connection)
            later = pool.submit(outcome, db, second)
            until = time.monotonic() + SECONDS
            while not _waits(db):
                assert time.monotonic() < until
                assert not later.done(), later.result()
                time.sleep(0.005)
            transaction.commit() if keep else transaction.rollback()
        return later.result(SECONDS)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_one_of_many_makes_a_tenant(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "postgresql":
        db = request.getfixturevalue("postgres")
    else:
        db = Database(f"sqlite:///{tmp_path / 'test.db'}")
        db.migrate()
    begin = threading.Barrier(6)

    def add(name: str) -> str:
        begin.wait(SECONDS)
        return outcome(db, lambda tx: tenants.add(tx, name))

    with ThreadPoolExecutor(6) as pool:
        for number in range(3):
            found = sorted(pool.map(add, [f"acme-{number}"] * 6))
            assert found == [*["conflict"] * 5, "done"]
        # Other names have nothing to do with it.
        assert set(pool.map(add, [f"other-{number}" for number in range(6)])) == {"done"}
    with db.read() as tx:
        assert len(tenants.listing(tx)) == 9
    db.close()


@pytest.mark.parametrize(("keep", "expected"), [(True, "conflict"), (False, "done")])
def test_a_tenant_that_another_is_making(postgres: Database, keep: bool, expected: str) -> None:
    def add(tx: Connection) -> None:
        tenants.add(tx, "acme")

    assert overlapping(postgres, add, add, keep=keep) == expected
    with postgres.read() as tx:
        assert [each.name for each in tenants.listing(tx)] == ["acme"]


def test_of_two_owners_who_are_taken_away_at_once_one_stays(postgres: Database) -> None:
    owner = who(tenant="acme")
    with postgres.write() as tx:
        tenants.add(tx, "acme")
        members.add(tx, owner, "ann", "owner")
        members.add(tx, owner, "bob", "owner")
    refused = overlapping(
        postgres,
        lambda tx: service.change_member(tx, owner, "ann", role="developer"),
        lambda tx: service.remove_member(tx, owner, "bob"),
    )
    assert refused == "conflict"
    with postgres.read() as tx:
        assert [(each.name, each.role) for each in members.listing(tx, "acme")] == [
            ("ann", "developer"),
            ("bob", "owner"),
        ]


@pytest.fixture
def keys(postgres: Database) -> StoredKeys:
    """The keyring of an installation with a tenant `acme`, which has no data key yet."""
    with postgres.write() as tx:
        tenants.add(tx, "acme")
    return StoredKeys(postgres, Masters(Master(bytes(32))))


def _data_keys(db: Database) -> list[str]:
    with db.read() as tx:
        return datakey_rows.of_tenant(tx, "acme")


def test_a_tenant_is_given_one_other_key_at_a_time(postgres: Database, keys: StoredKeys) -> None:
    """The first of two to end would destroy what the other has yet to seal anew."""
    keys.current("acme")

    def begin(tx: Connection) -> None:
        datakeys.begin(tx, keys, "acme", "key_admin")

    assert overlapping(postgres, begin, begin) == "conflict"
    assert len(_data_keys(postgres)) == 2
    with postgres.read() as tx:
        assert len(datakeys.history(tx, "acme")) == 1


@pytest.mark.parametrize("making", ["first", "another"])
def test_a_key_that_is_made_as_its_tenant_ends_is_destroyed_too(
    postgres: Database, keys: StoredKeys, making: str
) -> None:
    def make(tx: Connection) -> None:
        if making == "first":
            keys.within(tx, "acme")
        else:
            datakeys.begin(tx, keys, "acme", "key_admin")

    if making == "another":
        keys.current("acme")
    assert overlapping(postgres, make, lambda tx: erasure.begin(tx, "acme", "key_admin")) == "done"
    assert _data_keys(postgres) == []


def test_a_tenant_ends_once(postgres: Database, keys: StoredKeys) -> None:
    def begin(tx: Connection) -> None:
        erasure.begin(tx, "acme", "key_admin")

    assert overlapping(postgres, begin, begin) == "done"
    with postgres.read() as tx:
        assert len(erasure.history(tx, "acme")) == 1


def test_a_tenant_that_is_just_being_erased_is_not_resumed(
    postgres: Database, keys: StoredKeys
) -> None:
    with postgres.write() as tx:
        service.suspend_tenant(tx, "acme")

    def begin(tx: Connection) -> None:
        erasure.begin(tx, "acme", "key_admin")

    assert overlapping(postgres, begin, lambda tx: tenants.resume(tx, "acme")) == "conflict"
    with postgres.read() as tx:
        assert not tenants.active(tx, "acme")


def test_of_two_who_end_a_tenant_one_says_what_went(
    postgres: Database, keys: StoredKeys, tmp_path: Path
) -> None:
    with postgres.write() as tx:
        members.add(tx, who(tenant="acme"), "ann", "owner")
        erasure.begin(tx, "acme", "key_admin")
        row = erasures.ending(tx, "acme")
    parts: Any = SimpleNamespace(signer=Signer.of(tmp_path / "signing.key"))
    endings = erasure.Endings(parts, {})

    def close(tx: Connection) -> None:
        found = {"key": "", "objects": {}, "folders": 0, "bytes": 0}
        endings._close(tx, row, found)

    assert overlapping(postgres, close, close) == "done"
    with postgres.read() as tx:
        (ended,) = erasure.history(tx, "acme")
    assert ended.receipt is not None
    assert ended.receipt["rows"]["members"] == 1


@pytest.mark.parametrize("how", ["password", "suspended", "removed"])
def test_nobody_signs_in_by_what_is_just_being_taken_away(postgres: Database, how: str) -> None:
    """Whoever takes it ends the sessions that there are, and this one is not there yet."""
    owner = who(tenant="acme")
    with postgres.write() as tx:
        tenants.add(tx, "acme")
        ann = members.add(tx, owner, "ann", "developer", password="stolen")

    def take(tx: Connection) -> None:
        if how == "password":
            service.set_password(tx, owner, "ann", "another")
        elif how == "suspended":
            service.suspend_member(tx, owner, "ann")
        else:
            service.remove_member(tx, owner, "ann")

    def sign_in(tx: Connection) -> None:
        service.sign_in(tx, "acme", ann.id, how="password", address="", seconds=60, proved="stolen")

    assert overlapping(postgres, take, sign_in) == "unauthenticated"
    with postgres.read() as tx:
        assert sessions.listing(tx, "acme") == []
