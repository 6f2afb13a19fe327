"""The record over the API, the SDK and the command line, each tenant with its own lines."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tapster.client import Client, connect
from tapster.contract.audit import AuditLine
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.tenancy.audit.conftest import KEY

SECONDS = 30


@pytest.fixture(scope="module")
def admin(server: Server) -> Any:
    with connect(server.url, key=server.key) as tapster:
        yield tapster


def key_of(server: Server, tenant: str, role: str) -> str:
    """A key of a tenant's, which is made if it is new."""
    headers = {"authorization": f"Bearer {server.key}"}
    httpx.post(f"{server.url}/api/v1/tenants", json={"name": tenant}, headers=headers)
    headers["x-tapster-tenant"] = tenant
    answer = httpx.post(f"{server.url}/api/v1/keys", json={"role": role}, headers=headers)
    assert answer.is_success, answer.text
    return str(answer.json()["key"])


def eventually(find: Callable[[], list[AuditLine]], count: int = 1) -> list[AuditLine]:
    """Lines that are written within a second or two."""
    end = time.monotonic() + SECONDS
    while len(found := find()) < count:
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_each_tenant_sees_its_own_lines_and_the_installation_all(
    server: Server, admin: Client
) -> None:
    auditor = key_of(server, "audited", "auditor")
    key_of(server, "unseen", "auditor")
    with connect(server.url, key=auditor) as theirs:
        lines = theirs.audit_list()
        assert {line.tenant for line in lines} == {"audited"}
        made = next(line for line in lines if line.action == "POST /keys")
        assert made.who == "key_admin", "who acts for a tenant stands in that tenant's record"
        assert theirs.audit_list(tenant="unseen") == []
        assert theirs.audit_list(tenant="no-such-tenant") == []
        verdict = theirs.audit_verify()
        assert verdict.ok
        assert verdict.lines >= len(lines)
        head = theirs.audit_head()
        assert head.view == "audited"
    assert {line.tenant for line in admin.audit_list(limit=1000)} >= {"default", "audited"}
    of_one = admin.audit_list(tenant="audited", action="POST /keys", who="key_admin")
    assert [line.tenant for line in of_one] == ["audited"]
    assert admin.audit_verify().ok


def test_who_may_not_look_is_turned_away_and_that_is_recorded(
    server: Server, admin: Client
) -> None:
    consumer = key_of(server, "audited", "consumer")
    for path in ("/audit", "/audit/head", "/audit/verify", "/audit/export"):
        answer = httpx.get(
            f"{server.url}/api/v1{path}", headers={"authorization": f"Bearer {consumer}"}
        )
        assert answer.status_code == 403
        found = eventually(
            lambda path=path: [  # type: ignore[misc]
                line
                for line in admin.audit_list(tenant="audited", action=f"GET {path}")
                if line.action == f"GET {path}" and line.status == 403
            ]
        )
        assert found[0].code == "forbidden"
        assert found[0].who.startswith("key_")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "before=-1",
        "since=nan",
        "since=-1",
        "until=1e99",
        "who=%00",
        "action=" + "x" * 300,
        "tenant=%0a",
    ],
)
def test_odd_questions_are_refused(server: Server, query: str) -> None:
    for path in ("/audit", "/audit/export")[: 1 if "limit" in query or "before" in query else 2]:
        answer = httpx.get(
            f"{server.url}/api/v1{path}?{query}",
            headers={"authorization": f"Bearer {server.key}"},
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid"


def test_lines_come_page_by_page_and_between_times(server: Server, admin: Client) -> None:
    began = time.time()
    for at in range(5):
        admin.trust_add(f"paged{at}", KEY)
    mine = admin.audit_list(action="POST /trust", since=began - 0.001, limit=2)
    more = admin.audit_list(action="POST /trust", since=began - 0.001, before=mine[-1].number)
    names = [line.after["trusted_keys"][0]["name"] for line in (*mine, *more) if line.after]
    assert names == [f"paged{at}" for at in (4, 3, 2, 1, 0)]
    times = [line.at for line in (*mine, *more)]
    between = admin.audit_list(action="POST /trust", since=times[3], until=times[1])
    assert [line.number for line in between] == [line.number for line in more[:2]]
    for at in range(5):
        admin.trust_remove(f"paged{at}")


def test_looking_is_recorded(admin: Client) -> None:
    admin.audit_list(limit=1)
    assert eventually(lambda: admin.audit_list(action="GET /audit", limit=1))


def test_what_a_job_makes_is_the_systems_work(
    server: Server, admin: Client, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    made = admin.data_add("audited-rows", tmp_path / "rows.csv")
    (line,) = [
        line
        for line in admin.audit_list(action="jobs.end dataset.import", limit=50)
        if line.object == f"job={made.job}"
    ]
    assert (line.who, line.client, line.tenant) == ("system", "", "default")
    assert line.after is not None
    assert line.after["dataset_versions"][0]["name"] == "audited-rows"
    assert line.after["jobs"][0]["status"] == "succeeded"
    admin.data_delete("audited-rows")


def run(server: Server, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, as a person types it."""
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("TAPSTER_")},
        "TAPSTER_URL": server.url,
        "TAPSTER_KEY": server.key,
        "TAPSTER_HOME": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-m", "tapster", "audit", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_line_lists_checks_and_exports(
    server: Server, admin: Client, tmp_path: Path
) -> None:
    admin.trust_add("shown", KEY)
    admin.trust_remove("shown")
    listed = run(server, tmp_path, "list", "--action", "/trust", "--limit", "2")
    assert listed.returncode == 0
    assert "DELETE /trust/{name}" in listed.stdout
    assert "name=shown" in listed.stdout
    as_json = run(server, tmp_path, "list", "--action", "/trust", "--limit", "1", "--json")
    assert json.loads(as_json.stdout)[0]["object"] == "name=shown"
    whole = run(server, tmp_path, "verify")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith("the record is whole: ")
    written = run(server, tmp_path, "export", "all.jsonl", "--json")
    assert json.loads(written.stdout)["bytes"] == (tmp_path / "all.jsonl").stat().st_size
    heads = str(server.home / "audit" / "heads.jsonl")
    offline = ("verify", "--file", "all.jsonl", "--heads", heads)
    assert run(server, tmp_path, *offline).returncode == 0
    text = (tmp_path / "all.jsonl").read_text().replace('"who":"key_admin"', '"who":"key_other"', 1)
    (tmp_path / "all.jsonl").write_text(text)
    broken = run(server, tmp_path, *offline)
    assert broken.returncode == 1
    assert "the record is not whole" in broken.stdout
    assert "line 1: it was changed" in broken.stdout or "was changed" in broken.stdout
    assert json.loads(run(server, tmp_path, *offline, "--json").stdout)["ok"] is False
    piped = run(server, tmp_path, "export", "-", "--action", "/trust", "--from", "2000-01-01")
    assert json.loads(piped.stdout.splitlines()[-1])["complete"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--from", "yesterday"], "is not a day or a time"),
        (["verify", "--heads", "x"], "--heads and --key go with --file"),
        (["verify", "--file", "absent"], "cannot be read"),
        (["export", "-", "--json"], "cannot go with -"),
        (["export", "no/such/folder/x"], "cannot be written"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    server: Server, tmp_path: Path, words: list[str], said: str
) -> None:
    done = run(server, tmp_path, *words)
    assert done.returncode == 1
    assert said in (done.stderr or done.stdout)
    assert "Traceback" not in done.stderr


def test_a_server_without_an_answer_is_said(tmp_path: Path) -> None:
    with connect("http://127.0.0.1:9", key="x") as nobody, pytest.raises(TapsterError) as error:
        nobody.audit_verify()
    assert error.value.code == "unavailable"
