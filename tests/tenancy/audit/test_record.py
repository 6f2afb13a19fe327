"""A change and its line stand or fall together; refusals wait a second, and are counted."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, insert, select, text, update

from tapster.contract.audit import WHOLE, AuditLine
from tapster.contract.errors import TapsterError
from tapster.core.changes import HIDDEN, MOST_ROWS, Changes
from tapster.core.crypto import new_key
from tapster.registry import trust
from tapster.registry.store import trusted_keys
from tapster.tenancy import service as tenancy
from tapster.tenancy.audit import record, refusals, service
from tapster.tenancy.audit.acts import Act, about, acting, current, remark
from tapster.tenancy.audit.store import Selection
from tapster.tenancy.audit.telling import MOST_BYTES, small
from tapster.tenancy.keys import store as keys
from tests.tenancy.audit.conftest import KEY, Ledger, request


def told(ledger: Ledger, **wanted: Any) -> list[AuditLine]:
    """Lines, oldest first."""
    return service.listing(ledger.db, WHOLE, Selection(**wanted), 0, 1000)[::-1]


class Doing:
    """A request under way, for `with`."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def __enter__(self) -> Act:
        self.token = current.set(self.act)
        return self.act

    def __exit__(self, *_: object) -> None:
        current.reset(self.token)


def test_a_change_tells_who_from_where_what_before_and_after(ledger: Ledger) -> None:
    began = time.time()
    with Doing(request()), ledger.db.write() as tx:
        trust.trust(tx, "default", "berlin", KEY)
    act = request("PATCH", "/trust/{name}", status=200, name="berlin")
    with Doing(act), ledger.db.write() as tx:
        tx.execute(update(trusted_keys).values(public_key="cd" * 32))
    act = request("DELETE", "/trust/{name}", status=200, name="berlin")
    with Doing(act), ledger.db.write() as tx:
        trust.distrust(tx, "default", "berlin")
    made, changed, removed = told(ledger)
    assert (made.number, made.tenant, made.who) == (1, "default", "key_admin")
    assert (made.client, made.action, made.status) == ("192.0.2.7", "POST /trust", 201)
    assert began - 1 <= made.at <= time.time() + 1
    assert (made.object, made.before, made.code) == ("trusted-key=berlin", None, "")
    assert made.after is not None
    assert made.after["trusted_keys"][0]["public_key"] == KEY
    assert changed.object == removed.object == "name=berlin"
    assert changed.before == {"trusted_keys": [{"name": "berlin", "public_key": KEY}]}
    assert changed.after == {"trusted_keys": [{"name": "berlin", "public_key": "cd" * 32}]}
    assert removed.after is None
    assert removed.before is not None
    assert removed.before["trusted_keys"][0]["public_key"] == "cd" * 32


def test_what_is_rolled_back_leaves_no_line(ledger: Ledger) -> None:
    def fail() -> None:
        with ledger.db.write() as tx:
            trust.trust(tx, "default", "berlin", KEY)
            raise ValueError

    with Doing(request()) as act:
        with pytest.raises(ValueError):  # noqa: PT011 - ours
            fail()
        assert act.lines == 0
    assert told(ledger) == []


def test_a_line_that_cannot_be_written_undoes_its_change(ledger: Ledger) -> None:
    ledger.tamper("drop table audit_details")
    with pytest.raises(Exception, match="audit_details"):
        ledger.change("berlin")
    with ledger.db.read() as tx:
        assert trust.keys(tx, "default") == []


def test_each_tenant_whose_rows_change_has_a_line(ledger: Ledger) -> None:
    with Doing(request()), ledger.db.write() as tx:
        for tenant in ("berlin", "default", "berlin"):
            values = {"tenant": tenant, "name": f"{tenant}{time.perf_counter_ns()}"}
            tx.execute(insert(trusted_keys).values(**values, public_key=KEY, created=1.0))
    lines = told(ledger)
    assert {line.tenant for line in lines} == {"default", "berlin"}
    assert all(line.who == "key_admin" for line in lines)
    berlin = next(line for line in lines if line.tenant == "berlin")
    assert berlin.after is not None
    assert len(berlin.after["trusted_keys"]) == 2


def test_the_systems_own_work_has_a_name(ledger: Ledger) -> None:
    with acting("default", "jobs.end training", "job=job_1"), ledger.db.write() as tx:
        trust.trust(tx, "default", "a", KEY)
    with acting("default", "deployments.settle"), ledger.db.write() as tx:
        trust.trust(tx, "berlin", "b", KEY)
        remark(tx, "berlin", "deployments.rollback", "endpoint=e", after={"reason": "errors"})
    with acting("default", "deployments.settle"), ledger.db.write() as tx:
        tx.execute(select(trusted_keys))
    with ledger.db.write() as tx:  # nobody's act, and nothing said of it
        trust.trust(tx, "default", "c", KEY)
    with ledger.db.write() as tx:
        remark(tx, "default", "jobs.swept", after={"count": 2})
    job, rollback, swept = told(ledger)
    assert (job.who, job.action, job.object) == ("system", "jobs.end training", "job=job_1")
    assert (rollback.tenant, rollback.action) == ("berlin", "deployments.rollback")
    assert rollback.object == "endpoint=e"
    assert rollback.after is not None
    assert set(rollback.after) == {"trusted_keys", "reason"}
    assert (swept.action, swept.client, swept.after) == ("jobs.swept", "", {"count": 2})


def test_secrets_are_never_told(ledger: Ledger) -> None:
    key = new_key()
    with Doing(request(route="/keys")), ledger.db.write() as tx:
        tenancy.ensure_admin(tx, key)
        tx.execute(text("insert into job_secrets values ('default', 'j', 'f', 'nobody sees')"))
    with ledger.db.read() as tx:
        digest = keys.listing(tx, "default")[0]["digest"]
    with ledger.db.read() as tx:
        bodies = "".join(tx.execute(text("select body from audit_details")).scalars())
    assert "key_admin" in bodies
    assert key not in bodies
    assert digest not in bodies
    (line,) = told(ledger)
    assert line.after is not None
    assert line.after["keys"][0]["digest"] == HIDDEN
    assert "revisions" not in line.after


SECRET = "s3cretpassw0rd"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln"


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"spec": {"url": f"postgresql://me:{SECRET}@host/db?sslmode=off"}},
        {"url": f"postgresql://me:a@{SECRET}@host/db"},
        {"url": f"see https://host/x?token={SECRET} there"},
        {"url": f"https://host/?x#a@{SECRET}"},
        {"deep": [{"api_key": SECRET}, {"client_secret": SECRET}]},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"text": f"sent with Bearer {SECRET}"},
        {"text": f"-----BEGIN PRIVATE KEY-----\n{SECRET}"},
        {"text": f"$argon2id$v=19$m=1${SECRET}"},
        {"tags": {"access-token": SECRET}},
        {"tuple": (f"x://u:{SECRET}@h",)},
    ],
)
def test_what_looks_like_a_secret_is_hidden(value: dict[str, Any]) -> None:
    assert SECRET not in json.dumps(small(value))


def test_known_shapes_of_tokens_are_hidden() -> None:
    for secret in (new_key(), new_key("tas_"), TOKEN):
        assert secret not in json.dumps(small({"note": f"it is {secret}!", secret: 1}))


def test_numbers_and_public_things_stay() -> None:
    value = {"tokens": 1000, "password": True, "url": "https://host/path", "name": "a:b"}
    assert small(value) == value


@pytest.mark.parametrize(
    "value",
    [
        {"text": "x" * 10**7},
        {"list": list(range(10**5))},
        {f"k{n}": "v" * 1000 for n in range(1000)},
        {"rows": [{f"c{n}": "é" * 1000 for n in range(50)}] * 50},
        {"deep": json.loads("[" * 500 + "]" * 500)},
        {"odd": {"nan": float("nan"), "inf": float("inf"), "bytes": b"x", "set": {1}}},
        {"text": "\x00\ud800\x1b[31m"},
    ],
)
def test_details_are_small_and_any_database_can_hold_them(value: dict[str, Any]) -> None:
    found = json.dumps(small(value))
    assert len(found) <= MOST_BYTES
    assert "NaN" not in found
    assert "\\u0000" not in found
    found.encode()


def test_many_rows_are_counted(ledger: Ledger) -> None:
    with Doing(request()), ledger.db.write() as tx:
        rows = [{"tenant": "default", "name": f"n{n}", "public_key": KEY, "created": 1.0}
                for n in range(MOST_ROWS + 30)]  # fmt: skip
        tx.execute(insert(trusted_keys), rows)
    (line,) = told(ledger)
    assert line.after is not None
    assert line.after["more_rows"] == 30


def test_a_statement_for_many_tells_of_each(ledger: Ledger) -> None:
    ledger.grow(2)
    change = update(trusted_keys).where(trusted_keys.c.name == bindparam("which"))
    with Doing(request()), ledger.db.write() as tx:
        news = [{"which": f"n{n}", "public_key": f"{n}" * 64} for n in range(2)]
        tx.execute(change.values(public_key=bindparam("public_key")), news)
    with Doing(request()), ledger.db.write() as tx:
        tx.execute(update(trusted_keys).values(created=trusted_keys.c.created + 1))
    changed, computed = told(ledger)[2:]
    assert changed.before is not None
    assert changed.after is not None
    assert [row["public_key"] for row in changed.before["trusted_keys"]] == [KEY, KEY]
    assert [row["public_key"][0] for row in changed.after["trusted_keys"]] == ["0", "1"]
    assert computed.after is not None
    assert {row["created"] for row in computed.after["trusted_keys"]} == {"(computed)"}


def test_a_sign_in_tells_whose_it_is(ledger: Ledger) -> None:
    with Doing(request("POST", "/sessions", tenant="")) as act:
        about("member=mem_1", "berlin")
        assert (act.who, act.whose, act.target) == ("anonymous", "berlin", "member=mem_1")
        about("member=mem_1", "berlin", "mem_1")
        assert act.who == "mem_1"


# -- refusals


def refuse(ledger: Ledger, status: int, act: Act) -> None:
    ledger.record.ended(act, status)


def test_refusals_wait_and_are_counted(ledger: Ledger) -> None:
    for _ in range(5):
        refuse(ledger, 401, request("GET", "/models", tenant=""))
        refuse(ledger, 404, request("DELETE", "/trust/{name}", name="x"))
    refuse(ledger, 404, request("GET", "/trust/{name}", name="x"))
    refuse(ledger, 200, request("GET", "/trust"))
    assert told(ledger) == []
    ledger.record.beat()
    anonymous, known = told(ledger)
    assert (anonymous.tenant, anonymous.who, anonymous.count) == ("", "anonymous", 5)
    assert (anonymous.code, anonymous.action) == ("unauthenticated", "GET /models")
    assert (known.object, known.status, known.code, known.count) == (
        "name=x", 404, "not_found", 5,
    )  # fmt: skip
    ledger.record.beat()
    assert len(told(ledger)) == 2
    assert ledger.faults() == []


def test_a_writing_request_without_a_transaction_has_a_line(ledger: Ledger) -> None:
    refuse(ledger, 201, request("POST", "/uploads"))
    refuse(ledger, 200, request("GET", "/audit"))
    refuse(ledger, 200, request("GET", "/models/{ref}/export", ref="m@1"))
    with Doing(request()) as act:
        with ledger.db.write() as tx:
            trust.trust(tx, "default", "berlin", KEY)
        refuse(ledger, 201, act)
    ledger.record.beat()
    found = [line.action for line in told(ledger)]
    assert found == ["POST /trust", "POST /uploads", "GET /audit", "GET /models/{ref}/export"]


def test_a_flood_is_bounded_and_counted(ledger: Ledger) -> None:
    for at in range(5000):
        refuse(ledger, 404, request("DELETE", "/trust/{name}", name=f"x{at}"))
        refuse(ledger, 401, request("POST", f"/r{at}", tenant=""))
    refuse(ledger, 404, request("DELETE", "/trust/{name}", tenant="berlin", name="y"))
    began = ledger.db.writes
    ledger.record.beat()
    assert ledger.db.writes == began + 1
    lines = told(ledger)
    assert len(lines) <= 2 * (refusals.BURST + 10) + 1
    assert sum(line.count for line in lines) == 10_001
    assert [line.count for line in lines if line.tenant == "berlin"] == [1]
    vague = [line for line in lines if line.action == "*"]
    assert {(line.tenant, line.status) for line in vague} == {("default", 404), ("", 401)}
    assert ledger.faults() == []


def test_a_flood_of_many_tenants_is_bounded_too(ledger: Ledger) -> None:
    for at in range(2 * refusals.MOST):
        refuse(ledger, 404, request("DELETE", "/x/{name}", tenant=f"t{at}", name=f"x{at}"))
    ledger.record.beat()
    with ledger.db.read() as tx:
        count, total = tx.execute(text("select count(*), sum(count) from audit_lines")).one()
    assert total == 2 * refusals.MOST
    assert count <= refusals.MOST + 1001


def test_refusals_that_cannot_be_written_wait_on(ledger: Ledger) -> None:
    refuse(ledger, 404, request("DELETE", "/trust/{name}", name="x"))
    ledger.tamper("alter table audit_details rename to away")
    ledger.record.beat()
    refuse(ledger, 404, request("DELETE", "/trust/{name}", name="x"))
    ledger.tamper("alter table away rename to audit_details")
    ledger.record.close()
    assert [line.count for line in told(ledger)] == [2]


# -- heads


def test_a_head_is_kept_each_hundred_lines_each_minute_and_at_the_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> list[int]:
        path = ledger.heads_file()
        text = path.read_text() if path.exists() else ""
        return [json.loads(line)["number"] for line in text.splitlines()]

    ledger.grow(record.LINES - 1)
    assert kept() == []
    ledger.grow(1, first=500)
    assert kept() == [record.LINES]
    ledger.grow(1, first=600)
    ledger.record.beat()
    assert kept() == [record.LINES]
    monkeypatch.setattr(record, "SECONDS", 0.0)
    ledger.record.beat()
    ledger.record.beat()
    assert kept() == [record.LINES, record.LINES + 1]
    ledger.grow(1, first=700)
    ledger.record.close()
    assert kept()[-1] == record.LINES + 2
    assert ledger.faults() == []
    for path in (ledger.heads_file(), ledger.home / "audit.key"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_does_not_stop_changes(
    ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "audit").write_text("in the way")
    ledger.grow(record.LINES + 1)
    assert ledger.record.heads.newest == 0
    (tmp_path / "audit").unlink()
    ledger.record.close()
    assert ledger.faults() == []
    assert ledger.verdict().heads == 1


# -- erasure


def test_erasing_a_tenant_destroys_what_its_lines_tell_and_the_chain_holds(ledger: Ledger) -> None:
    ledger.grow(3, "berlin")
    ledger.grow(2)
    act = request("DELETE", "/tenants/{tenant}", status=200, tenant="default", name="berlin")
    with Doing(act), ledger.db.write() as tx:
        tx.execute(trusted_keys.delete().where(trusted_keys.c.tenant == "berlin"))
        assert service.erase(tx, "berlin") == 3
    lines = told(ledger, tenant="berlin")
    assert [line.action for line in lines[-1:]] == ["audit.erase"]
    for line in lines[:3]:
        assert (line.client, line.object, line.before, line.after) == ("", "", None, None)
        assert line.who == "key_admin"
    with ledger.db.read() as tx:
        left = tx.execute(text("select body from audit_details where tenant = 'berlin'")).scalars()
        assert all(KEY not in body for body in left)
    assert ledger.faults() == []
    assert ledger.faults("berlin") == []
    assert ledger.verdict().destroyed == 3
    assert told(ledger, tenant="default")[0].after is not None


def test_a_transaction_that_nobody_looks_at_costs_no_rows(ledger: Ledger) -> None:
    opened: Changes = ledger.record.opened()
    assert not opened.wanted
    with ledger.db.write() as tx:
        trust.trust(tx, "default", "berlin", KEY)
    assert told(ledger) == []


def test_writers_at_once_make_one_chain(ledger: Ledger) -> None:
    def write(tenant: str) -> None:
        for at in range(25):
            ledger.change(f"{tenant}{at}", tenant)
            refuse(ledger, 404, request("DELETE", "/trust/{name}", tenant=tenant, name=f"x{at}"))
            ledger.record.beat()

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.record.close()
    lines = told(ledger)
    assert sum(line.count for line in lines) == 200
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert ledger.faults() == []
    assert all(ledger.faults(f"t{n}") == [] for n in range(4))


def test_a_check_in_the_midst_of_changes_finds_nothing_wrong(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LINES", 2)
    done = threading.Event()

    def write(tenant: str) -> None:
        at = 0
        while not done.is_set():
            at += 1
            ledger.change(f"{tenant}{at}", tenant)

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        checks, until = 0, time.monotonic() + 60
        while checks < 15 or ledger.verdict().heads <= 2:
            assert time.monotonic() < until
            assert ledger.faults() == []
            assert ledger.faults("t0") == []
            checks += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_the_head_a_change_waited_for_is_not_another_error(ledger: Ledger) -> None:
    """A refused change is the caller's own error, with nothing of the record in it."""
    with Doing(request()), pytest.raises(TapsterError, match="not an Ed25519"):  # noqa: SIM117
        with ledger.db.write() as tx:
            trust.trust(tx, "default", "berlin", "no key")
    assert told(ledger) == []
