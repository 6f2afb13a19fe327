"""Limits over HTTP and from the command line, for every kind of caller."""

import json
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from tapster.contract.errors import TapsterError
from tapster.tenancy.limits import spans
from tests.conftest import Server

LIMITS = "/api/v1/limits"
REQUESTS = {"metric": "requests", "amount": 500, "period": "day"}


class Caller:
    """Requests with one key."""

    def __init__(self, server: Server, key: str) -> None:
        self._url = server.url
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        status: int = 200,
        tenant: str = "",
        **more: Any,
    ) -> Any:
        """The answer, which must have this status; for a tenant."""
        headers = {**self._headers, **({"X-Tapster-Tenant": tenant} if tenant else {})}
        url = self._url + path
        answer = httpx.request(method, url, json=body, headers=headers, timeout=30, **more)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def admin(server: Server) -> Caller:
    """The installation, with tenants north and south."""
    made = Caller(server, server.key)
    for name in ("limits-north", "limits-south"):
        made.ask("POST", "/api/v1/tenants", {"name": name}, 201)
    return made


def key_of(server: Server, admin: Caller, tenant: str, role: str) -> Any:
    """A new key of a tenant."""
    return admin.ask("POST", "/api/v1/keys", {"name": role, "role": role}, 201, tenant)


def test_every_kind_of_caller(server: Server, admin: Caller) -> None:
    north = key_of(server, admin, "limits-north", "admin")
    reader = key_of(server, admin, "limits-north", "auditor")
    consumer = key_of(server, admin, "limits-north", "consumer")
    south = Caller(server, key_of(server, admin, "limits-south", "admin")["key"])
    made = admin.ask("POST", LIMITS, {"tenant": "limits-north", "limits": [REQUESTS]})
    assert [(one["amount"], one["set_by"]) for one in made] == [(500, "default")]
    identifier = made[0]["id"]

    own = Caller(server, north["key"])
    assert own.ask("GET", LIMITS)[0]["left"] == 500
    assert own.ask("GET", LIMITS, params={"tenant": "limits-north"})[0]["id"] == identifier
    own.ask("POST", LIMITS, {"limits": [REQUESTS]}, 403)
    tighter = {"key": consumer["id"], "limits": [{**REQUESTS, "amount": 5}]}
    assert len(own.ask("POST", LIMITS, tighter)) == 2
    own.ask("DELETE", f"{LIMITS}/{identifier}", status=403)

    Caller(server, reader["key"]).ask("GET", LIMITS)
    Caller(server, reader["key"]).ask("POST", LIMITS, tighter, 403)
    Caller(server, consumer["key"]).ask("GET", LIMITS, status=403)
    Caller(server, "tap_wrong").ask("GET", LIMITS, status=401)

    there = south.ask("GET", LIMITS, status=404, params={"tenant": "limits-north"})
    gone = south.ask("GET", LIMITS, status=404, params={"tenant": "limits-nobody"})
    assert json.dumps(there).replace("north", "nobody") == json.dumps(gone)
    there = south.ask("DELETE", f"{LIMITS}/{identifier}", status=404)
    gone = south.ask("DELETE", f"{LIMITS}/lim_0", status=404)
    assert json.dumps(there).replace(identifier, "lim_0") == json.dumps(gone)
    south.ask("POST", LIMITS, {"tenant": "limits-north", "limits": [REQUESTS]}, 404)
    south.ask("POST", LIMITS, tighter, 404)

    assert admin.ask("DELETE", f"{LIMITS}/{identifier}")["id"] == identifier
    assert len(own.ask("GET", LIMITS)) == 1


def test_bad_bodies_are_refused(admin: Caller) -> None:
    bodies: tuple[Any, ...] = (
        {},
        {"limits": [{"metric": "requests"}]},
        {"limits": [{**REQUESTS, "more": 1}]},
        {"limits": [{**REQUESTS, "amount": "many"}]},
        {"limits": [REQUESTS, REQUESTS]},
        {"limits": [{**REQUESTS, "metric": "x" * 100_000}]},
        [],
    )
    for body in bodies:
        assert admin.ask("POST", LIMITS, body, 400)["error"]["code"] == "invalid"


def test_grants_are_the_agents_business(server: Server, admin: Caller) -> None:
    limit = admin.ask("POST", LIMITS, {"tenant": "limits-south", "limits": [REQUESTS]})[0]["id"]
    body = {"machine": "m", "asks": [{"limit": limit, "day": spans.today(), "total": 20}]}
    admin.ask("POST", "/internal/grants", body, 401)
    agent = Caller(server, (server.home / "agent.key").read_text().strip())
    for _ in range(2):
        found = agent.ask("POST", "/internal/grants", body)["grants"]
        assert [(one["total"], one["left"]) for one in found] == [(20, 480)]
    agent.ask("POST", "/internal/grants", {"machine": "m", "asks": [{"limit": 5}]}, 400)
    shown = admin.ask("GET", LIMITS, params={"tenant": "limits-south"})[0]
    assert (shown["used"], shown["held"], shown["left"]) == (0, 20, 480)
    admin.ask("DELETE", f"{LIMITS}/{limit}")


def test_an_upload_that_does_not_fit_is_refused_by_name(server: Server, admin: Caller) -> None:
    storage = {"metric": "storage", "amount": 1000}
    admin.ask("POST", LIMITS, {"tenant": "limits-south", "limits": [storage]})
    south = Caller(server, key_of(server, admin, "limits-south", "developer")["key"])
    upload = south.ask("POST", "/api/v1/uploads", status=201)["id"]
    path = f"/api/v1/uploads/{upload}/files/rows.csv"
    refused = south.ask("PUT", path, status=429, content=b"x" * 2000)
    assert refused["error"]["field"] == "storage"
    south.ask("PUT", path, content=b"x" * 900)
    shown = admin.ask("GET", LIMITS, params={"tenant": "limits-south"})[0]
    assert (shown["used"], shown["left"]) == (900, 100)


def tapster(server: Server, *words: str, status: int = 0) -> Any:
    """A command's JSON document."""
    done = subprocess.run(
        [sys.executable, "-m", "tapster", *words, "--json"],
        env={"TAPSTER_HOME": str(server.home), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_from_the_command_line(server: Server, admin: Caller) -> None:
    admin.ask("POST", "/api/v1/tenants", {"name": "limits-west"}, 201)
    words = [
        "requests=500/day", "rows=1e6/month", "tokens=1e6/month", "compute=1h/day",
        "spend=5.00/month", "rate=100/s", "burst=200", "concurrency=16", "storage=10GB",
        "training=36000/month", "jobs=2", "models=20",
    ]  # fmt: skip
    made = tapster(server, "limits", "set", "--tenant", "limits-west", *words)
    amounts = {one["metric"]: (one["amount"], one["period"], one["burst"]) for one in made}
    assert amounts == {
        "requests": (500, "day", 0),
        "rows": (1e6, "month", 0),
        "tokens": (1e6, "month", 0),
        "compute": (3600, "day", 0),
        "spend": (5, "month", 0),
        "rate": (100, "", 200),
        "concurrency": (16, "", 0),
        "storage": (10**10, "", 0),
        "training": (36000, "month", 0),
        "jobs": (2, "", 0),
        "models": (20, "", 0),
    }
    shown = tapster(server, "limits", "show", "--tenant", "limits-west")
    used = {one["metric"]: one["used"] for one in shown}
    assert used == {name: None if name in {"rate", "concurrency"} else 0 for name in amounts}
    left = tapster(server, "limits", "set", "--tenant", "limits-west", "requests=none", "jobs=3")
    assert {one["metric"] for one in left} == set(amounts) - {"requests"}
    gone = left[0]
    assert tapster(server, "limits", "delete", gone["id"])["metric"] == gone["metric"]
    shown = admin.ask("GET", LIMITS, params={"tenant": "limits-west"})
    assert [one["id"] for one in shown] == [one["id"] for one in left[1:]]
    refused = tapster(server, "limits", "set", "--tenant", "limits-west", "rate=0", status=1)
    assert refused["error"]["field"] == "rate"


def test_how_limits_are_written() -> None:
    from tapster.client.limits import parse

    assert parse(["storage=1.5GiB"])[0]["amount"] == 1.5 * (1 << 30)
    assert parse(["storage=10g", "jobs=none"]) == [
        {"metric": "storage", "amount": 10**10, "period": ""},
        {"metric": "jobs", "amount": None, "period": ""},
    ]
    assert parse(["compute=2h/d"]) == [{"metric": "compute", "amount": 7200, "period": "day"}]
    assert [one["period"] for one in parse(["rows=none"])] == ["day", "month"]
    for text in ("requests", "=5", "requests=", "requests=many/day", "storage=5parsec", "burst=5"):
        with pytest.raises(TapsterError) as caught:
            parse([text])
        assert caught.value.code == "invalid"


def test_a_job_whose_result_does_not_fit_leaves_nothing(server: Server, admin: Caller) -> None:
    admin.ask("POST", "/api/v1/tenants", {"name": "limits-east"}, 201)
    storage = {"metric": "storage", "amount": 3000}
    admin.ask("POST", LIMITS, {"tenant": "limits-east", "limits": [storage]})
    east = Caller(server, key_of(server, admin, "limits-east", "developer")["key"])
    upload = east.ask("POST", "/api/v1/uploads", status=201)["id"]
    rows = "a,b\n" + "".join(f"{n},{n * n}\n" for n in range(100))
    east.ask("PUT", f"/api/v1/uploads/{upload}/files/rows.csv", content=rows.encode())
    job = east.ask("POST", "/api/v1/datasets", {"name": "d", "upload": upload}, 202)
    end = time.monotonic() + 60
    while job["status"] in {"queued", "running"} and time.monotonic() < end:
        time.sleep(0.1)
        job = east.ask("GET", f"/api/v1/jobs/{job['id']}")
    assert (job["status"], job["error"]["code"]) == ("failed", "exhausted")
    assert "limit of storage" in job["error"]["message"]
    assert east.ask("GET", "/api/v1/datasets") == []
    assert list((server.home / "blobs" / "limits-east").glob("*/*")) == []
