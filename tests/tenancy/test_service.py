"""Keys: bootstrap, replacement, what counts as one."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text, update

from tapster.core.crypto import key_digest, new_key
from tapster.core.db import Database
from tapster.tenancy import service
from tapster.tenancy.keys import store


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Connection]:
    """A transaction over an empty database."""
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    db.migrate()
    with db.write() as tx:
        yield tx
    db.close()


def test_the_admin_key_in_the_file_is_the_only_one(tx: Connection) -> None:
    old, new = new_key(), new_key()
    service.ensure_admin(tx, old)
    before = service.revision(tx)
    service.ensure_admin(tx, old)
    assert service.revision(tx) == before, "nothing changed, so no data plane need hear of it"
    service.ensure_admin(tx, new)
    assert service.revision(tx) == before + 1
    assert service.authenticate(tx, old) is None
    who = service.authenticate(tx, new)
    assert who is not None
    assert who.may("models:write")
    assert [grant.rights for grant in service.grants(tx)] == [("*",)]


@pytest.mark.parametrize(
    "key", ["", "tap_", "' OR 1=1--", "tap_" + "x" * 300, "tap_é" + "x" * 40, "\0", "Bearer x"]
)
def test_what_is_no_key_lets_nobody_in(tx: Connection, key: str) -> None:
    service.ensure_admin(tx, new_key())
    assert service.authenticate(tx, key) is None


def test_an_expired_key_lets_nobody_in(tx: Connection) -> None:
    key = new_key()
    service.ensure_admin(tx, key)
    tx.execute(update(store.keys).values(expires=time.time() - 1))
    assert service.authenticate(tx, key) is None


def test_a_right_is_held_exactly_by_area_or_wholly(tx: Connection) -> None:
    from tapster.contract.control import Principal

    reader = Principal("t", "k", frozenset({"models:read", "jobs:*"}))
    assert reader.may("models:read")
    assert reader.may("jobs:write")
    assert not reader.may("models:write")
    assert not reader.may("admin:write")


def test_the_key_file_is_made_once_and_is_the_owners(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    key = service.ensure_key_file(path)
    assert service.ensure_key_file(path) == key
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_of_an_earlier_release_go_on(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'test.db'}")
    config = Config()
    config.set_main_option("script_location", "tapster.core:migrations")
    with db.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
    admin, other = new_key(), new_key()
    with db.write() as tx:
        tx.execute(text("INSERT INTO tenants (tenant, created) VALUES ('default', 0)"))
        for identifier, key, rights in (("key_admin", admin, '["*"]'), ("k", other, '["predict"]')):
            row = {"id": identifier, "digest": key_digest(key), "rights": rights}
            tx.execute(
                text(
                    "INSERT INTO keys (id, tenant, digest, rights, created)"
                    " VALUES (:id, 'default', :digest, :rights, 0)"
                ),
                row,
            )
    db.migrate()
    with db.write() as tx:
        service.ensure_admin(tx, admin)
        old = service.authenticate(tx, other)
        assert old is not None
        assert (old.key_id, old.rights, old.tenants) == ("k", frozenset({"predict"}), frozenset())
        who = service.authenticate(tx, admin)
        assert who is not None
        assert (who.name, who.tenants) == ("admin", frozenset({"*"}))
        assert len(service.grants(tx)) == 2
    db.close()
