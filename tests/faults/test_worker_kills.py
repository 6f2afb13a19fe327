"""Workers that die under load: who notices, and how long."""

from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.faults.scenarios.kills import crash_loop, kill_workers
from tests.faults.soak import scaled


@pytest.mark.soak
def test_a_killed_worker_takes_only_what_was_inside_it(new_server: Callable[..., Server]) -> None:
    seen = kill_workers(new_server(workers=2), round(scaled(100, 5)))
    assert seen.wrong == []
    assert seen.statuses == {200}
    assert seen.strangers == 0
    assert seen.refused == 0
    assert seen.broken > 0
    assert seen.rpc_answered > 0
    assert {each.partition(":")[0] for each in seen.rpc_failed} <= {"UNAVAILABLE"}
    assert len(seen.rpc_failed) <= 4 * seen.kills
    # Counted and not read when its worker died: the only difference there may be.
    answered, failed = seen.answered + seen.rpc_answered, seen.broken + len(seen.rpc_failed)
    assert answered <= seen.counted <= answered + failed
    assert seen.after == seen.before


@pytest.mark.soak
def test_a_worker_that_cannot_live_waits_longer_each_time(
    new_server: Callable[..., Server],
) -> None:
    seconds = scaled(60)
    starts, load = crash_loop(new_server(workers=2), seconds)
    assert starts <= 5 + seconds / 5
    assert load.wrong == []
    assert {answer.status for answer in load.answers} == {200}
