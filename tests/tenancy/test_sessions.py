"""Signing in with a password: the same answer for all who may not, and patience with guesses."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx
import pytest

import tapster
from tapster.contract.errors import TapsterError
from tapster.core.db import Database
from tapster.tenancy.sessions import passwords, patience, store
from tests.conftest import Server
from tests.security.walkers import wait_for

PASSWORD = "an old boot full of rain"


def test_a_password_is_kept_as_an_argon2id_hash() -> None:
    stored = passwords.hashed(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert passwords.hashed(PASSWORD) != stored
    assert passwords.matches(stored, PASSWORD)
    for wrong in ("", PASSWORD + " ", PASSWORD.upper(), "x" * 100_000, "\0", "\ud800"):
        assert not passwords.matches(stored, wrong)
    for nothing in (None, "", "no hash", "$argon2id$"):
        assert not passwords.matches(nothing, PASSWORD)
    assert not passwords.matches(None, "the password of whoever is not there")


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 257])
def test_passwords_that_are_easily_guessed(password: str) -> None:
    with pytest.raises(TapsterError) as caught:
        passwords.hashed(password)
    assert caught.value.field == "password"
    with pytest.raises(TapsterError):
        passwords.hashed("ANN@ACME.EXAMPLE", "ann@acme.example")


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database of either kind, without attempts."""
    if request.param == "sqlite":
        found = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        found = Database(request.getfixturevalue("postgres_url"))
    found.migrate()
    with found.write() as tx:
        store.sweep(tx, time.time() + 1)
    yield found
    found.close()


def test_many_attempts_at_once_are_counted_one_by_one(db: Database) -> None:
    outcomes = []

    def attempt(number: int) -> None:
        try:
            with db.write() as tx:
                patience.attempt(tx, "acme", "ann", f"10.0.0.{number}")
            outcomes.append(0.0)
        except TapsterError as error:
            outcomes.append(error.retry_after)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(0.0) == patience.MEMBER.size
    assert all(0 <= wait <= patience.MEMBER.drain for wait in outcomes)


def test_a_bucket_drains_and_a_good_attempt_empties_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()

    def tries(seconds: float, address: str = "10.0.0.1", name: str = "ann") -> bool:
        monkeypatch.setattr(time, "time", lambda: now + seconds)
        try:
            with db.write() as tx:
                patience.attempt(tx, "acme", name, address)
        except TapsterError:
            return False
        return True

    assert [tries(0) for _ in range(6)] == [True] * 5 + [False]
    assert not tries(0, address="10.0.0.2")
    assert tries(0, name="bob")
    assert [tries(61), tries(61)] == [True, False]
    with db.write() as tx:
        patience.forgive(tx, "acme", "ann", "10.0.0.1")
    assert [tries(61) for _ in range(6)] == [True] * 5 + [False]
    assert tries(61 - 7200), "a clock that was set back locks nobody out"


def test_an_address_is_counted_whatever_names_it_tries(db: Database) -> None:
    def tries(number: int, address: str) -> bool:
        try:
            with db.write() as tx:
                patience.attempt(tx, "acme", f"member{number}", address)
        except TapsterError:
            return False
        return True

    assert sum(tries(n, "192.0.2.7") for n in range(40)) == patience.ADDRESS.size
    assert sum(tries(n, f"2001:db8::{n:x}") for n in range(100, 140)) == patience.ADDRESS.size
    assert tries(200, "2001:db8:0:1::1")


@pytest.fixture(scope="module")
def home(server: Server) -> Server:
    """A server with a tenant `boots` and its member `ann`."""
    with tapster.connect(server.url, key=server.key) as admin:
        admin.tenants_add("boots")
        admin.members_add("ann", "developer", password=PASSWORD, tenant="boots")
        admin.members_add("suspended", "developer", password=PASSWORD, tenant="boots")
        admin.members_suspend("suspended", tenant="boots")
        admin.members_add("passwordless", "developer", tenant="boots")
    return server


def test_whoever_may_not_gets_one_answer_at_one_pace(home: Server) -> None:
    told, paces = set(), []
    tries = {
        "ann": "a wrong password", "suspended": PASSWORD, "passwordless": PASSWORD,
        "nobody": PASSWORD, "' OR 1=1--": PASSWORD, "\0": PASSWORD, "é" * 5000: "x" * 5000,
    }  # fmt: skip
    with httpx.Client(base_url=f"{home.url}/api/v1", timeout=60) as api:
        for tenant in ("boots", "nowhere"):
            for name, password in tries.items():
                began = time.monotonic()
                entry = {"tenant": tenant, "member": name, "password": password}
                answer = api.post("/sessions", json=entry)
                paces.append(time.monotonic() - began)
                assert answer.status_code == 401, (tenant, name, answer.text)
                told.add(answer.text)
    assert len(told) == 1
    assert min(paces) > median(paces) / 4, "none is told apart by being quick"


def test_guesses_are_slowed_down_and_say_until_when(home: Server) -> None:
    entry = {"tenant": "boots", "member": "guessed", "password": "a guess"}
    with httpx.Client(base_url=f"{home.url}/api/v1", timeout=60) as api:
        answers = [
            api.post("/sessions", json=entry, headers={"X-Forwarded-For": f"10.1.1.{n}"})
            for n in range(7)
        ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [401] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].json()["error"]["code"] == "exhausted"


def test_a_session_is_a_key_to_every_door_until_it_ends(home: Server) -> None:
    with tapster.connect(home.url, key="none") as client:
        session = client.login("ann", PASSWORD, tenant="boots")
        assert client.whoami()["name"] == "ann"
        assert client.endpoints() == []
        headers = {"Authorization": f"Bearer {session.token}"}

        def status() -> int:
            return httpx.get(f"{home.rest_url}/v2", headers=headers, timeout=30).status_code

        wait_for(lambda: status() == 200, "the session to reach the data plane")
        assert client.logout().id == session.id
        wait_for(lambda: status() == 401, "its end to reach it too")
        with pytest.raises(TapsterError) as caught:
            client.whoami()
        assert caught.value.code == "unauthenticated"


def test_whoever_changes_their_password_ends_their_other_sessions(home: Server) -> None:
    new = f"{PASSWORD}, and holes"
    with (
        tapster.connect(home.url, key="none") as one,
        tapster.connect(home.url, key="none") as two,
    ):
        one.login("ann", PASSWORD, tenant="boots")
        two.login("ann", PASSWORD, tenant="boots")
        with pytest.raises(TapsterError) as caught:
            one.change_password("not this one", new)
        assert (caught.value.code, caught.value.field) == ("forbidden", "former")
        one.change_password(PASSWORD, new)
        assert one.whoami()["name"] == "ann"
        with pytest.raises(TapsterError) as caught:
            two.whoami()
        assert caught.value.code == "unauthenticated"
        one.change_password(new, PASSWORD)


def test_a_key_is_no_member(home: Server) -> None:
    with tapster.connect(home.url, key=home.key) as client:
        for ask in (client.logout, lambda: client.change_password("x", PASSWORD)):
            with pytest.raises(TapsterError) as caught:
                ask()
            assert caught.value.code == "conflict"


def test_keys_say_when_they_were_last_used(home: Server) -> None:
    with tapster.connect(home.url, key=home.key) as admin:
        made = admin.keys_create("auditor", tenant="boots")
        with tapster.connect(home.url, key=made.key) as auditor:
            began = time.time()
            auditor.models_list()
        seen = wait_for(
            lambda: admin.keys_show(made.id, tenant="boots").last_used, "a use to be written"
        )
        assert began - 1 <= seen <= time.time()
