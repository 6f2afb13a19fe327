"""At whose expense requests are counted: every key, endpoint and version for itself."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import (
    EndpointPlan,
    LimitGrant,
    Options,
    Price,
    TenantGrant,
    Variant,
)
from tapster.serving.accounts import Accounts, opened
from tapster.serving.gate import Pass
from tapster.serving.journal import COMPUTE, REQUESTS
from tapster.serving.segments import found
from tapster.serving.slots import Slots
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant, wait_for
from tests.serving.loads import BODY, INFER
from tests.serving.paying import limited
from tests.serving.rpc import calling

Lines = dict[tuple[str, ...], tuple[int, ...]]


def lines(home: Path, *fields: str) -> Lines:
    """(requests, errors, rows, cached) on bills, by these fields of their labels."""
    counted: dict[tuple[str, ...], list[int]] = {}
    for segment in found(home):
        totals = segment.totals()
        for number, label in segment.labels(range(len(totals))):
            name = tuple(str(getattr(label, field)) for field in fields)
            row = counted.setdefault(name, [0, 0, 0, 0])
            for at, word in enumerate((0, 1, 2, 5)):
                row[at] += int(totals[number, word])
        segment.close()
    return {name: tuple(row) for name, row in counted.items() if any(row)}


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    (tmp_path / "run").mkdir()
    return opened(tmp_path, 0, Slots(tmp_path / "slots").region(0))


def holder(*limits: LimitGrant, key: str = "key_1") -> Pass:
    return Pass(grant(key, tenant="acme"), TenantGrant("acme", limits=limits))


def target(version: int = 1, *prices: Price) -> Any:
    plan = EndpointPlan("ep_1", "owner", "sum", (), prices=prices)
    variant = Variant("made", version, "")
    key = (plan.id, variant.model, str(version))
    return SimpleNamespace(
        endpoint=SimpleNamespace(plan=plan),
        variant=variant,
        version=str(version),
        key=key,
        model=SimpleNamespace(tokens=None),
    )


def test_an_account_is_found_again(accounts: Accounts) -> None:
    caller, one = holder(), target()
    account = accounts.find(caller, one)
    assert accounts.find(caller, one) is account
    assert accounts.find(caller, target(2)) is not account
    assert accounts.find(holder(), one) is not account
    assert account.meters is None


def test_limits_are_those_of_the_key_and_the_endpoint(accounts: Accounts) -> None:
    limits = (
        LimitGrant("lim_all", "requests", 1, "day"),
        LimitGrant("lim_here", "rows", 1, "month", endpoint="ep_1"),
        LimitGrant("lim_there", "rows", 1, "month", endpoint="ep_2"),
        LimitGrant("lim_mine", "rate", 1000, key="id-key_1"),
        LimitGrant("lim_theirs", "rate", 1000, key="id-key_2"),
        LimitGrant("lim_control", "storage", 1),
    )
    meters = accounts.find(holder(*limits), target()).meters
    assert meters is not None
    assert [limit.id for limit in meters.budgets] == ["lim_all", "lim_here"]
    assert [rate.limit.id for rate in meters.rates] == ["lim_mine"]
    only_control = holder(LimitGrant("lim_control", "storage", 1))
    assert accounts.find(only_control, target()).meters is None


def test_prices_are_the_tenants_own_or_everybodys(accounts: Accounts) -> None:
    theirs, everybodys, own = Price("other", 7), Price("", 5), Price("acme", 3)
    assert accounts.find(holder(), target(1, theirs, everybodys, own)).price == own
    assert accounts.find(holder(), target(1, theirs, everybodys)).price == everybodys
    assert accounts.find(holder(), target(1, theirs)).price == Price()


def test_counts_under_another_price_are_lines_of_their_own(
    accounts: Accounts, tmp_path: Path
) -> None:
    """And who was let in before it changed pays what held then."""
    caller, dear = holder(), target(1, Price("", request=9, id="pri_2"))
    account = accounts.find(caller, target(1, Price("", request=5, id="pri_1")))
    account.served(2, 2, 0)
    accounts.find(caller, dear).served(1, 1, 0)
    account.served(4, 4, 0)
    assert lines(tmp_path, "price") == {("pri_1",): (6, 0, 6, 0), ("pri_2",): (1, 0, 1, 0)}
    assert accounts.find(caller, dear) is accounts.find(caller, dear)


def test_a_changed_plan_holds_for_the_same_account(accounts: Accounts, tmp_path: Path) -> None:
    """And what is spent from a budget is counted apart from what was free before."""
    caller = holder()
    account = accounts.find(caller, target())
    account.served(2, 2, 0)
    caller.standing = TenantGrant("acme", limits=(LimitGrant("lim", "requests", 9, "day"),))
    again = accounts.find(caller, target())
    assert again is account
    assert again.meters is not None
    again.served(3, 3, 0)
    assert lines(tmp_path, "budgets") == {
        ("()",): (2, 0, 2, 0),
        ("(('lim', 'requests'),)",): (3, 0, 3, 0),
    }
    (segment,) = found(tmp_path)
    assert segment.spent() == {"lim": 3}


def test_counts_move_to_the_day_that_it_is(accounts: Accounts, tmp_path: Path) -> None:
    account = accounts.find(holder(), target())
    account.served(1, 1, 0)
    accounts.journal._clock = lambda: 30_000
    assert accounts.beat()
    assert not accounts.beat()
    account.served(1, 1, 0)
    account.failed()
    assert sorted((each.day, int(each.totals()[0, REQUESTS])) for each in found(tmp_path))[1] == (
        30_000, 1,
    )  # fmt: skip


def test_what_was_let_in_is_counted_though_there_is_no_room(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = accounts.find(holder(), target())
    account.served(1, 1, 0)
    accounts.journal._clock = lambda: 30_000
    accounts.beat()

    def full(label: object) -> None:
        raise TapsterError("unavailable", "no room")

    monkeypatch.setattr(accounts.journal, "record", full)
    account.served(1, 1, 0)
    assert lines(tmp_path, "version") == {("1",): (2, 0, 2, 0)}
    with pytest.raises(TapsterError, match="no room"):
        accounts.find(holder(key="key_2"), target())


def test_who_finds_no_room_to_be_counted_in_is_told_so(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    one = packages.regressor(plane.home, 1.0)
    plane.plan(endpoint("sum", one), packages=(one,))
    (plane.home / "run").mkdir(exist_ok=True)
    (plane.home / "run" / "usage").touch()  # no folder can be made there
    plane.start()
    plane.applied()
    for path in (INFER, "/v2/models/sum/versions/9/infer"):
        answer = plane.call("POST", path, BODY)
        assert answer.status == (503 if path == INFER else 404)
        assert (b"no room to count" in answer.body) is (path == INFER)


def test_what_a_call_without_limits_costs(accounts: Accounts) -> None:
    """Some tenths of a microsecond; the bound is one that only something quite wrong reaches."""
    account, one = accounts.find(caller := holder(), target()), target()
    began = time.process_time()
    for _ in range(20_000):
        accounts.find(caller, one)
        assert account.meters is None
        account.served(1, 1, 1)
    assert time.process_time() - began < 1.0


def test_every_caller_pays_for_their_own(new_plane: Callable[..., Plane]) -> None:
    """Keys, endpoints and versions; errors; the cache; and nobody for shadows and their like."""
    plane = new_plane()
    one, two = packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0)
    mirrored = (
        Variant("made", 1, one.digest),
        Variant("made", 2, two.digest, weight=0.0, shadow=True),
    )
    plane.plan(
        EndpointPlan("ep_sum", "default", "sum", mirrored, labels={"champion": 1}),
        endpoint("cached", one, 7, options=Options(cache=60.0)),
        packages=(one, two),
        keys=(grant(KEY), grant("other")),
    )
    plane.start()
    plane.applied()
    for _ in range(3):
        assert plane.call("POST", INFER, BODY).status == 200
        assert plane.call("POST", "/v2/models/cached/infer", BODY, key="other").status == 200
    assert plane.call("POST", INFER, BODY, key="other").status == 200
    assert plane.call("POST", INFER, b"{", key="other").status == 400
    assert plane.call("POST", "/v2/models/sum/versions/9/infer", BODY).status == 404
    assert plane.call("POST", "/v2/models/nothing/infer", BODY).status == 404
    calling.infer(plane, calling.sum_request(1, 2, 3), key="other")
    assert lines(plane.home, "key", "name", "version") == {
        (f"id-{KEY}", "sum", "1"): (3, 0, 3, 0),
        (f"id-{KEY}", "sum", ""): (0, 1, 0, 0),
        ("id-other", "sum", "1"): (2, 1, 2, 0),
        ("id-other", "cached", "7"): (3, 0, 3, 2),
    }
    (segment,) = found(plane.home)
    assert int(segment.totals()[:, COMPUTE].sum()) > 0


def test_every_version_that_is_drawn_is_counted_as_itself(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    made = [packages.regressor(plane.home, float(bias)) for bias in (1, 2)]
    drawn = tuple(
        Variant("made", number, package.digest, weight=0.5)
        for number, package in enumerate(made, 1)
    )
    plane.plan(EndpointPlan("ep", "default", "sum", drawn), packages=tuple(made))
    plane.start()
    plane.applied()
    answered: dict[tuple[str, ...], int] = {}
    with plane.connect() as line, line.makefile("rb") as answers:
        for _ in range(60):
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            line.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            length = 0
            while (header := answers.readline()) != b"\r\n":
                if header.startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            version = (answers.read(length).split(b'"model_version":"')[1][:1].decode(),)
            answered[version] = answered.get(version, 0) + 1
    assert len(answered) == 2
    counted = lines(plane.home, "version")
    assert {version: row[0] for version, row in counted.items()} == answered


def test_limits_come_and_go_with_plans(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    served = (endpoint("sum", package),)
    limited(plane, served, (package,))
    plane.start()
    plane.applied()
    with plane.connect() as line:

        def ask() -> int:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            line.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            return int(line.recv(1 << 16).split()[1])

        assert {ask() for _ in range(5)} == {200}
        limited(plane, served, (package,), LimitGrant("lim", "concurrency", 0))
        wait_for(lambda: ask() == 429, "the limit to hold")
        limited(plane, served, (package,))
        wait_for(lambda: ask() == 200, "the limit to be gone")
        limited(plane, served, (package,), suspended=True)
        wait_for(lambda: ask() == 403, "the tenant to be suspended")
        limited(plane, served, (package,))
    wait_for(lambda: plane.call("POST", INFER, BODY).status == 200, "it to go on")


def test_a_long_body_that_is_read_while_the_version_changes(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    one, two = packages.regressor(plane.home, 1.0), packages.regressor(plane.home, 2.0)
    plane.plan(endpoint("sum", one, 1), packages=(one, two))
    plane.start()
    plane.applied()
    rows = b'{"inputs":[{"name":"numeric","shape":[40000,3],"datatype":"FP32","data":['
    body = rows + b",".join([b"1.0"] * 120_000) + b"]}]}"
    plane.plan(endpoint("sum", two, 2), packages=(one, two))
    for _ in range(3):
        assert plane.call("POST", INFER, body).status == 200
    counted = lines(plane.home, "version")
    assert sum(row[0] for row in counted.values()) == 3
    assert sum(row[2] for row in counted.values()) == 120_000


def test_nothing_else_is_asked_of_those_who_pay_nothing(accounts: Accounts) -> None:
    """A Hold is no account: what has been asked for is not asked for again."""
    limits = (LimitGrant("lim", "concurrency", 1),)
    account = accounts.find(holder(*limits), target())
    runs = cast(Any, SimpleNamespace(expected=lambda rows: 0.0))
    hold = accounts.limiter.reserve(account, 1, runs)
    assert hold is not None
    assert hold.meters is None
    with pytest.raises(TapsterError, match="concurrent requests"):
        accounts.limiter.reserve(account, 1, runs)
    del hold  # nobody waits for it any more
    assert accounts.limiter.reserve(account, 1, runs) is not None
