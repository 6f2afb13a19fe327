"""Hostile input 39: nobody gets more than a limit allows by asking in another way."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest

from tapster.contract.plan import LimitGrant
from tests.security.hostile import GOOD, INFER, PLAIN, PREDICT
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint
from tests.serving.paying import Ledger, limited
from tests.serving.rpc import calling

BUDGET = 7
TENSORS = b'{"instances":[[1,2,3]]}'
ROWS = b'{"rows":[{"alpha":1,"beta":2,"gamma":3}]}'
PATHS = [
    (INFER, GOOD),
    (f"{INFER}?x=1", GOOD),
    ("http://elsewhere.example" + INFER, GOOD),
    ("/v2/models/s%75m/infer", GOOD),
    ("/v2/models/sum/versions/1/infer", GOOD),
    ("/V2/models/sum/infer", GOOD),
    ("/v2//models/sum/infer", GOOD),
    ("/v2/models/sum/infer/", GOOD),
    ("/v2/models/SUM/infer", GOOD),
    (PREDICT, TENSORS),
    ("/v1/models/sum/versions/1:predict", TENSORS),
    (PLAIN, ROWS),
]
HEADERS: list[dict[str, str]] = [
    {},
    {"X_Forwarded_For": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.10", "X_Real_IP": "203.0.113.11"},
    {"X_Tapster_Tenant": "other"},
    {"X_Sticky_Key": "somebody else"},
]


@pytest.fixture
def budgeted(tmp_path: Path) -> Iterator[Plane]:
    """Two workers, and a key that may make seven requests a day."""
    ledger = Ledger(amounts={"lim_1": BUDGET})
    settings = {"TAPSTER_PORT": str(ledger.start()), "TAPSTER_WORKERS": "2"}
    plane = Plane(tmp_path / "home", settings)
    package = packages.regressor(plane.home, 1.0)
    limit = LimitGrant("lim_1", "requests", BUDGET, "day")
    limited(plane, (endpoint("sum", package),), (package,), limit)
    for index in range(2):
        plane.start(index)
        plane.applied(index=index)
    yield plane
    plane.stop()
    ledger.stop()


def test_39_a_budget_is_one_however_it_is_asked_for(budgeted: Plane) -> None:
    def rest(path: str, body: bytes, headers: dict[str, str]) -> str:
        return str(budgeted.call("POST", path, body, **headers).status)

    def rpc() -> str:
        reply = calling.call(budgeted, calling.INFER, calling.sum_request(1, 2, 3))
        return "200" if reply.code == grpc.StatusCode.OK else reply.code.name

    calls: list[Callable[[], str]] = [
        partial(rest, path, body, more) for path, body in PATHS for more in HEADERS
    ]
    calls += [rpc] * 20
    with ThreadPoolExecutor(32) as pool:
        seen = Counter(future.result() for future in [pool.submit(call) for call in calls])
    assert seen["200"] == BUDGET
    assert seen.keys() == {"200", "404", "429", "RESOURCE_EXHAUSTED"}
    assert seen["429"] > seen["404"] > 0
