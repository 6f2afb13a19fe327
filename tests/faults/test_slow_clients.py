"""Thousands of slow clients: they are cut off, and nobody else is disturbed."""

from collections.abc import Callable

import pytest

from tests.faults.scenarios.load import percentile
from tests.faults.scenarios.slow import KINDS, besiege
from tests.faults.soak import scaled
from tests.serving.conftest import Plane

COUNT = 2000


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_slow_clients_are_cut_off_and_disturb_nobody(
    new_plane: Callable[..., Plane], kind: str
) -> None:
    patience = scaled(10.0, 2.0)
    seen = besiege(new_plane(receive_timeout=patience), kind, COUNT, scaled(20.0, 3.0))
    assert seen.failures == []
    assert seen.statuses == {200}
    assert seen.connected > COUNT
    assert len(seen.held) > COUNT / 2
    assert percentile(seen.held, 0.5) < 2 * patience + 30  # as a busy machine may need
    assert set(seen.refusals) <= {0, 408}
    assert seen.memory[1] - seen.memory[0] < 512 << 20
