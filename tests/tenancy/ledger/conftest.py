"""A migrated, empty database of either kind, and reports to bring into it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from tapster.contract.usage import Count, Line, Segment, UsageReport
from tapster.core.db import Database

DAY = "2026-11-21"
NOON = 1795262400.0  # of that day


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a migrated SQLite database, to be copied."""
    path = tmp_path_factory.mktemp("ledger") / "migrated.db"
    made = Database(f"sqlite:///{path}")
    made.migrate()
    made.close()
    return path


@pytest.fixture
def sqlite(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """A migrated, empty SQLite database."""
    shutil.copy(migrated, tmp_path / "test.db")
    made = Database(f"sqlite:///{tmp_path / 'test.db'}")
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgresql_server(postgres_server: str) -> Iterator[Engine]:
    """The server that all tests share, with a migrated database `ledger_template`."""
    admin = create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://", 1),
        isolation_level="AUTOCOMMIT",
    )
    _say(admin, "CREATE DATABASE ledger_template")
    made = Database(postgres_server.replace("/postgres?", "/ledger_template?", 1))
    made.migrate()
    made.close()
    yield admin
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated, empty database of either kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    admin = request.getfixturevalue("postgresql_server")
    url = request.getfixturevalue("postgres_server").replace("/postgres?", "/ledger?", 1)
    _say(admin, "CREATE DATABASE ledger TEMPLATE ledger_template STRATEGY FILE_COPY")
    made = Database(url)
    yield made
    made.close()
    _say(admin, "DROP DATABASE ledger WITH (FORCE)")


def _say(admin: Engine, words: str) -> None:
    with admin.connect() as connection:
        connection.execute(text(words))


def line(**values: str) -> Line:
    """A label: tenant `acme` asks `default` for its endpoint `wine`."""
    fixed = {
        "day": DAY,
        "tenant": "acme",
        "key": "key_a",
        "owner": "default",
        "endpoint": "ep_1",
        "name": "wine",
        "model": "wine",
        "version": "1",
    }
    return Line(**{**fixed, **values})


def count(record: int = 0, of: Line | None = None, **counters: int) -> Count:
    """Totals of a record."""
    return Count(record, of or line(), **counters)


def report(*counts: Count, sealed: bool = False, **values: Any) -> UsageReport:
    """A machine's report with one segment."""
    day = counts[0].line.day if counts else values.pop("day", DAY)
    segment = Segment(values.pop("segment", "seg"), day, sealed, counts)
    machine, days = values.pop("machine", "m1"), values.pop("open_days", (DAY,))
    return UsageReport(machine, (segment,), days)
