"""Homes over each database, opened with whatever keys; tenants with something sealed in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tapster import app
from tapster.app import open_parts
from tapster.core.envelope import Master
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.tenancy.audit import service as audit
from tapster.tenancy.audit.store import Selection
from tapster.tenancy.datakeys import service, store
from tapster.tenancy.tenants import service as tenants

OLD, NEW = "5eed" * 16, "f00d" * 16
URL = "postgresql://me:hunter2@example.org/shop"


class Home:
    """An installation's home and database, opened with whatever keys."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database = folder, database
        self.opened: list[Parts] = []

    def open(self, **keys: str) -> Parts:
        given: dict[str, Any] = {"home": self.folder, **keys}
        if self.database:
            given["database_url"] = self.database
        self.opened.append(open_parts(load({}, **given)))
        return self.opened[-1]

    def close(self) -> None:
        for parts in self.opened:
            if parts.vault is not None and parts.vault.root.exists():
                parts.vault.clear()
            parts.db.close()


@pytest.fixture(autouse=True)
def _stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row names the blobs of these tests."""
    monkeypatch.setattr(app, "_collect", lambda parts: None)


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """A home over each database, which is its own."""
    url = ""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        with psycopg.connect(server, autocommit=True) as line:
            line.execute("CREATE DATABASE datakeys")
        url = server.replace("/postgres?", "/datakeys?")
    made = Home(tmp_path / "home", url)
    yield made
    made.close()
    if url:
        with psycopg.connect(server, autocommit=True) as line:
            line.execute("DROP DATABASE datakeys WITH (FORCE)")


def blob(parts: Parts, tenant: str, name: str, data: bytes = b"content") -> str:
    folder = parts.settings.home.parent / f"in-{tenant}-{name}"
    folder.mkdir()
    for file in ("one", "two"):
        (folder / file).write_bytes(data + file.encode())
    key = f"{tenant}/datasets/{name}"
    parts.blobs.put(key, folder)
    return key


def content(parts: Parts, key: str) -> bytes:
    assert parts.vault is not None
    parts.vault.drop(key)
    return (parts.blobs.get(key) / "one").read_bytes()


def filled(home: Home, **keys: str) -> tuple[Parts, list[str]]:
    parts = home.open(**keys)
    with parts.db.write() as tx:
        for tenant in ("acme", "berlin"):
            tenants.add(tx, tenant)
    return parts, [blob(parts, tenant, "x") for tenant in ("acme", "berlin")]


def masters(parts: Parts) -> dict[str, int]:
    with parts.db.read() as tx:
        return store.masters(tx)


def name_of(key: str) -> str:
    return Master(bytes.fromhex(key)).name


def actions(parts: Parts, action: str) -> list[Any]:
    return list(audit.listing(parts.db, "*", Selection(action=action), 0, 100))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads while these tests seal anew."""
    monkeypatch.setattr(service, "LAST_READERS", 0.0)
    monkeypatch.setattr(service, "RETRY", 0.0)
