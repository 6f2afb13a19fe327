"""Plans that change by deltas: what becomes of keys, endpoints and those who hold them open."""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import msgspec
import pytest

from tapster.contract.plan import Need, PlanDelta, ServingPlan, TenantGrant
from tapster.contract.snapshots import Snapshot
from tapster.serving import planfile
from tapster.serving.datakeys import PlanKeys
from tapster.serving.following import Follower
from tests.serving import packages
from tests.serving.conftest import KEY, SIGNERS, Plane, endpoint, grant, request, wait_for
from tests.serving.control import Control
from tests.serving.doubles import go
from tests.serving.loads import BODY, INFER
from tests.serving.rpc.calling import INFER as RPC_INFER
from tests.serving.rpc.calling import call, channel, infer_request, sum_request
from tests.serving.rpc.test_streaming import Talk

Begin = Callable[..., Plane]


@pytest.fixture
def begin(new_plane: Callable[..., Plane], control: Control) -> Begin:
    """Start workers under a control plane whose plan has an endpoint `sum` and some keys."""

    def make(workers: int = 1, *keys: str) -> Plane:
        plane = new_plane(port=control.start(), workers=workers)
        package = packages.regressor(plane.home, 1.0)
        grants = tuple(grant(key) for key in (KEY, *keys))
        needs = (Need("ep-default-sum", (package.digest,)),)
        control.plan = ServingPlan(
            1, (endpoint("sum", package),), (package,), grants, SIGNERS, mark="m1", needs=needs
        )
        for index in range(workers):
            plane.start(index)
        everywhere(plane, 1)
        return plane

    return make


def everywhere(plane: Plane, number: int) -> None:
    for index in plane.workers:
        plane.applied(number, index)


def status(plane: Plane, key: str | None, path: str = INFER) -> int:
    return plane.call("POST", path, BODY, key=key).status


def lets_in(plane: Plane, key: str) -> bool:
    return status(plane, key) == 200


def counted(control: Control, key: str = "k4") -> bool:
    """Whether calls with a key have been reported."""
    return any(
        count.line.key == f"id-{key}" and count.requests > 0
        for report in control.reports
        for segment in (report.ledger.segments if report.ledger is not None else ())
        for count in segment.counts
    )


def log(plane: Plane) -> Path:
    return next((plane.home / "run").glob(planfile.LOGS))


def test_a_key_that_is_revoked_is_out_on_every_worker_and_wire(
    begin: Begin, control: Control
) -> None:
    plane = begin(2, "b", "c")
    with channel(plane) as made, channel(plane) as other, plane.connect() as line:
        talk, kept = Talk(made, key="b"), Talk(other, key="c")
        for each in (talk, kept):
            each.say(sum_request())
            assert each.hear().error_message == ""
        for _ in range(3):  # the head is known by then
            line.sendall(request(INFER, BODY, key="b"))
            assert b" 200 " in line.recv(10_000)
            assert call(plane, RPC_INFER, sum_request(), "b", made).code is grpc.StatusCode.OK
        began = time.monotonic()
        control.change(gone_keys=("id-b",))
        everywhere(plane, 2)
        assert time.monotonic() - began < 10  # in fact a few hundredths; see the soak
        with pytest.raises(grpc.RpcError) as ended:
            talk.hear()
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        line.sendall(request(INFER, BODY, key="b"))
        assert b" 401 " in line.recv(10_000)
        refused = call(plane, RPC_INFER, sum_request(), "b", made)
        assert refused.code is grpc.StatusCode.UNAUTHENTICATED
        kept.say(sum_request())
        assert kept.hear().error_message == ""
        kept.end()
    assert [status(plane, key) for key in ("b", "c", KEY) for _ in range(4)] == (
        [401] * 4 + [200] * 8
    )
    assert control.wholes == 1


def test_keys_come_change_expire_and_are_rotated(begin: Begin, control: Control) -> None:
    plane = begin()
    assert status(plane, "new") == 401
    control.change(keys=(grant("new"), grant("late", expires=time.time() + 3600)))
    everywhere(plane, 2)
    assert (status(plane, "new"), status(plane, "late")) == (200, 200)
    control.change(keys=(grant("new", "metrics:read"), grant("late", expires=time.time() - 1)))
    everywhere(plane, 3)
    assert (status(plane, "new"), status(plane, "late")) == (403, 401)
    # Two secrets of one key, then one.
    first, second = (msgspec.structs.replace(grant(key), id="rotated") for key in ("s1", "s2"))
    control.change(keys=(first, second))
    everywhere(plane, 4)
    assert (status(plane, "s1"), status(plane, "s2")) == (200, 200)
    control.change(keys=(second,))
    everywhere(plane, 5)
    assert (status(plane, "s1"), status(plane, "s2")) == (401, 200)
    assert control.wholes == 1


def test_a_tenant_that_is_suspended_is_out_until_it_is_not(begin: Begin, control: Control) -> None:
    plane = begin()
    assert status(plane, KEY) == 200
    control.change(tenants=(TenantGrant("default", suspended=True),))
    everywhere(plane, 2)
    assert status(plane, KEY) == 403
    assert status(plane, "nobody's") == 401
    control.change(gone_tenants=("default",))
    everywhere(plane, 3)
    assert status(plane, KEY) == 200


def test_endpoints_come_and_go_with_their_packages(begin: Begin, control: Control) -> None:
    plane = begin()
    other = packages.regressor(plane.home, 2.0)
    need = Need("ep-default-more", (other.digest,))
    # First only prepared, then served, then gone.
    control.change(packages=(other,), needs=(need,))
    state = plane.applied(2)
    assert {p.digest: p.state for p in state.packages}[other.digest] == "ready"
    assert status(plane, KEY, "/v2/models/more/infer") == 404
    control.change(endpoints=(endpoint("more", other),), packages=(other,), needs=(need,))
    plane.applied(3)
    assert status(plane, KEY, "/v2/models/more/infer") == 200
    control.change(gone_endpoints=("ep-default-more",))
    state = plane.applied(4)
    assert status(plane, KEY, "/v2/models/more/infer") == 404
    assert other.digest not in {p.digest for p in state.packages}
    assert status(plane, KEY) == 200
    assert control.wholes == 1


@pytest.mark.parametrize("kind", ["lost", "old", "torn"])
def test_a_delta_that_does_not_fit_is_answered_by_a_whole_plan(
    begin: Begin, control: Control, kind: str
) -> None:
    plane = begin()
    control.change(gone_keys=("id-x",))
    everywhere(plane, 2)
    good = PlanDelta(2, "m2", 3, "m3", keys=(grant("new"),))
    bad = {
        "lost": PlanDelta(3, "m3", 4, "m4", gone_keys=(f"id-{KEY}",)),
        "old": PlanDelta(2, "m1", 3, "m3", gone_keys=(f"id-{KEY}",)),
    }
    control.change(keys=good.keys)
    control.plan = before = control.plan
    data = msgspec.json.encode(bad.get(kind, good))
    control.deltas[2, "m2"] = data[: len(data) // 2] if kind == "torn" else data
    control.plan = msgspec.structs.replace(before, number=4, mark="m4")
    everywhere(plane, 4)
    assert (status(plane, "new"), status(plane, KEY)) == (200, 200)
    assert control.wholes <= 2


def test_numbers_that_were_given_before_are_of_another_history(
    begin: Begin, control: Control
) -> None:
    """A control plane restored from a backup goes on with numbers that were used already."""
    plane = begin()
    for number in range(5):
        control.change(keys=(grant(f"k{number}"),))
    everywhere(plane, 6)
    before = control.plan
    wait_for(partial(lets_in, plane, "k4"), "the newest key")
    wait_for(partial(counted, control), "what was called to be reported")
    control.reports.clear()
    control.ledger = "restored"
    for number, mark in ((3, "m3"), (6, "restored")):
        control.deltas.clear()
        keys = (*before.keys[:2], grant(f"after-{number}"))
        control.plan = msgspec.structs.replace(before, number=number, mark=mark, keys=keys)
        wait_for(partial(lets_in, plane, f"after-{number}"), "the whole plan")
        assert status(plane, "k4") == 401
    wait_for(partial(counted, control), "what the restored ledger has not, to be told again")


@pytest.mark.parametrize("how", ["forged", "truncated", "swapped"])
def test_a_log_that_was_touched_is_written_anew(begin: Begin, control: Control, how: str) -> None:
    plane = begin(1, "b")
    for number in range(4):
        control.change(keys=(grant(f"k{number}"),))
    everywhere(plane, 5)
    path = log(plane)
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "forged":
        delta = msgspec.json.encode(PlanDelta(5, "m5", 6, "m6", keys=(grant("evil"),)))
        with path.open("ab") as file:
            file.write(b"0" * 64 + b" " + delta + b"\n")
    else:
        path.write_bytes(b"".join(lines[:2] if how == "truncated" else lines[::-1]))
    time.sleep(0.2)
    assert [status(plane, key) for key in (KEY, "k3", "evil")] == [200, 200, 401]
    control.change(gone_keys=("id-b",))
    everywhere(plane, 6)
    plane.workers[0].kill()
    plane.workers[0].wait()
    plane.start()
    everywhere(plane, 6)
    assert [status(plane, key) for key in (KEY, "k3", "b", "evil")] == [200, 200, 401, 401]


def test_the_agents_worker_is_killed_while_it_writes(begin: Begin, control: Control) -> None:
    """Whoever is the agent is killed again and again while keys change; none is missed."""
    plane = begin(2)
    stop = threading.Event()

    def go_on() -> None:
        number = 0
        while not stop.wait(0.01):
            number += 1
            control.change(keys=(grant(f"k{number}"),), gone_keys=(f"id-k{number - 5}",))

    changes = threading.Thread(target=go_on)
    changes.start()
    try:
        for index in (0, 1, 0, 1):
            time.sleep(0.3)
            plane.workers[index].kill()
            plane.workers[index].wait()
            plane.start(index)
            everywhere(plane, control.plan.number)
    finally:
        stop.set()
        changes.join()
    last = control.change(keys=(grant("last"),))
    everywhere(plane, last.number)
    count = last.number - 2
    asked = [KEY, "last", *(f"k{count - back}" for back in (0, 1, 5, 6, 20))]
    for _ in range(4):
        assert [status(plane, key) for key in asked] == [200, 200, 200, 200, 401, 401, 401]


def test_keys_are_cut_off_by_hand_when_nobody_else_can(begin: Begin, control: Control) -> None:
    plane = begin(2, "b")
    control.stop()
    assert status(plane, "b") == 200
    (plane.home / "cut-keys").write_text("id-b\nid-nobody\n")
    wait_for(lambda: {status(plane, "b") for _ in range(8)} == {401}, "the key to be cut off")
    assert status(plane, KEY) == 200
    os.unlink(plane.home / "cut-keys")
    wait_for(lambda: {status(plane, "b") for _ in range(8)} == {200}, "the key to be let in")


def test_a_worker_that_cannot_read_who_is_cut_off_lets_nobody_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Subject:
        """Remembers who is cut off."""

        keys: frozenset[str] = frozenset()

        def apply(self, snapshot: Snapshot) -> None: ...

        def change(self, delta: PlanDelta) -> None: ...

        def cut(self, keys: frozenset[str]) -> None:
            self.keys = keys

    def without_descriptors(path: Path, **how: str) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        subject = Subject()
        follower = Follower(tmp_path, subject, PlanKeys(None))
        (tmp_path / "cut-keys").write_text("first\n")
        follower.look()
        (tmp_path / "cut-keys").write_text("first\nsecond\n")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", without_descriptors)
            follower.look()
        assert subject.keys == {"first"}
        follower.look()
        assert subject.keys == {"first", "second"}

    go(main)


def test_a_key_is_for_the_endpoints_that_it_names(begin: Begin, control: Control) -> None:
    plane = begin()
    package = control.plan.packages[0]
    control.change(
        endpoints=(endpoint("other", package),),
        needs=(Need("ep-default-other", (package.digest,)),),
        keys=(grant("bound", "*", endpoints=("sum", "gone")), grant("reader", "jobs:read")),
    )
    everywhere(plane, 2)
    assert status(plane, "bound") == 200
    for method, path in (
        ("POST", "/v2/models/other/infer"),
        ("POST", "/v1/models/other:predict"),
        ("POST", "/v1/endpoints/other/predict"),
        ("POST", "/v2/models/nothing/infer"),
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/other/ready"),
        ("GET", "/v2/models/other/stats"),
        ("GET", "/v1/models/other"),
        ("GET", "/v1/models/other/metadata"),
        ("GET", "/openai/v1/models/other"),
        ("POST", "/v2/repository/models/other/unload"),
    ):
        body = BODY if method == "POST" else None
        bound = plane.call(method, path, body, key="bound")
        missing = plane.call(method, path, body, key="reader")
        assert (bound.status, bound.body) == (403, missing.body), path
    names = plane.call("GET", "/v1/models", key="bound").json()["models"]
    assert names == ["sum"]
    index = plane.call("POST", "/v2/repository/index", key="bound").json()
    assert [line["name"] for line in index] == ["sum"]
    given = sum_request()
    asked = infer_request("other")
    asked.CopyFrom(given)
    asked.model_name = "other"
    assert call(plane, RPC_INFER, given, "bound").code is grpc.StatusCode.OK
    bound_rpc, missing_rpc = (call(plane, RPC_INFER, asked, key) for key in ("bound", "reader"))
    assert (bound_rpc.code, bound_rpc.details) == (missing_rpc.code, missing_rpc.details)
    assert bound_rpc.code is grpc.StatusCode.PERMISSION_DENIED


def test_other_keys_change_and_nobody_else_feels_it(begin: Begin, control: Control) -> None:
    """A connection whose head is known stays so: nothing it holds is worked out anew."""
    plane = begin()
    with plane.connect() as line:
        for number in range(40):
            control.change(keys=(grant(f"k{number}"),), gone_keys=(f"id-k{number - 1}",))
            assert _asked(line)
    everywhere(plane, 41)
    assert control.wholes == 1


def _asked(line: socket.socket) -> bool:
    line.sendall(request(INFER, BODY))
    return b" 200 " in line.recv(10_000)
