"""An installation's record over a database of its own, written to without a server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

import tapster.app  # noqa: F401 - every slice's tables are registered
from tapster.contract.audit import WHOLE, Fault, Verdict
from tapster.contract.control import Principal
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.registry import trust
from tapster.tenancy.audit import service
from tapster.tenancy.audit.acts import Act, current
from tapster.tenancy.audit.heads import FILE, Heads
from tapster.tenancy.audit.record import Record

KEY = "ab" * 32


def request(
    method: str = "POST",
    route: str = "/trust",
    *,
    tenant: str = "default",
    status: int = 201,
    who: str = "key_admin",
    **named: str,
) -> Act:
    """A request under way: of a key of `tenant`, or of nobody if that is empty."""
    found = Principal(tenant, who, frozenset({"*"})) if tenant else None
    return Act(
        scope={
            "type": "http",
            "method": method,
            "path": f"/api/v1{route}",
            "client": ("192.0.2.7", 4711),
            "state": {"principal": found} if found else {},
            "route": SimpleNamespace(path=route, status_code=status),
            "path_params": named,
        }
    )


@dataclass
class Ledger:
    """A database, its record, and the folders that heads are kept in."""

    db: Database
    home: Path
    folders: list[Path]
    record: Record

    def grow(self, count: int, tenant: str = "default", first: int = 0) -> None:
        """Make changes of a tenant, a line each."""
        for at in range(first, first + count):
            self.change(f"n{at}", tenant)

    def change(self, name: str, tenant: str = "default") -> None:
        """A change by a key of a tenant's: a trusted key more."""
        token = current.set(request(tenant=tenant))
        try:
            with self.db.write() as tx:
                trust.trust(tx, tenant, name, KEY)
        finally:
            current.reset(token)

    def keep_head(self) -> None:
        """Keep a head of the newest line now."""
        self.record.close()

    def verdict(self, view: str = WHOLE) -> Verdict:
        """What the check says."""
        *_, last = service.check(self.db, self.record.heads, view)
        assert isinstance(last, Verdict)
        return last

    def faults(self, view: str = WHOLE) -> list[Fault]:
        """What is wrong."""
        found = self.verdict(view)
        assert found.ok == (not found.faults)
        return found.faults

    def tamper(self, statement: str, **values: Any) -> int:
        """Change the database behind everybody's back; how many rows that was."""
        with self.db.engine.begin() as connection:
            return connection.execute(text(statement), values).rowcount

    def heads_file(self, at: int = 0) -> Path:
        """Where heads are kept."""
        return self.folders[at] / FILE


def open_ledger(db: Database, home: Path, *, second: bool = False) -> Ledger:
    """A record over a database, as the control process makes it."""
    folders = [home / "audit", home / "elsewhere"][: 1 + second]
    record = Record(db, Heads(Signer.of(home / "audit.key"), folders))
    db.witness = record
    return Ledger(db, home, folders, record)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The record of an empty SQLite database."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    db.migrate()
    yield open_ledger(db, tmp_path)
    db.close()


@pytest.fixture
def reopened(ledger: Ledger) -> Callable[..., Ledger]:
    """The same installation, started again."""

    def again(*, second: bool = False) -> Ledger:
        return open_ledger(ledger.db, ledger.home, second=second)

    return again
