"""Bodies as large as they may be, and answers that nobody reads: memory has its bounds."""

from collections.abc import Callable

import pytest

from tests.faults.scenarios import hoarding
from tests.faults.scenarios.hoarding import MIB
from tests.faults.soak import scaled
from tests.serving.conftest import Plane


@pytest.mark.soak
def test_large_bodies_at_once_are_held_within_bounds(new_plane: Callable[..., Plane]) -> None:
    seen = hoarding.send_large(new_plane(), round(scaled(16, 4)), 64 * MIB)
    assert set(seen.statuses) <= {200, 503}
    assert seen.statuses[200] > 0
    assert seen.most - seen.before < 1536 * MIB
    assert seen.failures == []
    assert seen.small_statuses == {200}


def test_many_rows_take_no_more_memory_than_a_batch(new_plane: Callable[..., Plane]) -> None:
    seen = hoarding.send_many_rows(new_plane(), 100_000)  # 1.6 GB of each layer, all at once
    assert seen.statuses == {200: 1}
    assert seen.most - seen.before < 256 * MIB
    assert seen.failures == []
    assert seen.small_statuses == {200}


@pytest.mark.soak
def test_answers_that_nobody_reads_are_held_within_bounds(
    new_plane: Callable[..., Plane],
) -> None:
    plane = new_plane(receive_timeout=scaled(10.0, 2.0))
    seen = hoarding.read_nothing(plane, 200, 20, scaled(30.0, 5.0))
    assert seen.most - seen.before < 768 * MIB
    assert seen.failures == []
    assert seen.small_statuses == {200}
