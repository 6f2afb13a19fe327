"""Workers of the data plane for the hostile suites."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.security.hostile import GOOD, INFER, LIMIT, MIB, SECRET, unharmed
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """One worker for all of this, with limits that a test can reach."""
    given = {"MAX_BODY": str(LIMIT), "LOG_LEVEL": "debug", "ACCESS_LOG": "1"}
    settings = {f"TAPSTER_{name}": value for name, value in given.items()}
    plane = Plane(tmp_path_factory.mktemp("hostile") / "home", settings)
    made = {
        "sum": packages.regressor(plane.home, 1.0),
        "theirs": packages.regressor(plane.home, 2.0),
        "typed": packages.typed(plane.home),
        "bytes": packages.every(plane.home, "UINT8"),
        "words": packages.every(plane.home, "BYTES", width=1),
    }
    plane.plan(
        *(
            endpoint(name, package, tenant="other" if name == "theirs" else "default")
            for name, package in made.items()
        ),
        packages=tuple(made.values()),
        keys=(
            grant(KEY),
            msgspec.structs.replace(grant(SECRET), id="hidden"),
            grant("reader", "endpoints:read"),
            grant("caller", "predict"),
            grant("expired", "*", expires=1.0),
        ),
    )
    plane.start()
    plane.applied()
    for _ in range(20):
        assert plane.call("POST", INFER, GOOD).status == 200
    yield plane
    plane.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Plane]:
    """A worker for one test, with little patience and one more key."""
    settings = {"TAPSTER_RECEIVE_TIMEOUT": "1", "TAPSTER_KEEP_ALIVE": "1"}
    plane = Plane(tmp_path / "home", settings)
    package = packages.regressor(plane.home, 1.0)
    keys = (grant(KEY), grant("gone"))
    plane.plan(endpoint("sum", package), packages=(package,), keys=keys)
    plane.start()
    plane.applied()
    yield plane
    plane.stop()


@pytest.fixture
def plane(shared: Plane) -> Iterator[Plane]:
    """The worker, which is unharmed afterwards."""
    process = psutil.Process(shared.workers[0].pid)
    before = process.memory_info().rss
    logged = (shared.home / "log").stat().st_size
    yield shared
    unharmed(shared, process)
    assert process.memory_info().rss - before < 64 * MIB
    with (shared.home / "log").open() as log:
        log.seek(logged)
        assert "Traceback" not in log.read()
