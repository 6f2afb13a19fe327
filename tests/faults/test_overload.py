"""More requests than can be answered: as many answers as ever, and quick refusals."""

from collections.abc import Callable

import pytest

from tests.faults.scenarios.overload import overload
from tests.faults.soak import scaled
from tests.serving.conftest import Plane


@pytest.mark.soak
def test_ten_times_too_much_is_refused_and_forgotten(new_plane: Callable[..., Plane]) -> None:
    for _ in range(3):  # others may have use for the machine during one of them
        seen = overload(new_plane(), scaled(60, 4))
        assert seen.failures == []
        assert seen.statuses <= {200, 503, 504}
        assert seen.rejected
        assert seen.hints
        before, after = seen.memory
        assert after < 1.1 * before
        if seen.goodput > 0.7 * seen.peak and seen.recovery < 2.5:
            break
    assert seen.goodput > 0.7 * seen.peak
    assert seen.recovery < 2.5
