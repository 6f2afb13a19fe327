"""What is another tenant's answers as if it were not there, whatever is asked of it. Number 37, 38.

One tenant has one of everything; the owner of another asks for each, by its name, over every
route and method, and for a ghost of the same spelling. The two answers must be one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest

import tapster
from tests.conftest import Server
from tests.security.rights_table import section
from tests.security.walkers import wait_for

NAME: Final = "secretive"
GHOST: Final = "evitterce"
PASSWORD: Final = "nobody guesses this one"
# What a route's body must have to come as far as the object; `{...}` as in paths.
BODIES: Final[dict[str, Any]] = {
    "POST /api/v1/datasets": {"name": "brought", "upload": "{upload}"},
    "POST /api/v1/datasets/{ref}/clean": {"recipe": {"steps": [{"op": "drop_duplicates"}]}},
    "POST /api/v1/training": {"dataset": "{ref}", "target": "y", "model": "taken"},
    "POST /api/v1/models/{model}/import": {"upload": "{upload}"},
    "PATCH /api/v1/models/{ref}": {"description": "mine now"},
    "POST /api/v1/models/{model}/share": {"tenants": ["anybody"]},
    "POST /api/v1/endpoints/{endpoint}/deploy": {"model": "{ref}"},
    "PATCH /api/v1/endpoints/{endpoint}": {"options": {"queue": 1}},
    "PUT /api/v1/endpoints/{endpoint}/logging": {"sample": 0.5},
    "POST /api/v1/members": {"name": "somebody", "role": "{role}"},
    "PATCH /api/v1/members/{member}": {"role": "consumer"},
    "PUT /api/v1/members/{member}/password": {"password": PASSWORD},
    "POST /api/v1/keys": {"role": "{role}"},
    "POST /api/v1/sessions": {"tenant": "snoopers", "member": "{member}", "password": PASSWORD},
}


@dataclass
class Keepers:
    """A tenant with one of everything, by the names of parameters; a key of another's owner."""

    server: Server
    key: str
    real: dict[str, str]
    snoop: str
    api: httpx.Client

    def ask(self, key: str, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.api.request(method, path, json=body, headers=headers)


@pytest.fixture(scope="module")
def keepers(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keepers]:
    """See Keepers. The endpoint answers."""
    folder = tmp_path_factory.mktemp("keepers")
    (folder / "d.csv").write_text("x,y\n" + "".join(f"{n},{n % 2 + 0.5}\n" for n in range(40)))
    with tapster.connect(server.url, key=server.key) as admin:
        for tenant in ("keepers", "snoopers"):
            admin.tenants_add(tenant)
        key = admin.keys_create("owner", tenant="keepers").key
        snoop = admin.keys_create("owner", tenant="snoopers").key
    with tapster.connect(server.url, key=key) as mine:
        mine.data_add(NAME, folder / "d.csv")
        job = mine.wait(mine.train(NAME, "y", NAME, algorithm="naive", seed=1))
        mine.models_alias(f"{NAME}@1", "best")
        mine.deploy(NAME)
        mine.roles_set("labeller", ["datasets:read"])
        mine.trust_add("friend", "ab" * 32)
        member = mine.members_add("keeper", "labeller", password=PASSWORD)
        made = mine.keys_create("consumer")
    found = Keepers(server, key, {}, snoop, httpx.Client(base_url=server.url, timeout=30))
    entry = {"tenant": "keepers", "member": "keeper", "password": PASSWORD}
    found.real = {
        **dict.fromkeys(("ref", "model", "endpoint"), NAME),
        "alias": "best",
        "job": job.id,
        "upload": found.ask(key, "POST", "/api/v1/uploads").json()["id"],
        "filename": "a.csv",
        "key": made.id,
        "member": member.name,
        "role": "labeller",
        "session": found.ask("", "POST", "/api/v1/sessions", entry).json()["id"],
        "tenant": "keepers",
        "name": "friend",
        "month": "2020-01",
    }
    yield found
    found.api.close()


def _ghosts(real: dict[str, str]) -> dict[str, str]:
    """Of the same spelling, and not there."""
    spelled = {"alias": "tseb", "member": "repeek", "role": "rellebal", "tenant": "srepeek"}
    spelled |= {"name": "dneirf", **dict.fromkeys(("ref", "model", "endpoint"), GHOST)}
    kept = {"filename", "month"}
    return {
        name: spelled.get(name)
        or (value if name in kept else re.sub(r"_.*", "_" + "0123456789abcdef"[:16], value))
        for name, value in real.items()
    }


def _filled(template: Any, names: dict[str, str]) -> Any:
    """A path or a body with names in place of parameters; of those unknown, `x`."""
    if isinstance(template, str):
        return re.sub(r"\{([^}]+)\}", lambda found: names.get(found[1], "x"), template)
    if isinstance(template, dict):
        return {name: _filled(value, names) for name, value in template.items()}
    return [_filled(each, names) for each in template] if isinstance(template, list) else template


def _told(text: str, ghosts: dict[str, str], real: dict[str, str]) -> str:
    """An answer with the real names in place of the ghosts'."""
    for name, ghost in ghosts.items():
        text = text.replace(ghost, real[name])
    return text


def _everything(keepers: Keepers) -> dict[str, str]:
    lists = ("datasets", "models", "endpoints", "jobs", "roles", "members", "sessions", "trust")
    return {what: keepers.ask(keepers.key, "GET", f"/api/v1/{what}").text for what in lists}


@pytest.mark.parametrize("owner", ["", "keepers--"])
def test_37_on_control_what_is_anothers_is_a_ghost(keepers: Keepers, owner: str) -> None:
    shareable = ("ref", "model", "endpoint")
    real, ghosts = (
        names | {each: owner + names[each] for each in shareable}
        for names in (keepers.real, _ghosts(keepers.real))
    )
    before = _everything(keepers)
    asked = 0
    for route, (right, _) in section("Control API").items():
        method, _, template = route.partition(" ")
        body = BODIES.get(route, {})
        if right == "agent" or ("{" not in template and route not in BODIES):
            continue
        if template in {"/api/v1/tenants/{tenant}", "/api/v1/invoices/{month}"}:
            continue  # forbidden to all but `default`; a period, and nobody's
        theirs, nobodys = (
            keepers.ask(keepers.snoop, method, _filled(template, names), _filled(body, names))
            for names in (real, ghosts)
        )
        assert theirs.status_code < 500, (route, theirs.text)
        assert theirs.status_code == nobodys.status_code, (route, theirs.text, nobodys.text)
        if theirs.status_code >= 300:
            assert theirs.text == _told(nobodys.text, ghosts, real), route
        asked += 1
    assert asked > 45
    after = _everything(keepers)
    assert {w: json.loads(t) for w, t in after.items()} == {
        w: json.loads(t) for w, t in before.items()
    }


def test_37_what_is_there_is_seen_by_its_own_and_by_who_acts_for_it(keepers: Keepers) -> None:
    acting = {"Authorization": f"Bearer {keepers.server.key}", "X-Tapster-Tenant": "keepers"}
    for path in (f"datasets/{NAME}", f"models/{NAME}", f"endpoints/{NAME}", "members/keeper"):
        own = keepers.ask(keepers.key, "GET", f"/api/v1/{path}")
        assert own.status_code == 200, path
        assert keepers.ask(keepers.server.key, "GET", f"/api/v1/{path}").status_code == 404
        url = f"{keepers.server.url}/api/v1/{path}"
        assert httpx.get(url, headers=acting, timeout=30).json() == own.json()
        sneaking = {"Authorization": f"Bearer {keepers.snoop}", "X-Tapster-Tenant": "keepers"}
        theirs = httpx.get(url, headers=sneaking, timeout=30)
        sneaking["X-Tapster-Tenant"] = "srepeek"
        nobodys = httpx.get(url, headers=sneaking, timeout=30)
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.text == nobodys.text.replace("srepeek", "keepers")


def test_37_over_rest_what_is_anothers_is_a_ghost(keepers: Keepers) -> None:
    rows = {"rows": [{"x": 1.0}]}
    with httpx.Client(base_url=keepers.server.rest_url, timeout=30) as api:

        def ask(key: str, route: str, name: str) -> httpx.Response:
            method, _, template = route.partition(" ")
            path = _filled(template, {"name": name, "version": "1", "label": "best"})
            headers = {"Authorization": f"Bearer {key}"}
            return api.request(method, path, json=rows, headers=headers)

        predict = "POST /v1/endpoints/{name}/predict"
        wait_for(lambda: ask(keepers.key, predict, NAME).status_code == 200, "the endpoint")
        for route in section("REST"):
            if "{name}" not in route:
                continue
            theirs = ask(keepers.snoop, route, NAME)
            nobodys = ask(keepers.snoop, route, GHOST)
            assert theirs.status_code == nobodys.status_code >= 400, (route, theirs.text)
            assert theirs.text == nobodys.text.replace(GHOST, NAME), route
        for route in ("GET /v1/models", "POST /v2/repository/index", "GET /openai/v1/models"):
            assert NAME not in ask(keepers.snoop, route, NAME).text
            assert NAME in ask(keepers.key, route, NAME).text
        assert ask(keepers.snoop, predict, f"keepers--{NAME}").status_code == 404


def test_35_a_key_is_for_its_endpoints_and_is_seen_to_be_used(keepers: Keepers) -> None:
    with tapster.connect(keepers.server.url, key=keepers.key) as mine:
        own = mine.keys_create(rights=["predict", "endpoints:*"], endpoints=[NAME])
        other = mine.keys_create("developer", endpoints=["another"])

        def asks(key: str) -> int:
            url = f"{keepers.server.rest_url}/v1/endpoints/{NAME}/predict"
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(url, json={"rows": [{"x": 1.0}]}, headers=headers).status_code

        wait_for(lambda: asks(own.key) == 200, "the key to reach the data plane")
        wait_for(lambda: asks(other.key) != 401, "the other to reach it too")
        assert asks(other.key) in {403, 404}
        wait_for(lambda: mine.keys_show(own.id).last_used, "its use to be reported")
        assert mine.keys_show(other.id).last_used is None
        for key, path, status in (
            (own, f"endpoints/{NAME}", 200),
            (own, "endpoints/another", 403),
            (own, "endpoints", 403),
            (own, "sessions/current", 200),
            (other, f"endpoints/{NAME}", 403),
            (other, "models", 403),
        ):
            assert keepers.ask(key.key, "GET", f"/api/v1/{path}").status_code == status, path


def test_37_over_grpc_what_is_anothers_is_a_ghost(keepers: Keepers) -> None:
    def message(path: str, name: str) -> bytes:
        spelled = b"\x0a" + bytes([len(name)]) + name.encode()
        return b"\x0a" + bytes([len(spelled)]) + spelled if "tensorflow" in path else spelled

    def ask(channel: grpc.Channel, path: str, name: str) -> tuple[str, str]:
        metadata = [("authorization", f"Bearer {keepers.snoop}")]
        call = channel.stream_stream(path)(
            iter([message(path, name)]), metadata=metadata, timeout=20
        )
        try:
            return "OK", "".join(repr(bytes(piece)) for piece in call)
        except grpc.RpcError as error:
            return str(error.code()), str(error.details())

    with grpc.insecure_channel(keepers.server.grpc_url) as channel:
        for path in section("gRPC"):
            if "inference." not in path and "tensorflow" not in path:
                continue
            theirs, nobodys = ask(channel, path, NAME), ask(channel, path, GHOST)
            assert theirs == (nobodys[0], nobodys[1].replace(GHOST, NAME)), path


def test_38_a_name_that_another_has_is_free(keepers: Keepers, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("x,y\n1,2\n3,4\n")
    with tapster.connect(keepers.server.url, key=keepers.snoop) as snoop:
        assert snoop.data_add(NAME, tmp_path / "d.csv").version == 1
        assert snoop.roles_set("labeller", ["predict"]).rights == ["predict"]
        assert snoop.members_add("keeper", "consumer").tenant == "snoopers"
        assert snoop.trust_add("friend", "cd" * 32)["name"] == "friend"
    assert keepers.ask(keepers.key, "GET", f"/api/v1/datasets/{NAME}").json()["rows"] == 40
