"""Keys: what admits, what does not, and that all refusals look alike."""

import hashlib
import time
from collections.abc import Callable

import pytest

from tapster.contract.plan import KeyGrant, PlanDelta, TenantGrant
from tapster.serving.gate import MANAGE, METRICS, PREDICT, Gate, denial
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant
from tests.serving.paying import limited
from tests.serving.rest.test_protocol import GOOD, INFER
from tests.serving.rpc import calling


def test_a_key_is_known_by_its_digest() -> None:
    gate = Gate(no_auth=False)
    gate.apply(
        [grant("good", "predict"), grant("all", "*"), grant("late", expires=time.time() - 1)]
    )
    good = gate.admit(b"Bearer good")
    assert good is not None
    assert (good.may(PREDICT), good.may(METRICS)) == (True, False)
    everything = gate.admit(b"bearer all")
    assert everything is not None
    assert everything.may(METRICS)
    for header in (
        b"", b"good", b"Bearer", b"Bearer ", b"Basic good", b"Bearer Good", b"Bearer late",
        b"Bearer good good", b"Bearer " + b"x" * 1_000_000, b"Bearer \xff\x00",
        b"Bearer ' OR 1=1--", b"Bearer " + hashlib.sha256(b"good").hexdigest().encode(),
    ):  # fmt: skip
        assert gate.admit(header) is None


def test_a_change_of_keys_is_a_new_generation() -> None:
    gate = Gate(no_auth=False)
    gate.apply([grant("a"), grant("b", "predict")])
    before = gate.generation
    kept = gate.admit(b"Bearer a")
    gate.apply([grant("a"), grant("b", "metrics:read")])
    assert gate.generation > before
    assert gate.admit(b"Bearer a") is kept
    changed = gate.admit(b"Bearer b")
    assert changed is not None
    assert not changed.may(PREDICT)
    gate.apply([])
    assert gate.admit(b"Bearer a") is None


def test_a_change_of_one_key_is_felt_by_no_other() -> None:
    gate = Gate(no_auth=False)
    gate.apply([grant("a"), grant("b"), grant("c", tenant="acme")])
    before = gate.generation
    a, b, c = (gate.admit(b"Bearer " + name) for name in (b"a", b"b", b"c"))
    assert a is not None
    assert b is not None
    assert c is not None
    gate.change(
        PlanDelta(
            1,
            "",
            2,
            "",
            gone_keys=("id-b",),
            keys=(grant("a"), grant("d")),
            tenants=(TenantGrant("acme", weight=2.0),),
        )
    )
    assert (a.ended, b.ended, c.ended) == (False, True, True)
    assert gate.generation == before
    assert gate.admit(b"Bearer a") is a
    assert gate.admit(b"Bearer b") is None
    again, new = gate.admit(b"Bearer c"), gate.admit(b"Bearer d")
    assert again is not None
    assert new is not None
    assert again.standing.weight == 2.0
    gate.cut({"id-d"})
    assert new.ended
    assert gate.admit(b"Bearer d") is None
    gate.cut(())
    assert gate.admit(b"Bearer d") is not None


def test_a_suspended_tenants_key_may_nothing_and_is_told_why() -> None:
    gate = Gate(no_auth=False)
    late = time.time() - 1
    keys = [grant("a", tenant="acme"), grant("late", tenant="acme", expires=late), grant("b")]
    gate.apply(keys, [TenantGrant("acme", suspended=True)])
    held = gate.admit(b"Bearer a")
    assert held is not None
    assert not any(held.may(right) for right in (PREDICT, METRICS, MANAGE))
    told = denial(held)
    assert (told.code, told.message) == ("forbidden", "the tenant acme is suspended")
    assert gate.admit(b"Bearer late") is None
    other = gate.admit(b"Bearer b")
    assert other is not None
    assert "suspended" not in denial(other).message
    gate.change(PlanDelta(1, "", 2, "", gone_tenants=("acme",)))
    assert held.ended
    again = gate.admit(b"Bearer a")
    assert again is not None
    assert again.may(PREDICT)


def test_only_a_valid_key_hears_that_its_tenant_is_suspended(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane()
    package = packages.regressor(plane.home, 1.0)
    served = (endpoint("sum", package),)
    keys = (grant(KEY), grant("late", expires=1.0), grant("reader", "endpoints:read"))
    limited(plane, served, (package,), keys=keys)
    plane.start()
    plane.applied()
    request = calling.sum_request(1, 2, 3)
    with plane.connect() as line, calling.channel(plane) as made:

        def ask() -> int:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            line.sendall(f"{head}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD)
            return int(line.recv(1 << 16).split()[1])

        # What was called before on a connection is no way in either.
        assert {ask() for _ in range(5)} == {200}
        for _ in range(5):
            assert calling.call(plane, calling.INFER, request, made=made).details == ""
        limited(plane, served, (package,), keys=keys, suspended=True)
        plane.applied()
        assert ask() == 403
        reply = calling.call(plane, calling.INFER, request, made=made)
    for key in (KEY, "reader"):
        answer = plane.call("POST", INFER, GOOD, key=key)
        assert (answer.status, "the tenant default is suspended" in answer.json()["error"]) == (
            403, True,
        )  # fmt: skip
    plain = plane.call("POST", "/v1/endpoints/sum/predict", b"{}")
    assert plain.json()["error"]["code"] == "forbidden"
    assert (reply.code.name, reply.details[:31]) == (
        "PERMISSION_DENIED", "the tenant default is suspended",
    )  # fmt: skip
    for other in ("late", "nobody's", None):
        answer = plane.call("POST", INFER, GOOD, key=other)
        assert (answer.status, b"suspended" in answer.body) == (401, False)
        code, details = calling.refused(plane, calling.INFER, request, key=other)
        assert (code, "suspended" in details) == ("UNAUTHENTICATED", False)


def test_a_grant_expires_while_it_is_held() -> None:
    gate = Gate(no_auth=False)
    digest = hashlib.sha256(b"k").hexdigest()
    gate.apply([KeyGrant("id", digest, "default", ("*",), time.time() + 1.0)])
    assert gate.admit(b"Bearer k") is not None
    until = time.monotonic() + 30
    while gate.admit(b"Bearer k") is not None:
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("key", "status"),
    [
        (None, 401),
        ("", 401),
        ("wrong", 401),
        ("expired", 401),
        ("' OR 1=1--", 401),
        ("x" * 60_000, 401),
        ("reader", 403),
        ("watcher", 403),
    ],
)
def test_refusals_look_alike(plane: Plane, key: str | None, status: int) -> None:
    reference = plane.call("POST", INFER, GOOD, key="wrong")
    for path in (INFER, "/v2/models/nothing/infer", "/v1/models/sum:predict"):
        answer = plane.call("POST", path, GOOD, key=key)
        assert answer.status == status
        assert answer.body == reference.body
    for path in ("/v2", "/v1/models", "/v2/models/sum", "/nothing"):
        assert plane.call("GET", path, key=key).status == status


def test_rights_are_apart(plane: Plane) -> None:
    assert plane.call("POST", INFER, GOOD, key="caller").status == 200
    assert plane.call("GET", "/metrics", key="caller").status == 403
    assert plane.call("GET", "/metrics", key="watcher").status == 200


def test_only_who_runs_the_installation_sees_all_of_it(plane: Plane) -> None:
    for path in ("/metrics", "/debug/slow", "/debug/profile?seconds=0.01"):
        assert plane.call("GET", path).status == 200
        assert plane.call("GET", path, key="theirs").status == 403


def test_tenants_do_not_see_each_other(plane: Plane) -> None:
    theirs = "/v2/models/theirs/infer"
    assert plane.call("POST", theirs, GOOD, key="theirs").json()["outputs"][0]["data"] == [8.0]
    mine = plane.call("POST", theirs, GOOD)
    assert mine.status == 404
    nowhere = plane.call("POST", theirs.replace("theirs", "nowhere"), GOOD)
    assert mine.body == nowhere.body.replace(b"nowhere", b"theirs")
    assert plane.call("POST", INFER, GOOD, key="theirs").status == 404
    assert plane.call("GET", "/v1/models", key="theirs").json()["models"] == ["theirs"]
