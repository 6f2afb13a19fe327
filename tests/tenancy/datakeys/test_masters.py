"""Another master key: all data keys are under it, or none, whatever is killed."""

import signal
import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, text

from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.core.envelope import Master, new_data_key
from tapster.jobs import confidential
from tapster.jobs import store as job_store
from tapster.tenancy.datakeys import store
from tests.tenancy.datakeys.conftest import (
    NEW,
    OLD,
    URL,
    Home,
    actions,
    content,
    filled,
    masters,
    name_of,
)


def test_a_start_with_both_wraps_all_keys_by_the_new_one(home: Home) -> None:
    parts, keys = filled(home, master_key=OLD)
    with parts.db.read() as tx:
        before = store.everything(tx)
    again = home.open(master_key=NEW, master_key_previous=OLD)
    assert masters(again) == {name_of(NEW): 2}
    with again.db.read() as tx:
        after = store.everything(tx)
    assert {t: w[0].split(":")[0] for t, w in after.items()} == {
        t: w[0].split(":")[0] for t, w in before.items()
    }, "the data keys themselves stay"
    assert (home.folder / "master-key.name").read_text().strip() == name_of(NEW)
    (line,) = actions(again, "encryption.rewrap")
    assert (line.who, line.before, line.after) == (
        "system", {"master": name_of(OLD)}, {"master": name_of(NEW), "data_keys": 2},
    )  # fmt: skip
    home.open(master_key=NEW, master_key_previous=OLD)
    alone = home.open(master_key=NEW)
    assert [content(alone, key) for key in keys] == [b"contentone"] * 2
    assert len(actions(alone, "encryption.rewrap")) == 1
    with pytest.raises(TapsterError, match="another master key") as refusal:
        home.open(master_key=OLD)
    assert name_of(NEW) in refusal.value.message
    with pytest.raises(TapsterError, match="another master key"):
        home.open(master_key="0bad" * 16, master_key_previous=OLD)
    assert masters(alone) == {name_of(NEW): 2}


def test_a_previous_key_needs_one_in_its_place(home: Home) -> None:
    with pytest.raises(TapsterError, match="none that takes its place"):
        home.open(master_key_previous=OLD)


def test_a_damaged_key_keeps_all_as_they_were(home: Home) -> None:
    parts, keys = filled(home, master_key=OLD)
    with parts.db.write() as tx:
        identifier = store.of_tenant(tx, "berlin")[0]
        wrapped = store.wrapped(tx, "berlin", identifier)
        end = "AAAA" if not wrapped.endswith("AAAA") else "BBBB"
        store.rewrap(tx, "berlin", identifier, wrapped[:-4] + end, name_of(OLD))
    with pytest.raises(TapsterError, match="damaged"):
        home.open(master_key=NEW, master_key_previous=OLD)
    assert masters(parts) == {name_of(OLD): 2}
    assert content(home.open(master_key=OLD), keys[0]) == b"contentone"


def test_a_control_process_that_was_left_behind_makes_no_key(home: Home) -> None:
    """Two over one database: one has been given the new master key, the other has not."""
    left, (key, _) = filled(home, master_key=OLD)
    home.open(master_key=NEW, master_key_previous=OLD)
    assert left.keys is not None
    with pytest.raises(TapsterError, match="has changed the master key"):
        left.keys.current("late")
    with pytest.raises(TapsterError, match="another master key") as refusal:
        content(left, key)
    assert refusal.value.code == "unavailable"


KILLED = """
import os, signal, sys
from tapster import app
from tapster.app import open_parts
from tapster.core.settings import load
from tapster.tenancy.datakeys import keyring, store
home, url, step = sys.argv[1:]
app._collect = lambda parts: None
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
write, count = store.rewrap, 0
def rewrap(*given):
    global count
    count += 1
    if step == "first" or (step == "second" and count == 2):
        die()
    write(*given)
store.rewrap = rewrap
if step == "before the commit":
    keyring.remark = die
if step == "after the commit":
    keyring.StoredKeys = die
given = {"database_url": url} if url else {}
open_parts(load({}, home=home, master_key="f00d" * 16, master_key_previous="5eed" * 16, **given))
"""


@pytest.mark.parametrize(
    ("home", "step"),
    [
        ("sqlite", "first"),
        ("sqlite", "second"),
        ("sqlite", "before the commit"),
        ("sqlite", "after the commit"),
        ("postgresql", "before the commit"),
    ],
    indirect=["home"],
)
def test_whatever_is_killed_the_keys_are_under_one_of_both(home: Home, step: str) -> None:
    parts, keys = filled(home, master_key=OLD)
    words = [sys.executable, "-c", KILLED, str(home.folder), home.database, step]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = NEW if step == "after the commit" else OLD
    assert masters(parts) == {name_of(expected): 2}
    alone = home.open(master_key=expected)
    assert [content(alone, key) for key in keys] == [b"contentone"] * 2
    both = home.open(master_key=NEW, master_key_previous=OLD)
    assert masters(both) == {name_of(NEW): 2}
    assert len(actions(both, "encryption.rewrap")) == 1


def test_keys_and_passwords_of_an_earlier_release_go_on(home: Home) -> None:
    home.folder.mkdir()
    db = Database(home.database or f"sqlite:///{home.folder / 'tapster.db'}")
    config = Config()
    config.set_main_option("script_location", "tapster.core:migrations")
    with db.engine.connect() as line:
        config.attributes["connection"] = line
        command.upgrade(config, "0014")
    key, master = new_data_key(), Master(bytes.fromhex(OLD))
    row = {"wrapped": master.wrap("acme", key)}
    with db.write() as tx:
        tx.execute(text("INSERT INTO data_keys VALUES ('acme', :wrapped, 7)"), row)
        for job in ("job_0", "job_gone"):
            given = {"job": job, "url": URL}
            tx.execute(text("INSERT INTO dataset_secrets VALUES ('acme', :job, :url)"), given)
        names = "kind status phase message lease_owner"
        fixed = "priority attempt max_attempts progress created run_after lease_token lease_expires"
        columns = [
            "id",
            "tenant",
            "spec",
            "data",
            "cancel_requested",
            *names.split(),
            *fixed.split(),
        ]
        values = ["'job_0'", "'acme'", "'{}'", "'{}'", "false", *["'queued'"] * 5, *["0"] * 8]
        tx.execute(text(f"INSERT INTO jobs ({','.join(columns)}) VALUES ({','.join(values)})"))
    db.close()
    parts = home.open(master_key=OLD)
    assert parts.keys is not None
    assert parts.keys.current("acme") == key
    assert parts.keys.find("acme", key.id) == key
    with parts.db.read() as tx:
        assert job_store.secrets(tx, "acme") == [job_store.Secret("acme", "job_0", "url", URL)]
        assert confidential.opened(None, job_store.secrets(tx, "acme")) == {"url": URL}
        created = tx.execute(select(store.data_keys.c.created)).scalar_one()
    assert created == 7
