"""Signing in by OpenID Connect, with a provider that is another process."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tapster
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.security.walkers import wait_for
from tests.tenancy.oidc_provider import CLIENT, SECRET

ANN = {"sub": "248289761001", "email": "Ann@acme.example", "email_verified": True}


class World:
    """A provider, and a server that trusts it; `browse` is what a browser would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issuer = ""
        self.server: Server

    def person(self, **claims: Any) -> None:
        """Who signs in next."""
        (self.folder / "person.json").write_text(json.dumps({**ANN, **claims}))

    def enter(self, browse: Callable[[str], Any], tenant: str = "acme") -> Any:
        """Sign in; the session, and what the client may then."""
        with tapster.connect(self.server.url, key="none") as client:
            session = client.login_in_browser(
                lambda url: threading.Thread(target=browse, args=(url,)).start(), tenant=tenant
            )
            return session, client.whoami()

    def refused(self, browse: Callable[[str], Any], tenant: str = "acme") -> TapsterError:
        with pytest.raises(TapsterError) as caught:
            self.enter(browse, tenant)
        return caught.value


def browse(url: str) -> None:
    """Follow redirects to the page of whoever waits."""
    httpx.get(url, follow_redirects=True, timeout=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("provider"))
    command = [sys.executable, "-m", "tests.tenancy.oidc_provider", str(made.folder)]
    provider = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        wait_for((made.folder / "url").exists, "the provider")
        made.issuer = (made.folder / "url").read_text()
        (made.folder / "secret").write_text(f"{SECRET}\n")
        settings = {
            "TAPSTER_OIDC_ISSUER": made.issuer,
            "TAPSTER_OIDC_CLIENT_ID": CLIENT,
            "TAPSTER_OIDC_SECRET_FILE": str(made.folder / "secret"),
        }
        made.server = Server(tmp_path_factory.mktemp("oidc") / "home", settings).start()
        with tapster.connect(made.server.url, key=made.server.key) as admin:
            admin.tenants_add("acme")
            admin.members_add("ann@acme.example", "developer", tenant="acme")
            admin.members_add("bob@acme.example", "owner", tenant="acme")
        yield made
        assert made.server.stop() == 0
    finally:
        provider.kill()
        provider.wait()


def test_a_member_is_told_by_a_verified_email_and_by_the_subject_from_then_on(
    world: World,
) -> None:
    world.person()
    session, who = world.enter(browse)
    assert (session.how, who["name"], who["tenant"]) == ("oidc", "ann@acme.example", "acme")
    assert "training:write" in who["rights"]
    assert "keys:write" not in who["rights"]
    world.person(email="ann.married@acme.example")
    assert world.enter(browse)[1]["name"] == "ann@acme.example"
    world.person(sub="somebody else who has her address now")
    assert world.refused(browse).code == "unauthenticated"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "new", "email": "bob@acme.example", "email_verified": False},
        {"sub": "new", "email": "bob@acme.example", "email_verified": None},
        {"sub": "new", "email": "bob@acme.example", "email_verified": "true"},
        {"sub": "new", "email": "nobody@acme.example"},
        {"sub": "new", "email": None},
        {"faults": {"claims": {"nonce": "another"}}},
        {"faults": {"claims": {"nonce": None}}},
        {"faults": {"claims": {"iss": "https://elsewhere.example"}}},
        {"faults": {"claims": {"aud": "another-client"}}},
        {"faults": {"claims": {"aud": ["another-client", CLIENT], "azp": "another-client"}}},
        {"faults": {"claims": {"exp": 1_000_000_000}}},
        {"faults": {"claims": {"sub": None}}},
        {"faults": {"claims": {"sub": ["248289761001"]}}},
        {"faults": {"claims": {"sub": "x" * 256}}},
        {"faults": {"key": "other"}},
        {"faults": {"alg": "none"}},
    ],
    ids=str,
)
def test_whom_the_provider_does_not_vouch_for_is_not_let_in(
    world: World, claims: dict[str, Any]
) -> None:
    world.person(**claims)
    assert world.refused(browse).code == "unauthenticated"


def test_a_member_of_another_tenant_is_nobody_here(world: World) -> None:
    world.person()
    errors = [world.refused(browse, tenant).message for tenant in ("default", "nowhere", "a--b")]
    assert len(set(errors)) == 1


def _api(world: World) -> httpx.Client:
    return httpx.Client(base_url=f"{world.server.url}/api/v1/sessions", timeout=30)


def _begin(world: World, api: httpx.Client) -> dict[str, str]:
    """Begin, and let the provider answer: what is to be sent to finish."""
    world.person()
    body = {"tenant": "acme", "redirect": "http://127.0.0.1:9/"}
    begun = api.post("/oidc", json=body).json()
    back = httpx.get(begun["url"], timeout=30).headers["location"]
    code = httpx.URL(back).params["code"]
    return {"state": begun["state"], "secret": begun["secret"], "code": code}


def test_state_secret_and_code_belong_together_and_are_good_once(world: World) -> None:
    with _api(world) as api:
        good, other = _begin(world, api), _begin(world, api)
        for part in ("state", "secret", "code"):
            mixed = {**_begin(world, api), part: other[part]}
            if part == "state":
                mixed = {**good, "secret": other["secret"]}
            assert api.post("/oidc/finish", json=mixed).status_code == 401, part
        fresh = _begin(world, api)
        assert api.post("/oidc/finish", json=fresh).status_code == 201
        assert api.post("/oidc/finish", json=fresh).status_code == 401


@pytest.mark.parametrize(
    "redirect",
    [
        "https://evil.example/", "http://evil.example:80/", "http://127.0.0.1/", "//127.0.0.1:9/",
        "http://127.0.0.1:9@evil.example:80/", "http://evil@127.0.0.1:9/", "javascript:alert(1)",
        "http://127.0.0.1.evil.example:9/", "http://127.0.0.1:9/#x", "http://[::1",
    ],
)  # fmt: skip
def test_a_browser_is_sent_nowhere_else(world: World, redirect: str) -> None:
    with _api(world) as api:
        answer = api.post("/oidc", json={"tenant": "acme", "redirect": redirect})
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "redirect")


def test_without_a_provider_it_is_said_so(server: Server) -> None:
    body = {"tenant": "acme", "redirect": "http://127.0.0.1:9/"}
    answer = httpx.post(f"{server.url}/api/v1/sessions/oidc", json=body, timeout=30)
    assert answer.json()["error"]["code"] == "unsupported"


def test_a_provider_that_is_gone_is_said_to_be(new_server: Callable[..., Server]) -> None:
    server = new_server(oidc_issuer="http://127.0.0.1:9", oidc_client_id="x")
    body = {"tenant": "acme", "redirect": "http://127.0.0.1:9/"}
    answer = httpx.post(f"{server.url}/api/v1/sessions/oidc", json=body, timeout=30)
    assert answer.json()["error"]["code"] == "unavailable"
    assert "127.0.0.1" not in answer.text
