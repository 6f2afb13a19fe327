"""One tenant floods: others are run, read and answered in their turn, and never refused for it."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PlanDelta, TenantGrant
from tapster.serving.batcher import Batcher, Means
from tapster.serving.costs import Budget, Cost
from tapster.serving.expiry import Guard
from tapster.serving.gate import Gate
from tapster.serving.shares import QUOTA, Shares
from tapster.serving.slots import QUEUE_FULL, Slots
from tapster.serving.threads import Threads
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, grant, read_all, wait_for
from tests.serving.doubles import Asked, Bench, Double, Held, go, until
from tests.serving.rpc.calling import INFER, channel, metadata, sum_request
from tests.serving.talking import ask, infer, output

# A call costs so much that some 160 rows are worth one.
WIDE = Cost(1e-2, 1e-3)


class Crowd(Bench):
    """A batcher that several tenants ask; `served` are those answered, in order."""

    def __init__(self, folder: Path, model: Double, cost: Cost, *, together: bool = True) -> None:
        super().__init__(folder, model, cost, together=together)
        self.served: list[str] = []

    def of(self, tenant: str, *values: float, seconds: float = 1e6) -> Asked:
        """Submit a request of a tenant."""
        asked = Told(self.served, *values, deadline=time.monotonic() + seconds)
        asked.tenant = tenant
        asked.place = self.region.nowhere
        self.batcher.submit(asked)
        return asked

    def refusal(self, tenant: str, *values: float, seconds: float = 1e6) -> str:
        """What a tenant's request is refused with."""
        with pytest.raises(TapsterError) as caught:
            self.of(tenant, *values, seconds=seconds)
        assert caught.value.code == "unavailable"
        return caught.value.message


class Told(Asked):
    """A request that tells when it is answered."""

    def __init__(self, served: list[str], *values: float, deadline: float) -> None:
        super().__init__(*values, deadline=deadline)
        self._served = served

    def succeed(self, body: bytes) -> None:
        super().succeed(body)
        self._served.append(self.tenant)


def test_nobody_waits_for_a_flood(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        crowd = Crowd(tmp_path, model, Cost(1e-3, 1e-3), together=False)
        asked = [crowd.of("flooder", 1) for _ in range(20)]
        await until(lambda: model.sizes == [1])
        asked += [crowd.of(tenant, 1) for tenant in ("b", "c", "b")]
        model.let(len(asked))
        await until(lambda: all(each.done for each in asked))
        assert Counter(crowd.served[:4]) == {"flooder": 2, "b": 1, "c": 1}
        assert "b" in crowd.served[4:6]
        assert Counter(crowd.served) == {"flooder": 20, "b": 2, "c": 1}

    go(main)


def test_batches_are_filled_by_turns(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        crowd = Crowd(tmp_path, model, WIDE)
        flood = [crowd.of("flooder", 1) for _ in range(600)]
        await until(lambda: len(model.sizes) == 1)
        polite = [crowd.of(f"polite-{number}", 1, 2) for number in range(9)]
        model.let(2)
        await until(lambda: all(each.done for each in polite))
        await until(lambda: len(model.sizes) == 3)
        assert sum(each.done for each in flood) == model.sizes[0] + model.sizes[1] - 18
        model.let(20)
        await until(lambda: all(each.done for each in flood))
        assert sum(model.sizes) == 618

    go(main)


def test_who_holds_most_of_a_full_queue_gives_way(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        crowd = Crowd(tmp_path, model, Cost(1e-3, 1e-3))
        crowd.batcher.configure(queue=10, concurrency=1, window=None)
        running = crowd.of("flooder", 1)
        await until(lambda: model.sizes == [1])
        flood = [crowd.of("flooder", number) for number in range(10)]
        assert "too many" in crowd.refusal("flooder", 11)
        polite = [crowd.of("polite", number) for number in range(5)]
        assert [each.done for each in flood] == [False] * 5 + [True] * 5
        for each in flood[5:]:
            assert isinstance(each.error, TapsterError)
            assert each.error.code == "unavailable"
            assert each.error.retry_after >= 1
        assert "too many" in crowd.refusal("polite", 6)  # that would be more than its half
        third = crowd.of("third", 1)
        assert crowd.counted(QUEUE_FULL) == 5 + 3
        assert len(crowd.batcher) == 10
        model.let(5)
        waiting = [running, *flood[:4], *polite, third]
        await until(lambda: sum(each.done and not each.error for each in waiting) >= 10)
        assert third.body == b"[2.0]"

    go(main)


def test_a_gone_caller_gives_way_first_and_is_not_answered(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        crowd = Crowd(tmp_path, model, Cost(1e-3, 1e-3))
        crowd.batcher.configure(queue=2, concurrency=1, window=None)
        crowd.of("flooder", 1)
        await until(lambda: model.sizes == [1])
        flood = [crowd.of("flooder", number) for number in range(2)]
        flood[1].done = True
        polite = crowd.of("polite", 5)
        assert flood[1].error is None
        assert crowd.counted(QUEUE_FULL) == 0
        model.let(9)
        await until(lambda: polite.done and flood[0].done)
        assert polite.body == b"[10.0]"

    go(main)


def test_a_flood_makes_only_its_own_late(tmp_path: Path) -> None:
    async def main() -> None:
        model = Held()
        crowd = Crowd(tmp_path, model, Cost(1.0, 0.1), together=False)
        asked = [crowd.of("flooder", 1)]
        await until(lambda: model.sizes == [1])
        asked += [crowd.of("flooder", number, seconds=60) for number in range(8)]
        assert "late" in crowd.refusal("flooder", 9, seconds=6)
        asked += [crowd.of("polite", number, seconds=6) for number in range(2)]
        assert "late" in crowd.refusal("polite", 9, seconds=6)  # its own would go before it
        asked.append(crowd.of("third", 9, seconds=6))
        model.let(20)
        await until(lambda: all(each.done for each in asked))
        assert crowd.counted(QUEUE_FULL) == 2

    go(main)


@pytest.mark.parametrize("tenants", [1, 2])
def test_what_runs_inline_is_split_only_among_several(tmp_path: Path, tenants: int) -> None:
    model = Double()
    region = Slots(tmp_path / "slots").region(0)
    served: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        means = Means(Budget(loop, 1000.0), region, Threads("model"), Guard(loop))
        batcher = Batcher(model, means, WIDE, inline=True, together=True)
        work = [Told(served, 1, deadline=1e12) for _ in range(400)]
        for number, each in enumerate(work):
            each.place = region.nowhere
            each.tenant = "late" if tenants == 2 and number == 399 else "flooder"
            batcher.submit(each)
        await until(lambda: all(each.done for each in work))

    asyncio.run(main())
    assert sum(model.sizes) == 400
    assert len(model.sizes) == (1 if tenants == 1 else 3)
    assert ("late" in served[: model.sizes[0]]) == (tenants == 2)


# -- reading


class Caller:
    """A connection that is held back; four of them take a share of weight 1."""

    def __init__(self, shares: Shares, tenant: str, read: list[str]) -> None:
        self.share = shares.of(tenant)
        self._read = read

    def read_on(self) -> None:
        self._read.append(self.share.tenant)
        self.share.spent += QUOTA // 4


def competing(shares: Shares, *tenants: str) -> list[Caller]:
    """Callers of which each tenant has had its share of this turn, and waits for the next."""
    read: list[str] = []
    callers = [Caller(shares, tenant, read) for tenant in tenants]
    for share in {caller.share for caller in callers}:
        assert not shares.over(share)  # a new turn
        share.spent = share.most
    for caller in callers:
        assert shares.over(caller.share)
        shares.hold(caller.share, caller)
    return callers


def test_a_tenant_alone_is_never_held_back() -> None:
    async def main() -> None:
        shares = Shares(lambda tenant: 1.0)
        share = shares.of("a")
        for _ in range(100):
            share.spent = share.most
            assert not shares.over(share)
        assert not shares.contended
        assert not share.tight
        assert shares.strangers.tight

    go(main)


@pytest.mark.parametrize(
    ("weight", "order"), [(1.0, "aaaabbbbaaaaaaaa"), (2.0, "aaaaaaaabbbbaaaa")]
)
def test_who_is_held_back_is_read_by_turns(weight: float, order: str) -> None:
    async def main() -> None:
        shares = Shares({"a": weight, "b": 1.0}.__getitem__)
        callers = competing(shares, *"aaaaaaaaaaaabbbb")
        assert shares.contended
        assert all(caller.share.tight for caller in callers)
        read = callers[0]._read
        await asyncio.sleep(0)
        assert len(read) <= (1 + weight) * 4
        await until(lambda: len(read) == len(callers))
        assert "".join(read) == order

    go(main)


def test_who_comes_behind_its_own_waits_with_them() -> None:
    async def main() -> None:
        shares = Shares(lambda tenant: 1.0)
        callers = competing(shares, *"aaaaaaab")
        await asyncio.sleep(0)
        share = callers[0].share
        assert share.held
        share.most = share.spent + 1  # though there is some of its share left
        assert shares.over(share)
        await until(lambda: not share.held)

    go(main)


def test_a_share_goes_with_its_last_connection() -> None:
    shares = Shares(lambda tenant: 1.0)
    share = shares.of("a")
    assert shares.of("a") is share
    share.spent = 5
    del share
    assert shares.of("a").spent == 0


def test_weights_are_those_of_the_plan() -> None:
    gate = Gate(no_auth=False)
    gate.apply((), [TenantGrant("heavy", 4.0), TenantGrant("light", 0.5)])
    assert [gate.weight(tenant) for tenant in ("heavy", "light", "other")] == [4.0, 0.5, 1.0]
    gate.change(
        PlanDelta(0, "", 1, "", tenants=(TenantGrant("heavy", 2.0),), gone_tenants=("light",))
    )
    assert [gate.weight(tenant) for tenant in ("heavy", "light", "other")] == [2.0, 1.0, 1.0]


# -- over sockets

POLITE = [f"polite-{number}" for number in range(4)]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A worker of which several tenants call one model; who is not read is not a slow client."""
    home = tmp_path_factory.mktemp("crowded") / "home"
    plane = Plane(home, {"TAPSTER_RECEIVE_TIMEOUT": "1"})
    made = packages.regressor(home, 1.0)
    tenants = ("flooder", *POLITE)
    plane.plan(
        *(endpoint("sum", made, tenant=tenant) for tenant in tenants),
        packages=(made,),
        keys=tuple(grant(tenant, tenant=tenant) for tenant in tenants),
    )
    plane.start()
    plane.applied()
    yield plane
    plane.stop()


def together(flood: Callable[[], int], polite: Callable[[str], int]) -> list[int]:
    """What came of a flood from ten sides, and of each polite tenant meanwhile.

    All that is on its way at once fits the queue of an endpoint (1,024).
    """
    with ThreadPoolExecutor(10 + len(POLITE)) as pool:
        flooding = [pool.submit(flood) for _ in range(10)]
        calling = [pool.submit(polite, tenant) for tenant in POLITE]
        return [each.result() for each in (*calling, *flooding)]


def test_everybody_is_answered_over_rest(crowded: Plane) -> None:
    def pipelined(tenant: str, count: int, depth: int) -> int:
        requests = [
            infer((number, 2, 3)).replace(b"Bearer tap_test-key", b"Bearer " + tenant.encode())
            for number in range(count)
        ]
        answers = ask(crowded, requests, depth)
        assert [output(answer) for answer in answers] == [[6.0 + n] for n in range(count)]
        return len(answers)

    found = together(lambda: pipelined("flooder", 900, 90), lambda t: pipelined(t, 60, 1))
    assert found == [60] * len(POLITE) + [900] * 10


def test_everybody_is_answered_over_grpc(crowded: Plane) -> None:
    def calls(tenant: str, count: int, depth: int) -> int:
        request = sum_request().SerializeToString()
        good = 0
        with channel(crowded) as made:
            asking = made.unary_unary(f"/{INFER}")
            for _ in range(0, count, depth):
                futures = [
                    asking.future(request, metadata=metadata(tenant), timeout=30)
                    for _ in range(depth)
                ]
                good += sum(future.code() == grpc.StatusCode.OK for future in futures)
        return good

    found = together(lambda: calls("flooder", 400, 100), lambda tenant: calls(tenant, 40, 1))
    assert found == [40] * len(POLITE) + [400] * 10


def test_a_long_body_comes_through_a_flood(crowded: Plane) -> None:
    """In pieces, slower than others are read; and a caller who has said it all is answered."""
    values = [float(number % 7) for number in range(60_000)]
    wanted = [sum(values[at : at + 3]) + 1 for at in range(0, len(values), 3)]

    def flood() -> int:
        requests = [infer().replace(b"tap_test-key", b"flooder") for _ in range(600)]
        return len(ask(crowded, requests, 120))

    def long(tenant: str) -> int:
        request = infer(values).replace(b"tap_test-key", tenant.encode())
        answer = ask(crowded, [request], 1)[0]
        assert output(answer) == wanted
        return answer[0]

    assert together(flood, long) == [200] * len(POLITE) + [600] * 10


def test_who_has_said_it_all_is_answered(crowded: Plane) -> None:
    def say(tenant: str) -> int:
        with crowded.connect() as line:
            line.sendall(infer().replace(b"tap_test-key", tenant.encode()) * 100)
            line.shutdown(socket.SHUT_WR)
            return read_all(line).count(b"HTTP/1.1 200 OK")

    assert together(lambda: say("flooder"), say) == [100] * (len(POLITE) + 10)


def test_strangers_wait_for_nobody(crowded: Plane) -> None:
    def stranger(tenant: str) -> int:
        statuses = [crowded.call("GET", "/v2/health/live", key=None).status for _ in range(30)]
        return statuses.count(200)

    def flood() -> int:
        requests = [infer().replace(b"tap_test-key", b"flooder") for _ in range(600)]
        return len(ask(crowded, requests, 120))

    assert together(flood, stranger) == [30] * len(POLITE) + [600] * 10
    wait_for(lambda: crowded.call("GET", "/v2/health/ready", key=None).status == 200, "rest")
