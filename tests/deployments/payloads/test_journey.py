"""Payloads over a whole installation: switched on, read, exported, deleted, erased."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tapster
from tapster.client import Client
from tapster.contract.errors import TapsterError
from tests.conftest import Server
from tests.serving import packages

MASTER = "c0ffee" * 10 + "beef"
LIMIT = 60.0
NOTE = '<b>"quoted"\'; 😀'
ROW = {"size": 1.0, "member": True, "since": "2020-01-01"}
ROWS = [
    {**ROW, "city": "Ada Lovelace", NOTE: "mail ada@example.com"},
    {**ROW, "city": "Ada Lovelace", NOTE: "card 4111-1111-1111-1111"},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An installation that encrypts, where tenant acme serves `people`, shared with rival."""
    folder = tmp_path_factory.mktemp("payloads")
    running = Server(folder / "home", {"TAPSTER_MASTER_KEY": MASTER}).start()
    made = packages.classifier(folder)
    with tapster.connect(running.url, key=running.key) as root:
        for tenant in ("acme", "rival"):
            root.tenants_add(tenant)
    with _as(running, "acme") as acme:
        acme.trust_add("tests", packages.SIGNER.public)
        acme.models_import("people", folder / "blobs" / made.key)
        acme.deploy("people", "people")
        acme.endpoint_share("people", ["rival"])
    yield running
    assert running.stop() == 0


def _as(server: Server, tenant: str) -> Client:
    """A client that acts for a tenant, with a key of its own."""
    with tapster.connect(server.url, key=server.key) as root:
        key = root.keys_create("owner", tenant=tenant).key
    return tapster.connect(server.url, key=key)


def _until(check: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends:
        if found := check():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what}")


def _recorded(server: Server, action: str) -> str:
    """What was acted upon, as the record of acme has it."""
    with tapster.connect(server.url, key=server.key) as root:
        found = root.audit_list(tenant="acme", action=action, limit=100)
    return found[0].object if found and found[0].action == action else ""


def _bytes(server: Server) -> bytes:
    """All that lies in the home about payloads."""
    found = [*server.home.glob("run/payloads/*/*"), *server.home.glob("blobs/*/payloads/**/*")]
    return b"".join(path.read_bytes() for path in found if path.is_file())


def test_from_switching_on_to_the_end(home: Server, tmp_path: Path) -> None:
    with _as(home, "acme") as acme, _as(home, "rival") as rival:
        assert acme.endpoint("people").logging is None
        acme.predict("people", ROWS)
        seen = acme.endpoint_log("people", hashed=["city"], redact=["email", "card"], keep=3600)
        assert seen.logging is not None
        assert (seen.logging["hash"], seen.logging["keep"]) == (["city"], 3600)
        assert acme.payloads("people") == []
        began = time.time()
        acme.predict("people", ROWS)
        rival.predict("people", ROWS)
        (found,) = _until(lambda: acme.payloads("people"), "a payload")
        assert found["tenant"] == "acme"
        assert found["inputs"][NOTE] == ["mail [email]", "card [card]"]
        first, second = found["inputs"]["city"]
        assert first == second
        assert first.startswith("hash:")
        assert began - 1 <= found["time"] <= time.time() + 1
        for text in (b"Lovelace", b"example", b"4111", b"people", b"[email]"):
            assert text not in _bytes(home), text
        assert _bytes(home), "it is there, and sealed"

        assert rival.payloads_agree("people") == {
            "endpoint": "people", "owner": "acme", "agreed": True,
        }  # fmt: skip
        logging = acme.endpoint("people").logging
        assert logging is not None
        assert logging["agreed"] == ["rival"]
        rival.predict("people", ROWS)
        both = _until(lambda: len(f := acme.payloads("people")) == 2 and f, "both")
        assert [each["tenant"] for each in both] == ["rival", "acme"], "newest first"
        assert acme.payloads("people", since=both[0]["time"]) == both[:1]
        assert acme.payloads("people", limit=1) == both[:1]

        file = acme.payloads_export("people", tmp_path / "out.jsonl")
        exported = [json.loads(line) for line in file.read_text().splitlines()]
        assert exported == both[::-1]
        for action in (
            "GET /payloads/{endpoint}",
            "GET /payloads/{endpoint}/export",
            "PUT /endpoints/{endpoint}/logging",
        ):
            assert "people" in _until(partial(_recorded, home, action), action)

        acme.endpoint_log_off("people")
        assert acme.endpoint("people").logging is None
        acme.predict("people", ROWS)
        assert acme.payloads_delete("people") == {"endpoint": "people", "deleted": 2}
        assert acme.payloads("people") == []
        assert not list(home.home.glob("blobs/acme/payloads/*"))


def test_others_cannot_tell_whether_there_is_anything(home: Server) -> None:
    with _as(home, "rival") as rival:
        refusals = []
        for name in ("people", "acme--people", "nothing"):
            for verb in (
                rival.payloads, rival.endpoint_log, rival.endpoint_log_off, rival.payloads_delete,
            ):  # fmt: skip
                with pytest.raises(TapsterError) as refused:
                    verb(name)
                refusals.append((refused.value.code, refused.value.message.replace(name, "N")))
        assert set(refusals) == {("not_found", "there is no endpoint 'N'")}
        with pytest.raises(TapsterError, match="there is no endpoint"):
            rival.payloads_agree("nothing")
    with _as(home, "acme") as acme, pytest.raises(TapsterError, match="is yours"):
        acme.payloads_agree("people")


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "broken": ({"expressions": ["("]}, "cannot be used"),
    "backreference": ({"expressions": [r"(a)\1"]}, "cannot be used"),
    "look-around": ({"expressions": ["(?=a)b"]}, "cannot be used"),
    "huge": ({"expressions": ["((a{1,100}){1,100}){1,100}"]}, "cannot be used"),
    "nothing": ({"expressions": ["a*"]}, "matches where nothing is"),
    "long": ({"expressions": ["a" * 501]}, "1 to 500 printable"),
    "control": ({"expressions": ["a\0b"]}, "1 to 500 printable"),
    "many": ({"expressions": ["a"] * 21}, "more than 20"),
    "pattern": ({"redact": ["emial"]}, "no pattern 'emial'"),
    "column": ({"drop": ["nmae"]}, "has a column 'nmae'"),
    "columns": ({"mask": [f"c{n}" for n in range(1001)]}, "more than 1000"),
    "NUL": ({"mask": ["a\0"]}, "printable"),
    "twice": ({"mask": ["city"], "drop": ["city"]}, "has two rules"),
    "sample": ({"sample": 0.0}, "above 0, up to 1"),
    "more": ({"sample": 1.5}, "above 0, up to 1"),
    "keep": ({"keep": 1.0}, "from 60 seconds"),
    "ever": ({"keep": 1e300}, "from 60 seconds"),
    "size": ({"size": 1 << 40}, "from 256"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_rules_are_refused_and_change_nothing(home: Server, case: str) -> None:
    given, said = HOSTILE[case]
    with _as(home, "acme") as acme:
        with pytest.raises(TapsterError, match=said) as refused:
            acme.endpoint_log("people", **given)
        assert refused.value.code == "invalid"
        assert acme.endpoint("people").logging is None


def test_catastrophic_expressions_cost_no_time(home: Server) -> None:
    with _as(home, "acme") as acme:
        acme.endpoint_log("people", expressions=["(a+)+$", "(a|aa)+$", "é{2,}|😀"])
        acme.predict("people", [{**ROW, "city": "éé 😀", NOTE: "a" * 5000 + "b"}])
        (found,) = _until(lambda: acme.payloads("people"), "the payload")
        assert found["inputs"]["city"] == ["[redacted] [redacted]"]
        assert found["inputs"][NOTE] == ["a" * 5000 + "b"]
        acme.endpoint_log_off("people")
        acme.payloads_delete("people")


def test_the_end_of_a_tenant_takes_them_along(home: Server) -> None:
    with tapster.connect(home.url, key=home.key) as root, _as(home, "rival") as rival:
        with _as(home, "acme") as acme:
            rival.payloads_agree("people")
            acme.endpoint_log("people")
            acme.predict("people", ROWS)
            rival.predict("people", ROWS)
            _until(lambda: len(acme.payloads("people")) == 2, "payloads")
            acme.predict("people", ROWS)  # on its way
        root.tenants_erase("acme")
        (erasure,) = _until(
            lambda: [e for e in root.tenants_erasures("acme") if e.status == "ended"], "the end"
        )
        receipt = erasure.receipt
        assert receipt is not None
        assert any("/payloads/" in name for name in receipt["objects"])
        assert receipt["rows"]["payload_rules"] == 1
        assert receipt["rows"]["payload_files"] >= 1
        assert not list(home.home.glob("blobs/acme/payloads/*"))
        _until(lambda: not list(home.home.glob("run/payloads/acme/*")), "the spool")
        root.tenants_add("acme")
        with pytest.raises(TapsterError, match="no endpoint"):
            rival.payloads_agree("people")
