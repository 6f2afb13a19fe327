"""Clients that hang up: nothing is run for them, and nothing of them stays."""

from collections.abc import Callable

import pytest

from tests.faults.scenarios import leaving
from tests.faults.soak import scaled
from tests.serving.conftest import Plane


@pytest.mark.soak
@pytest.mark.parametrize("way", leaving.WAYS)
def test_nothing_is_run_for_those_who_left(new_plane: Callable[..., Plane], way: str) -> None:
    plane = new_plane()
    leaving.serve(plane)
    for _ in range(round(scaled(10, 2))):
        seen = leaving.leave(plane, way)
        assert seen.ran == 0
        assert seen.emptied < 5  # a second, unless the machine has much else to do
        assert seen.status == 200


@pytest.mark.soak
def test_resets_in_the_middle_of_bodies_leave_nothing(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    process = leaving.serve(plane)
    seen = leaving.reset_in_bodies(plane, process, round(scaled(10_000)))
    assert seen.left <= 0
    assert plane.call("POST", "/v2/models/busy/infer", leaving.body(1)).status == 200
