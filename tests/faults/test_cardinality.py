"""A flood of unknown names: not a series more for each, and no memory."""

from collections.abc import Callable

import pytest

from tests.faults.scenarios.cardinality import flood
from tests.faults.scenarios.load import percentile
from tests.faults.soak import scaled
from tests.serving.conftest import Plane


@pytest.mark.soak
def test_unknown_names_cost_nothing(new_plane: Callable[..., Plane]) -> None:
    seen = flood(new_plane(), round(scaled(100_000)))
    assert seen.statuses <= {400, 401, 404, 405}
    assert seen.series[1] - seen.series[0] < 50
    assert seen.memory[1] - seen.memory[0] < 32 << 20
    assert percentile(seen.scrapes, 0.5) < 0.2
