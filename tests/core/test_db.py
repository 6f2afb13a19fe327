"""Transactions on SQLite and PostgreSQL, and a schema that matches its migrations."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.core.blobs import LocalBlobs
from tapster.core.db import PATIENT, Database, Watch, metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated, empty database of either kind."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        database = Database(request.getfixturevalue("postgres_url"))
    database.migrate()
    yield database
    database.close()


def test_migrations_build_exactly_the_tables_of_the_slices(db: Database) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    assert differences == []


def test_every_table_has_a_tenant_column(db: Database) -> None:
    tables = set(inspect(db.engine).get_table_names()) - {"alembic_version"}
    assert tables == set(metadata.tables)
    assert all("tenant" in metadata.tables[table].c for table in tables)


def test_migrating_twice_changes_nothing(db: Database) -> None:
    db.migrate()
    with db.read() as tx:
        assert tx.execute(text("select version_num from alembic_version")).scalar_one()


def test_an_exception_rolls_everything_back(db: Database) -> None:
    def fail() -> None:
        with db.write() as tx:
            tx.execute(text("insert into tenants (tenant, created) values ('ghost', 0)"))
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - ours
        fail()
    with db.read() as tx:
        found = tx.execute(text("select count(*) from tenants where tenant = 'ghost'"))
        assert found.scalar_one() == 0


def test_writers_take_turns(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with db.write() as tx:
        tx.execute(text("create table counter (n integer)"))
        tx.execute(text("insert into counter values (0)"))

    def add() -> None:
        for _ in range(25):
            with db.write() as tx:
                number = tx.execute(text("select n from counter")).scalar_one()
                tx.execute(text("update counter set n = :n"), {"n": number + 1})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as tx:
        assert tx.execute(text("select n from counter")).scalar_one() == 100
        assert tx.execute(text("pragma journal_mode")).scalar_one() == "delete"
        assert tx.execute(text("pragma synchronous")).scalar_one() == 2
    db.close()


def test_a_blob_call_inside_a_transaction_raises(tmp_path: Path) -> None:
    db, blobs = Database(f"sqlite:///{tmp_path / 'test.db'}"), LocalBlobs(tmp_path)
    with db.read(), pytest.raises(RuntimeError, match="inside a database transaction"):
        blobs.get("a/b/c")
    db.close()


def test_a_poller_looks_after_a_write_and_now_and_then(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    watch = Watch(db)
    assert watch.news()
    assert not watch.news()
    with db.read() as tx:
        tx.execute(text("select 1"))
    assert not watch.news()
    with db.write() as tx:
        tx.execute(text("create table t (n integer)"))
    assert watch.news()
    end = time.monotonic() + 30
    while not watch.news():
        assert time.monotonic() < end
        time.sleep(0.01)
    db.close()


def test_a_lock_that_stays_is_not_waited_for_again(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    db = Database(f"sqlite:///{path}")
    with db.write() as tx:
        tx.execute(text("create table t (n integer)"))

    def attempt() -> float:
        began = time.monotonic()
        with pytest.raises(OperationalError, match="locked"), db.write():
            pass
        return time.monotonic() - began

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        assert attempt() >= PATIENT * 0.9
        assert min(attempt() for _ in range(3)) < PATIENT / 2
        other.execute("rollback")
    with db.write() as tx:
        tx.execute(text("insert into t values (1)"))
    db.close()


def test_a_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    path, away = tmp_path / "test.db", tmp_path / "away.db"
    db = Database(f"sqlite:///{path}")
    with db.write() as tx:
        tx.execute(text("create table t (n integer)"))
    path.rename(away)
    with db.engine.connect(), pytest.raises(OperationalError), db.read():
        pass  # the pool has to open another connection
    with pytest.raises(OperationalError), db.write() as tx:
        tx.execute(text("insert into t values (1)"))
    assert not path.exists()
    away.rename(path)
    with db.write() as tx:
        tx.execute(text("insert into t values (2)"))
    with db.read() as tx:
        assert tx.execute(text("select n from t")).scalars().all() == [2]
    db.close()
