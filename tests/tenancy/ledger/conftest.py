"""A migrated, empty database of either kind, and reports to bring into it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.contract.usage import Count, Line, Segment, UsageReport
from tapster.core.db import Database

DAY = "2026-11-21"
NOON = 1795262400.0  # of that day


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite database."""
    made = Database(f"sqlite:///{tmp_path / 'test.db'}")
    made.migrate()
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgresql_database(postgres_url: str) -> str:
    """A database of our own on the server that all tests share."""
    admin = create_engine(
        postgres_url.replace("postgresql://", "postgresql+psycopg://", 1),
        isolation_level="AUTOCOMMIT",
    )
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE ledger"))
    admin.dispose()
    return postgres_url.replace("/postgres?", "/ledger?", 1)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated, empty database of either kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    made = Database(request.getfixturevalue("postgresql_database"))
    with made.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    made.migrate()
    yield made
    made.close()


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
