"""A whole installation: what callers are answered is what is billed, to the unit."""

import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapster.cli import main
from tapster.client import Client, connect
from tapster.contract.errors import TapsterError
from tests.conftest import Server

SECONDS = 60
Run = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An installation of our own, with an endpoint `sum`, in a currency of its own."""
    running = Server(tmp_path_factory.mktemp("bills") / "home", {"TAPSTER_CURRENCY": "CHF"})
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def run(house: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json: its exit code and its one document."""
    monkeypatch.setenv("TAPSTER_HOME", str(house.home))
    monkeypatch.delenv("TAPSTER_URL", raising=False)
    monkeypatch.delenv("TAPSTER_KEY", raising=False)

    def call(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def _counted(client: Client, requests: int, by: str = "endpoint") -> Any:
    """Usage once it has come to so many requests; agents report every second."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = client.usage(by)
        if found["total"]["requests"] >= requests:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not {requests} requests: {found}")


def _shared(client: Client) -> None:
    """Call once, as soon as the data plane has heard that it may."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            client.predict("sum", [{"a": 1, "b": 1}] * 4)
            return
        except TapsterError as error:
            if error.code != "not_found" or time.monotonic() > end:
                raise
            time.sleep(0.1)


def _deployed(client: Client, folder: Path) -> None:
    table = folder / "rows.csv"
    rows = "".join(f"{n % 17},{n % 5},{n % 17 + n % 5}\n" for n in range(60))
    table.write_text("a,b,y\n" + rows)
    client.data_add("rows", table)
    job = client.train("rows", "y", "sum", algorithm="ols", trials=1)
    client.wait(job)
    client.deploy("sum")


def test_from_a_price_to_an_invoice(house: Server, run: Run, tmp_path: Path) -> None:
    with connect(house.url, key=house.key) as client:
        _deployed(client, tmp_path)
        code, price = run(
            "prices", "set", "--endpoint", "sum", "request=0.001", "row=0.00001",
            "--above", "50", "row=0.000005",
        )  # fmt: skip
        assert (code, price.get("currency")) == (0, "CHF"), (price, house.log()[-3000:])
        assert price["tiers"] == [{"above": 50, "rates": {"row": "0.000005"}}]
        for _ in range(7):
            client.predict("sum", [{"a": 1, "b": n} for n in range(10)])
        found = _counted(client, 7)
    total = 7 * Decimal("0.001") + 50 * Decimal("0.00001") + 20 * Decimal("0.000005")
    assert Decimal(found["total"]["amount"]) == total
    code, shown = run("usage", "--by", "key")
    assert (code, [row["rows"] for row in shown["rows"]]) == (0, [70])
    code, checked = run("usage", "--check")
    assert (code, checked) == (0, {"ok": True, "differences": []})
    code, [invoice] = run("invoices", "list")
    assert (invoice["status"], invoice["currency"], Decimal(invoice["total"])) == (
        "open", "CHF", total,
    )  # fmt: skip
    code, bill = run("invoices", "show", invoice["month"])
    assert {line["above"]: line["rows"] for line in bill["lines"]} == {0: 50, 50: 20}
    assert sum(Decimal(line["amount"]) for line in bill["lines"]) == total
    kinds = {line["kind"] for line in bill["showback"]["lines"]}
    assert "training" in kinds, "what the jobs took"
    for name in ("bill.json", "bill.csv", "bill.html"):
        code, written = run("invoices", "export", invoice["month"], tmp_path / name)
        assert (code, Path(written["file"]).stat().st_size > 100) == (0, True)
    assert json.loads((tmp_path / "bill.json").read_text()) == bill
    assert run("prices", "delete", price["id"])[0] == 0
    assert run("prices", "list")[1] == []
    assert [each["id"] for each in run("prices", "list", "--ended")[1]] == [price["id"]]


def test_what_was_asked_for_nothing_stays_free(house: Server, run: Run) -> None:
    with connect(house.url, key=house.key) as client:
        client.deploy("sum", endpoint="gift")
        before = client.usage("endpoint")["total"]["requests"]
        for _ in range(5):
            client.predict("gift", [{"a": 1, "b": 1}])
        assert run("prices", "set", "--endpoint", "gift", "request=1000")[0] == 0
        found = _counted(client, before + 5)
        (row,) = [each for each in found["rows"] if each["endpoint"] == "gift"]
        assert (row["requests"], row["amount"]) == (5, "0.00"), "nobody knew of a price then"
        client.predict("gift", [{"a": 1, "b": 1}])
        (row,) = [
            each for each in _counted(client, before + 6)["rows"] if each["endpoint"] == "gift"
        ]
        assert row["amount"] == "1000.00"


@pytest.fixture
def tenants(house: Server, run: Run) -> dict[str, str]:
    """Keys of two tenants; `acme` is asked a price of its own, `beta` has nothing to do with it."""
    found = {}
    for name in ("acme", "beta"):
        if run("tenants", "show", name)[0]:
            assert run("tenants", "add", name)[0] == 0
        code, made = run("keys", "create", "--tenant", name, "--role", "owner")
        assert code == 0, made
        found[name] = made["key"]
    assert run("endpoints", "share", "sum", "--with", "acme")[0] == 0
    price = ("prices", "set", "--endpoint", "sum", "--tenant", "acme", "row=0.002")
    assert run(*price)[0] == 0
    return found


def test_a_tenant_pays_what_it_calls_of_anothers(
    house: Server, run: Run, tenants: dict[str, str]
) -> None:
    with connect(house.url, key=tenants["acme"]) as acme:
        for name in ("sum", "default--sum", "nobodys"):
            with pytest.raises(TapsterError) as refused:
                acme.prices_set(name, {"row": "0"})
            assert refused.value.code == "not_found", "prices are the owner's"
        _shared(acme)
        for _ in range(2):
            acme.predict("sum", [{"a": 1, "b": 1}] * 4)
        found = _counted(acme, 3)
        assert [(row["owner"], row["endpoint"]) for row in found["rows"]] == [("default", "sum")]
        assert Decimal(found["total"]["amount"]) == 12 * Decimal("0.002")
        [invoice] = acme.invoices()
        assert Decimal(acme.invoice(invoice["month"])["total"]) == 12 * Decimal("0.002")
        assert [price["rates"] for price in acme.prices_list()] == [{"row": "0.002"}]
        assert acme.usage("tenant", tenant="acme")["total"]["rows"] == 12
    with connect(house.url, key=house.key) as client:
        assert client.usage("endpoint", tenant="acme")["total"]["rows"] == 12
        earned = client.usage("tenant", tenant="default")["earned"]
        assert [(row["tenant"], row["rows"]) for row in earned["rows"]] == [("acme", 12)]
        assert Decimal(client.invoice(invoice["month"], "acme")["total"]) == 12 * Decimal("0.002")


def test_a_tenant_is_told_what_everybody_pays_for_what_is_shared_with_it(
    house: Server, run: Run, tenants: dict[str, str]
) -> None:
    with connect(house.url, key=house.key) as client, connect(house.url, key=tenants["beta"]) as it:
        client.deploy("sum", endpoint="offer")
        general = client.prices_set("offer", {"row": "0.5"})
        client.prices_set("offer", {"row": "0.4"}, tenant="acme")
        assert it.prices_list() == []
        client.endpoint_share("offer", ["beta"])
        assert it.prices_list() == [general]
        own = client.prices_set("offer", {"row": "0.3"}, tenant="beta")
        assert it.prices_list() == [own], "it goes before everybody's"
        client.prices_delete(own["id"])
        client.endpoint_delete("offer")
        client.prices_delete(general["id"])
        assert it.prices_list() == []


def test_others_see_nothing_of_it(house: Server, tenants: dict[str, str]) -> None:
    month = time.strftime("%Y-%m", time.gmtime())
    with connect(house.url, key=tenants["beta"]) as beta:
        assert beta.usage("tenant")["rows"] == []
        assert beta.prices_list() == []
        assert beta.invoices() == []
        said = set()
        for name in ("acme", "default", "nobody"):
            asks: list[Callable[[], Any]] = [
                partial(beta.usage, "tenant", tenant=name),
                partial(beta.invoices, name),
                partial(beta.invoice, month, name),
            ]
            for ask in asks:
                with pytest.raises(TapsterError) as refused:
                    ask()
                said.add((refused.value.code, refused.value.message.replace(name, "T")))
        assert said == {("not_found", "there is no tenant 'T'")}
        ways: list[Callable[[], Any]] = [
            partial(beta.prices_set, "sum", {"row": "1"}),
            partial(beta.prices_set, "", {"training": "1"}),
            beta.usage_check,
        ]
        for way in ways:
            with pytest.raises(TapsterError) as refused:
                way()
            assert refused.value.code in {"not_found", "forbidden"}
    with connect(house.url, key=house.key) as client:
        prices = {price["id"] for price in client.prices_list()}
        with connect(house.url, key=tenants["acme"]) as acme:
            for price in prices:
                with pytest.raises(TapsterError) as refused:
                    acme.prices_delete(price)
                assert refused.value.code == "not_found"
        assert {price["id"] for price in client.prices_list()} == prices


def test_an_erased_tenant_leaves_its_amounts(
    house: Server, run: Run, tenants: dict[str, str]
) -> None:
    with connect(house.url, key=house.key) as client:
        before = client.usage("day")["total"]
        assert run("tenants", "erase", "acme", "--yes")[0] == 0
        after = client.usage("tenant")
        assert after["total"]["amount"] == before["amount"]
        names = {row["tenant"] for row in after["rows"]}
        assert "acme" not in names
        assert sum(name.startswith("erased:") for name in names) == 1
        assert client.usage_check()["ok"]
        assert {price["tenant"] for price in client.prices_list()} <= {""}
        with pytest.raises(TapsterError):
            client.usage("tenant", tenant="acme")


def test_what_people_see(house: Server, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("usage",), ("usage", "--by", "hour"), ("usage", "--by", "tenant"), ("prices", "list"),
        ("prices", "list", "--ended"), ("invoices", "list"), ("invoices", "show"),
        ("usage", "--by", "model", "--from", "2020-01-01", "--to", "2020-01-02"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main([*words]) == 0
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("prices", "set", "--endpoint", "none", "row=1"), "not_found"),
        (("prices", "set", "--endpoint", "sum", "row=0.0000000001"), "invalid"),
        (("prices", "set", "--endpoint", "sum", "row=x"), "invalid"),
        (("prices", "set", "--endpoint", "sum", "row"), "invalid"),
        (("prices", "set", "--endpoint", "sum", "row=1", "--above", "x", "row=2"), "invalid"),
        (("prices", "set", "row=1"), "invalid"),
        (("prices", "delete", "pri_0"), "not_found"),
        (("usage", "--by", "colour"), "invalid"),
        (("usage", "--tenant", "nobody"), "not_found"),
        (("usage", "--from", "yesterday"), "invalid"),
        (("invoices", "show", "2020-01"), "not_found"),
        (("invoices", "show", "x"), "invalid"),
        (("invoices", "export", "2026-11", "bill.docx"), "invalid"),
    ],
)
def test_what_is_refused_says_so(house: Server, run: Run, words: Any, code: str) -> None:
    exit_code, answer = run(*words)
    assert (exit_code, answer["error"]["code"]) == (1, code)


def test_a_float_is_no_price(house: Server) -> None:
    with connect(house.url, key=house.key) as client, pytest.raises(TapsterError) as refused:
        client.prices_set("sum", {"row": 0.1})
    assert refused.value.code == "invalid"
