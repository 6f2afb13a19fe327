"""Plans that follow one another faster than they can be made true, under load."""

import os
import time
from collections.abc import Callable

import pytest

from tapster.contract.plan import Options
from tests.faults.soak import scaled
from tests.serving import packages
from tests.serving.conftest import Plane, endpoint, wait_for
from tests.serving.loads import Load


def test_a_storm_of_plans_loses_nothing(new_plane: Callable[..., Plane]) -> None:
    storm(new_plane(resident_memory=1 << 20), 200)


@pytest.mark.soak
def test_a_long_storm_of_plans_loses_nothing(new_plane: Callable[..., Plane]) -> None:
    storm(new_plane(resident_memory=1 << 20), round(scaled(10_000)))


def storm(plane: Plane, plans: int) -> None:
    """Change the plan again and again while callers call: what serves, what else there is, and
    what endpoints ask for; models come, go, leave the memory and come back meanwhile."""
    refs = [packages.regressor(plane.home, float(number + 1)) for number in range(6)]
    kinds = (Options(), Options(cache=1.0), Options(concurrency=3), Options(idle=0.01))
    plane.plan(endpoint("sum", refs[0], 1), packages=(refs[0],))
    worker = plane.start()
    plane.applied()
    wanted = {(200, "1", 7.0)}
    with Load(plane, clients=4) as load:
        load.more(100)
        before = threads_and_files(worker.pid)
        for number in range(1, plans + 1):
            now, other = refs[number % 6], refs[number * 7 % 5]
            named = (now, other, refs[number * 3 % 6])
            plane.plan(
                endpoint("sum", now, number + 1, options=kinds[number % 4]),
                *([endpoint("aside", other, number)] if number % 3 else []),
                packages=tuple({package.digest: package for package in named}.values()),
            )
            wanted.add((200, str(number + 1), 7.0 + number % 6))
            if number % 10 == 0:
                plane.applied()
                load.more(10)
            else:
                time.sleep(0.01)  # some plans are overtaken by the next, some are not
    assert load.failures == []
    assert set(load.seen) <= wanted
    assert len(load.seen) > 20
    plane.plan(endpoint("sum", refs[0], 1), packages=(refs[0],))
    plane.applied()

    def calm() -> bool:
        return all(
            now <= then + 4 for then, now in zip(before, threads_and_files(worker.pid), strict=True)
        )

    wait_for(calm, "threads and files of models that are gone to be gone")


def threads_and_files(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
