"""A migrated database of either kind, with the tenants `acme` and `other`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.core.db import Database
from tapster.tenancy import service
from tapster.tenancy.tenants import service as tenants


@pytest.fixture(params=["sqlite", "postgresql"])
def tx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connection]:
    """A transaction, which is rolled back."""
    if request.param == "sqlite":
        db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        db = Database(request.getfixturevalue("postgres_url"))
    db.migrate()
    with db.engine.connect() as connection:
        connection.begin()
        tenants.ensure(connection, "default")
        for name in ("acme", "other"):
            tenants.add(connection, name)
        assert service.revision(connection) > 0
        yield connection
        connection.rollback()
    db.close()
