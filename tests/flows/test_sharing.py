"""A whole installation: endpoints shared with tenants, keys revoked, and how soon that is so."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import insert

import tapster
from tapster.client import Client
from tapster.contract.control import Key
from tapster.contract.errors import TapsterError
from tapster.core.crypto import key_digest, new_id, new_key
from tapster.core.db import Database
from tapster.tenancy.keys.store import keys
from tapster.tenancy.revisions import revise
from tapster.tenancy.tenants.store import tenants
from tests.conftest import Server
from tests.faults.soak import scaled
from tests.serving.conftest import wait_for

ROWS = {"rows": [{"x": 1.0}]}
CONNECTIONS = 16


@pytest.fixture(scope="module")
def owner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The installation's tenant, whose endpoint `wine` is live; there are tenants acme and zeta."""
    with tapster.connect(server.url, key=server.key) as client:
        path = tmp_path_factory.mktemp("data") / "wine.csv"
        path.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(40)))
        data = client.data_add("sharing", path)
        job = client.train(f"sharing@{data.version}", "y", "wine", algorithm="naive", seed=1)
        client.wait(job)
        client.deploy("wine", "wine")
        for name in ("sharing-acme", "sharing-zeta"):
            client.tenants_add(name)
        yield client


def made(owner: Client, tenant: str, role: str = "operator") -> Key:
    return owner.keys_create(role, tenant=tenant)


def asked(server: Server, name: str, key: Key) -> int:
    headers = {"authorization": f"Bearer {key.key}"}
    url = f"{server.rest_url}/v1/endpoints/{name}/predict"
    return httpx.post(url, json=ROWS, headers=headers, timeout=30).status_code


def always(server: Server, name: str, key: Key, status: int) -> None:
    """Wait until every worker answers so."""

    def check() -> bool:
        return {asked(server, name, key) for _ in range(6)} == {status}

    wait_for(check, f"{status} from {name}")


def test_an_endpoint_is_shared_called_and_withdrawn(server: Server, owner: Client) -> None:
    acme, zeta = made(owner, "sharing-acme"), made(owner, "sharing-zeta")
    always(server, "wine", acme, 404)
    plan = server.home / "run" / "plan.sealed"
    snapshot = plan.stat().st_ino
    assert owner.endpoint_share("wine", ["sharing-acme"]).shared == ["sharing-acme"]
    always(server, "wine", acme, 200)
    always(server, "default--wine", acme, 200)
    always(server, "wine", zeta, 404)
    with tapster.connect(server.url, key=acme.key) as consumer:
        [seen] = consumer.endpoints()
        assert (seen.name, seen.tenant, seen.serving) == ("wine", "default", None)
        assert consumer.predict("wine", [{"x": 1.0}])
        assert [each["name"] for each in consumer.signature("wine")["columns"]] == ["x"]
        with pytest.raises(TapsterError) as refused:
            consumer.endpoint_delete("wine")
        assert refused.value.code == "not_found"
    owner.endpoint_share("wine", everybody=True)
    always(server, "wine", zeta, 200)
    assert owner.endpoint_withdraw("wine").shared == []
    for key in (acme, zeta):
        always(server, "wine", key, 404)
    # All of that has travelled as deltas: the snapshot is the same file.
    assert plan.stat().st_ino == snapshot


def test_a_key_is_for_the_names_that_it_has(server: Server, owner: Client) -> None:
    bound = owner.keys_create("consumer", endpoints=["wine"])
    always(server, "wine", bound, 200)
    always(server, "wines", bound, 403)
    with tapster.connect(server.url, key=bound.key) as consumer:
        columns = consumer.signature("wine")["columns"]
    model = owner.models_show("wine")
    assert columns == model.signature["columns"], "who may only ask can read a table of rows, too"


def test_a_change_of_options_shows_what_was_answered(server: Server, owner: Client) -> None:
    owner.predict("wine", [{"x": 1.0}])
    known = wait_for(lambda: owner.endpoint("wine").traffic[0]["requests"], "a report")
    assert owner.endpoint_set("wine", options={"queue": 500}).traffic[0]["requests"] >= known


def test_a_tenant_that_is_suspended_is_out_until_it_is_resumed(
    server: Server, owner: Client
) -> None:
    owner.endpoint_share("wine", everybody=True)
    key = made(owner, "sharing-zeta")
    always(server, "wine", key, 200)
    owner.tenants_suspend("sharing-zeta")
    always(server, "wine", key, 403)
    owner.tenants_resume("sharing-zeta")
    always(server, "wine", key, 200)
    owner.endpoint_withdraw("wine")


def test_a_revoked_key_is_out_at_once(server: Server, owner: Client) -> None:
    key = made(owner, "default")
    always(server, "wine", key, 200)
    owner.keys_revoke(key.id)
    always(server, "wine", key, 401)


def test_who_calls_is_limited_and_pays(server: Server, owner: Client) -> None:
    """The caller's limit and the price for it hold, and no one else's; the owner earns."""
    owner.tenants_add("sharing-payer")
    payer, zeta = made(owner, "sharing-payer"), made(owner, "sharing-zeta")
    owner.prices_set("wine", {"request": "0.5"}, tenant="sharing-payer")
    owner.limits_set("requests=3/day", tenant="sharing-payer")
    owner.endpoint_share("wine", everybody=True)
    always(server, "wine", zeta, 200)
    found: Counter[int] = Counter()

    def spent() -> bool:
        found[asked(server, "wine", payer)] += 1
        return found[429] > 3

    wait_for(spent, "the limit to be reached")
    assert found[200] == 3
    assert asked(server, "wine", zeta) == 200

    def billed() -> bool:
        return bool(owner.usage("endpoint", tenant="sharing-payer")["total"]["requests"] == 3)

    wait_for(billed, "the usage to be in the ledger")
    [line] = owner.usage("endpoint", tenant="sharing-payer")["rows"]
    assert (line["owner"], line["endpoint"]) == ("default", "wine")
    owner.endpoint_withdraw("wine")


@pytest.mark.soak
def test_revocations_among_very_many_keys(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """One by one, among a hundred thousand keys of ten thousand tenants, within a second each; no
    worker keeps more than a small part of what a list of objects would take."""
    server = new_server(workers=2)
    server.stop()
    before = _memory(server.start())
    server.stop()
    count = round(scaled(100_000, 1000))
    secrets = _populate(server.home, count)
    server.start()
    with closing(_Lines(server)) as lines:
        lines.until(secrets[0][1], 404)
        assert _memory(server) - before < (40 << 20) + 500 * count
        delays = []
        headers = {"authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=30) as client:
            for tenant, (identifier, secret) in _spread(secrets, round(scaled(100, 10))):
                lines.until(secret, 404)
                act_for = {"x-tapster-tenant": tenant}
                client.delete(f"/keys/{identifier}", headers=act_for).raise_for_status()
                began = time.monotonic()
                lines.until(secret, 401)
                delays.append(time.monotonic() - began)
        lines.until(secrets[0][1], 404)
        taken = _memory(server) - before
    assert statistics.median(delays) < 1
    assert max(delays) < 10
    assert taken < (40 << 20) + 600 * count
    print(f"{count} keys: {statistics.median(delays):.3f} s, at most {max(delays):.3f} s; ", end="")
    print(f"{taken / 2**20:.0f} MiB more a worker")


class _Lines:
    """Connections enough for each worker to have some."""

    def __init__(self, server: Server) -> None:
        self._lines = [httpx.Client(base_url=server.rest_url) for _ in range(CONNECTIONS)]

    def close(self) -> None:
        for line in self._lines:
            line.close()

    def until(self, secret: str, status: int) -> None:
        """Wait until every connection is answered so."""
        headers = {"authorization": f"Bearer {secret}"}
        left, until = list(self._lines), time.monotonic() + 30
        while left:
            assert time.monotonic() < until
            left = [
                line
                for line in left
                if line.get("/v2/models/none", headers=headers).status_code != status
            ]


def _memory(server: Server) -> int:
    """Bytes of the largest worker."""
    workers = server.children("serving.worker")
    return max(int(psutil.Process(each.pid).memory_full_info().uss) for each in workers)


def _spread(secrets: list[tuple[str, str]], count: int) -> Iterator[tuple[str, tuple[str, str]]]:
    """So many of the keys, with their tenants; never the first."""
    step = max(1, (len(secrets) - 1) // count)
    for at in range(1, 1 + count * step, step):
        yield f"tenant-{at // 10}", secrets[at]


def _populate(home: Path, count: int) -> list[tuple[str, str]]:
    """Write so many keys, ten to a tenant; their ids and secrets."""
    database = Database(f"sqlite:///{home / 'tapster.db'}")
    now = time.time()
    made = [(new_id("key"), new_key()) for _ in range(count)]
    rows = [
        {
            "id": identifier,
            "tenant": f"tenant-{at // 10}",
            "digest": key_digest(secret),
            "rights": [],
            "role": "consumer",
            "created": now,
        }
        for at, (identifier, secret) in enumerate(made)
    ]
    with database.write() as tx:
        names = sorted({f"tenant-{at // 10}" for at in range(count)})
        tx.execute(insert(tenants), [{"tenant": name, "created": now} for name in names])
        tx.execute(insert(keys), rows)
        revise(tx, "tenant-0", "keys were written")
    database.close()
    return made
