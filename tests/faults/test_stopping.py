"""Stops that were asked for: nothing in flight is lost, nothing is left behind, nobody waits."""

from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.faults.scenarios import stopping
from tests.faults.soak import scaled


@pytest.mark.soak
def test_workers_are_replaced_without_a_loss(new_server: Callable[..., Server]) -> None:
    seen = stopping.stop_workers(new_server(workers=2), round(scaled(40, 4)))
    assert seen.failures == []
    assert seen.statuses == {200}
    assert seen.refused == 0


@pytest.mark.soak
def test_a_stop_answers_what_was_asked(new_server: Callable[..., Server]) -> None:
    seen = stopping.stop_everything(new_server(workers=2))
    assert seen.failures == []
    assert seen.statuses == {200}
    assert seen.orphans == []
    assert seen.code == 0


@pytest.mark.soak
@pytest.mark.parametrize(("grace", "again", "limit"), [(1.0, None, 2.0), (30.0, 0.3, 1.3)])
def test_a_stop_ends_what_takes_too_long(
    new_server: Callable[..., Server], grace: float, again: float | None, limit: float
) -> None:
    seen = stopping.stop_in_the_middle(new_server(workers=2, stop_grace=grace), again=again)
    assert seen.unanswered > 0  # else there was nothing to wait for
    assert seen.took[0] < limit + 10  # as a machine that is busy otherwise may need
    assert seen.orphans == []
    assert seen.code == 0
